import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { Kysely, PostgresDialect } from 'kysely'
import { Pool } from 'pg'
import { insidesOf } from '../../src/cache.ts'
import { createModelCache, withInvalidation } from '../../src/index.ts'
import { now } from './clock.ts'
import { Journal } from './journal.ts'
import { type FromWorker, NAMESPACE, type ToWorker, type WorkerSettings } from './messages.ts'
import { Random } from './random.ts'
import { Reader } from './reader.ts'
import { sabotage } from './sabotage.ts'
import { META, type Tables } from './things.ts'
import { Watch } from './watch.ts'
import { Writer } from './writer.ts'

/** One process of the application: a cache, and loops that read and write at random until they are told to stop. */

const settings = JSON.parse(process.argv[2] as string) as WorkerSettings
const random = new Random(settings.seed)
const journal = new Journal(settings.journal)
const watch = new Watch(journal)
sabotage(settings.sabotage)

const pool = new Pool({
  host: '127.0.0.1',
  port: settings.postgresPort,
  user: 'postgres',
  application_name: settings.who,
  max: 10,
})
pool.on('error', () => {}) // an idle connection was broken; the pool makes another
// pg has nobody listen to a connection that is in use, and what nobody listens to ends the process.
pool.on('connect', (client) => client.on('error', () => {}))
const db = new Kysely<Tables>({ dialect: withInvalidation(new PostgresDialect({ pool })) })
const redis = new Redis({ host: '127.0.0.1', port: settings.redisPort, lazyConnect: true })
const cache = createModelCache({
  db,
  redis,
  namespace: NAMESPACE,
  // Shorter than the slowest steps, so that leases run out under those who hold them.
  leaseTtl: '400ms',
  // Longer than the longest fault: a process that is away for longer breaks the promise, as documented.
  intentTtl: '5s',
  storeTimeout: '100ms',
  relay: { election: '300ms' },
})
const models = {
  relaxed: cache.model('relaxed', META).cache,
  strict: cache.model('strict', { ...META, consistency: 'strict' }).cache,
}

/** Steps mostly take no time of their own, sometimes a little, and rarely longer than a lease. */
async function dawdle(): Promise<void> {
  const luck = random.next()
  if (luck > 0.2) return
  await sleep(luck > 0.05 ? luck * 20 : luck > 0.005 ? random.int(5, 60) : random.int(100, 700))
}

/** A write is slow where it matters most: between its intents and COMMIT, and between COMMIT and its clear. */
async function dawdleInCommit(): Promise<void> {
  await (random.chance(0.4) ? sleep(random.int(1, 40)) : dawdle())
}

let death: { readonly step: string; readonly after: boolean } | undefined

function dieIf(step: string, after: boolean): void {
  if (death?.step === step && death.after === after) process.kill(process.pid, 'SIGKILL')
}

const { hook, store } = insidesOf(cache)
hook.gate = async (_, take) => {
  await dawdle()
  const answer = await take()
  await dawdle()
  return answer
}
for (const step of ['intend', 'clear'] as const) {
  const take = store[step].bind(store) as (...args: unknown[]) => Promise<unknown>
  Object.assign(store, {
    async [step](...args: unknown[]) {
      if (step === 'clear') await dawdleInCommit()
      dieIf(step, false)
      const answer = await take(...args)
      dieIf(step, true)
      if (step === 'intend') await dawdleInCommit()
      return answer
    },
  })
}

const reader = new Reader({ cache, models, journal, random, watch })
let tellsCommit = false
const committing = () => {
  if (tellsCommit) process.send?.({ type: 'committing' } satisfies FromWorker)
  tellsCommit = false
}
const writer = new Writer({ db, cache, reader, journal, random, watch, committing, who: settings.who })
let stopping = false

async function loop(turn: () => Promise<void>, longestPauseMs: number): Promise<void> {
  while (!stopping) {
    await turn()
    await sleep(random.next() * longestPauseMs)
  }
}

function noteStats(): void {
  const { trips, breaker: _, replica: __, ...counts } = cache.stats()
  journal.note({ t: 'stats', at: now(), stats: { ...counts, ...trips } })
}

const loops: Promise<void>[] = []
const notes = setInterval(() => {
  noteStats()
  journal.flush()
}, 250)

async function stop(): Promise<void> {
  stopping = true
  await Promise.all(loops)
  await cache.idle()
}

async function finish(): Promise<void> {
  clearInterval(notes)
  watch.end()
  await cache.close()
  await db.destroy()
  redis.disconnect()
  noteStats()
  journal.flush()
  // From here on nothing of ours keeps the process alive; should something of the cache's, it is found hanging.
  process.disconnect()
}

async function answer(message: ToWorker): Promise<FromWorker | undefined> {
  switch (message.type) {
    case 'die':
      death = message
      return undefined
    case 'tell-commit':
      tellsCommit = true
      return undefined
    case 'stop':
      await stop()
      return { type: 'stopped' }
    case 'look':
      return { type: 'looked', things: await reader.lookAtAll() }
    case 'verify': {
      const { checked, stale, unchecked, shapes } = await cache.verify({
        sample: Number.POSITIVE_INFINITY,
        settleMs: 300,
      })
      return {
        type: 'verified',
        checked,
        stale,
        damaged: unchecked.damaged,
        examples: shapes.flatMap(({ examples }) => examples),
      }
    }
    case 'finish':
      await finish()
      return undefined
  }
}

for (const event of ['unhandledRejection', 'uncaughtException'] as const) {
  process.on(event, (error: unknown) =>
    watch.problem('nothing is left unhandled', `${event}: ${(error as Error)?.stack ?? error}`),
  )
}
process.on('disconnect', () => {
  // Whoever started us is gone.
  if (!stopping) process.exit()
})
process.on('message', (message: ToWorker) => {
  answer(message).then(
    (reply) => reply && process.send?.(reply),
    (error: unknown) =>
      watch.problem('the cache answers at quiet', `${message.type}: ${(error as Error)?.stack ?? error}`),
  )
})

// The first look at the tables may meet a fault as any other.
while (
  !(await cache.ready().then(
    () => true,
    () => false,
  ))
)
  await sleep(50)
process.send?.({ type: 'ready', at: now() } satisfies FromWorker)
for (let i = 0; i < settings.readers; i++) loops.push(loop(() => reader.turn(), settings.readPauseMs))
for (let i = 0; i < settings.writers; i++) loops.push(loop(() => writer.turn(), settings.writePauseMs))
