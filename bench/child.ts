import { writeFileSync } from 'node:fs'
import { Session } from 'node:inspector/promises'
import type { Contender } from './contender.ts'
import { CONTENDERS, type ContenderName } from './contenders/index.ts'
import type { Reply, Request, Sample } from './messages.ts'
import { check, type RunTurn, WORKLOADS, type Workload } from './workloads.ts'

/** A process with one contender in it. Does what the parent asks, and nothing in between. */
let contender: Contender
let name: ContenderName
const running = new Map<string, RunTurn | undefined>()

/** A sample on a machine that others keep busy ends after so many times its CPU time. */
const MOST_WALL_PER_CPU = 4

process.on('message', (request: Request) => {
  perform(request).then(
    (result) => reply({ result: result ?? null }),
    (error: unknown) =>
      reply({ error: error instanceof Error ? (error.stack ?? error.message) : String(error) }),
  )
})

// Whatever becomes of the parent, this process does not stay behind.
process.on('disconnect', () => process.exit())

function reply(message: Reply): void {
  process.send?.(message)
}

async function perform(request: Request): Promise<boolean | Sample | undefined> {
  switch (request.op) {
    case 'prepare': {
      name = request.contender
      const prepare = await CONTENDERS[name]()
      contender = await prepare(request.environment)
      return undefined
    }
    case 'check':
      return checkTurns(workloadOf(request.workload))
    case 'run':
      await runTurns(workloadOf(request.workload), request.turns)
      return undefined
    case 'sample':
      return sample(workloadOf(request.workload), request.cpuMs, request.profile)
    case 'close':
      await contender.close()
      setImmediate(() => process.disconnect())
      return undefined
  }
}

function workloadOf(name: string): Workload {
  const workload = WORKLOADS.find((each) => each.name === name)
  if (!workload) throw new Error(`no workload is called ${name}`)
  return workload
}

async function begun(workload: Workload): Promise<RunTurn | undefined> {
  if (!running.has(workload.name)) running.set(workload.name, await workload.begin(contender))
  return running.get(workload.name)
}

/** Twice: what a first look leaves in the cache must be right, too. */
async function checkTurns(workload: Workload): Promise<boolean> {
  const run = await begun(workload)
  if (!run) return false
  for (let i = 0; i < 2; i++) {
    for (let turn = 0; turn < Math.min(workload.turns, 5); turn++) {
      check(workload, turn, await run(turn), name.startsWith('floor'))
    }
    await contender.idle()
  }
  return true
}

async function runTurns(workload: Workload, turns: number): Promise<void> {
  const run = (await begun(workload)) as RunTurn
  for (let i = 0; i < turns; i++) await run(i % workload.turns)
  await contender.idle()
}

/** No garbage collection is forced: it would shrink V8's young generation, and each sample would begin by growing it. */
async function sample(workload: Workload, cpuMs: number, profile: string | undefined): Promise<Sample> {
  const run = (await begun(workload)) as RunTurn
  if (!workload.cold) await runTurns(workload, workload.turns)
  const session = profile === undefined ? undefined : await startProfile()
  const cpu = process.cpuUsage()
  const began = performance.now()
  const turns = await runFor(workload, run, cpuMs)
  await contender.idle()
  const wallMicros = (performance.now() - began) * 1_000
  const { user, system } = process.cpuUsage(cpu)
  if (session) writeFileSync(profile as string, await stopProfile(session))
  return { turns, cpuMicros: user + system, wallMicros }
}

/** Until so much CPU time is spent: on a busy machine wall time would make samples too small to tell anything. */
async function runFor(workload: Workload, run: RunTurn, cpuMs: number): Promise<number> {
  const most = workload.cold ? workload.turns : Number.POSITIVE_INFINITY
  const cpu = process.cpuUsage()
  const deadline = performance.now() + cpuMs * MOST_WALL_PER_CPU
  // Asking for the CPU time costs a microsecond, so it is asked for now and then.
  let nextLook = 0
  for (let turns = 0; ; turns++) {
    const now = performance.now()
    if (now > nextLook) {
      const { user, system } = process.cpuUsage(cpu)
      if (user + system >= cpuMs * 1_000 || now > deadline) return turns
      nextLook = now + 2
    }
    if (turns === most) return turns
    const result = run(turns % workload.turns)
    if (result instanceof Promise) await result
  }
}

async function startProfile(): Promise<Session> {
  const session = new Session()
  session.connect()
  await session.post('Profiler.enable')
  await session.post('Profiler.setSamplingInterval', { interval: 200 })
  await session.post('Profiler.start')
  return session
}

async function stopProfile(session: Session): Promise<string> {
  const { profile } = await session.post('Profiler.stop')
  session.disconnect()
  return JSON.stringify(profile)
}
