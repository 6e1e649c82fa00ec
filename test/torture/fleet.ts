import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type FaultyProxy, startProxy } from '../support/proxy.ts'
import { now } from './clock.ts'
import type { FromWorker, ToWorker, WorkerSettings } from './messages.ts'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
const WORKER = fileURLToPath(new URL('./worker.ts', import.meta.url))
const STARTS_WITHIN_MS = 30_000
const ENDS_WITHIN_MS = 10_000

export interface FleetOptions extends Omit<WorkerSettings, 'who' | 'journal' | 'redisPort' | 'postgresPort'> {
  readonly workers: number
  /** For the journals. */
  readonly directory: string
  readonly redisPort: number
  readonly postgresPort: number
  /** Told of what must not be. */
  problem(promise: string, message: string): void
}

/** A place for a worker: a network of its own, and one process after another. */
export interface Slot {
  readonly name: string
  readonly redis: FaultyProxy
  readonly postgres: FaultyProxy
  process: WorkerProcess | undefined
}

export class WorkerProcess {
  readonly who: string
  readonly journal: string
  /** Resolves when it has begun to work. */
  readonly ready: Promise<void>
  readonly exited: Promise<unknown>
  /** It was told to end, or its end was ours. */
  expected = false
  readonly #child: ChildProcess
  #log = ''

  constructor(settings: WorkerSettings) {
    this.who = settings.who
    this.journal = settings.journal
    const asked = now()
    this.#child = spawn(process.execPath, ['--import', 'tsx', WORKER, JSON.stringify(settings)], {
      cwd: ROOT,
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    })
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => {
        this.#log = (this.#log + text).slice(-4000)
      })
    }
    this.exited = once(this.#child, 'exit')
    this.ready = this.reply('ready', STARTS_WITHIN_MS).then(({ at }) => {
      if (at < asked || at > now()) throw new Error('the processes of this machine do not share a clock')
    })
    this.ready.catch(() => undefined)
  }

  get pid(): number {
    return this.#child.pid as number
  }

  get running(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null
  }

  /** How it ended, and its last words. */
  get end(): string {
    return `${this.#child.signalCode ?? `exit ${this.#child.exitCode}`} ${this.#log}`
  }

  get endedWell(): boolean {
    return this.#child.exitCode === 0
  }

  signal(signal: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT'): void {
    if (this.running) this.#child.kill(signal)
  }

  tell(message: ToWorker): void {
    if (this.running && this.#child.connected) this.#child.send(message, () => undefined)
  }

  /** The next message of this type. Rejects when it does not come in time, or the process ends. */
  reply<T extends FromWorker['type']>(type: T, withinMs: number): Promise<Extract<FromWorker, { type: T }>> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => done(() => reject(new Error(`${this.who}: no '${type}' within ${withinMs} ms`))),
        withinMs,
      )
      const listen = (message: FromWorker) => {
        if (message.type === type) done(() => resolve(message as Extract<FromWorker, { type: T }>))
      }
      const ended = () => done(() => reject(new Error(`${this.who} ended before '${type}': ${this.end}`)))
      const done = (settle: () => void) => {
        clearTimeout(timer)
        this.#child.off('message', listen).off('exit', ended)
        settle()
      }
      this.#child.on('message', listen).on('exit', ended)
    })
  }
}

/** The workers, each behind proxies of its own, and each replaced as soon as it is killed. */
export class Fleet {
  readonly slots: readonly Slot[]
  /** Of all processes there were. */
  readonly journals: { readonly who: string; readonly path: string }[] = []
  readonly #options: FleetOptions
  readonly #incarnations = new Map<Slot, number>()
  #ending = false

  private constructor(options: FleetOptions, slots: readonly Slot[]) {
    this.#options = options
    this.slots = slots
  }

  static async start(options: FleetOptions): Promise<Fleet> {
    const slots = await Promise.all(
      Array.from({ length: options.workers }, async (_, i): Promise<Slot> => {
        const [redis, postgres] = await Promise.all([
          startProxy(options.redisPort),
          startProxy(options.postgresPort),
        ])
        return { name: `w${i + 1}`, redis, postgres, process: undefined }
      }),
    )
    const fleet = new Fleet(options, slots)
    for (const slot of slots) fleet.#launch(slot)
    await fleet.ready()
    return fleet
  }

  /** Resolves when every place has a process at work. */
  async ready(): Promise<void> {
    await Promise.all(this.slots.map((slot) => this.working(slot)))
  }

  /** The process of a place, once it works. */
  async working(slot: Slot): Promise<WorkerProcess> {
    for (;;) {
      const { process } = slot as { process: WorkerProcess }
      try {
        await process.ready
      } catch (error) {
        // Killed before it had begun, so there is another.
        if (slot.process === process) throw error
      }
      if (slot.process === process) return process
    }
  }

  /** Has each worker do something, side by side. A worker that does not answer is a problem, and the others go on. */
  async each<T>(what: string, task: (process: WorkerProcess) => Promise<T>): Promise<T[]> {
    const results = await Promise.allSettled(
      this.slots.map(async ({ process }) => task(process as WorkerProcess)),
    )
    return results.flatMap((result) => {
      if (result.status === 'fulfilled') return [result.value]
      this.#options.problem('nothing hangs', `${what}: ${result.reason}`)
      return []
    })
  }

  /** From now on nobody is replaced. Ends the workers in order. */
  async finish(): Promise<void> {
    this.#ending = true
    await this.each('finish', async (process) => {
      process.expected = true
      process.tell({ type: 'finish' })
      const timer = setTimeout(() => process.signal('SIGKILL'), ENDS_WITHIN_MS)
      await process.exited
      clearTimeout(timer)
      if (!process.endedWell) throw new Error(`${process.who} did not exit by itself: ${process.end}`)
    })
  }

  /** Leaves nothing behind, whatever state everything is in. */
  async destroy(): Promise<void> {
    this.#ending = true
    await Promise.all(
      this.slots.map(async ({ process, redis, postgres }) => {
        if (process?.running) {
          process.expected = true
          process.signal('SIGKILL')
          await process.exited
        }
        await Promise.all([redis.close(), postgres.close()])
      }),
    )
  }

  #launch(slot: Slot): void {
    const incarnation = (this.#incarnations.get(slot) ?? 0) + 1
    this.#incarnations.set(slot, incarnation)
    const who = `${slot.name}.${incarnation}`
    const { directory, seed, readers, writers, readPauseMs, writePauseMs, sabotage } = this.#options
    const worker = new WorkerProcess({
      who,
      seed: seed * 1_000_003 + this.slots.indexOf(slot) * 1009 + incarnation,
      journal: join(directory, `${who}.ndjson`),
      redisPort: slot.redis.port,
      postgresPort: slot.postgres.port,
      readers,
      writers,
      readPauseMs,
      writePauseMs,
      sabotage,
    })
    slot.process = worker
    this.journals.push({ who, path: worker.journal })
    void worker.exited.then(() => {
      if (!worker.expected && !this.#ending)
        this.#options.problem('no process ends by itself', `${who}: ${worker.end}`)
      if (!this.#ending) this.#launch(slot)
    })
  }
}
