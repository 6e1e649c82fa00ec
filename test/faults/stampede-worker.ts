import { Redis } from 'ioredis'
import { Kysely, PostgresDialect } from 'kysely'
import { Pool } from 'pg'
import { createModelCache, runInLoop } from '../../src/index.ts'
import type { FromWorker, ToWorker, WorkerOptions } from './stampede-fleet.ts'

/** One process of an application, all of whose requests want the same rows. */

const { databaseUrl, redisUrl, namespace } = JSON.parse(process.argv[2] as string) as WorkerOptions

interface Tables {
  users: { id: number; email: string }
}

const pool = new Pool({ connectionString: databaseUrl })
pool.on('error', () => {})
pool.on('connect', (client) => client.on('error', () => {}))
/** Every statement about users that was sent, failed ones included. */
let statements = 0
const db = new Kysely<Tables>({
  dialect: new PostgresDialect({ pool }),
  log: ({ query }) => {
    if (query.sql.includes('"users"')) statements++
  },
})
const cache = createModelCache({
  db,
  redis: new Redis(redisUrl, { lazyConnect: true }),
  namespace,
  invalidation: 'manual',
  // The machine is shared: nobody shall go his own way because it is busy.
  storeTimeout: '10s',
  waitBudget: '20s',
  leaseTtl: '10m',
})
const User = cache.model('users', { keyFields: [['id']] })

const request = runInLoop((ids: readonly number[]) =>
  Promise.all(ids.map((id) => User.cache.getAsync({ id }))),
)

async function answer(message: ToWorker): Promise<FromWorker> {
  const before = statements
  const pages = await Promise.all(Array.from({ length: message.requests }, () => request(message.ids)))
  await cache.idle()
  const isRight = pages.every((rows) => rows.every(({ id }, i) => id === message.ids[i]))
  return { type: 'done', statements: statements - before, isRight }
}

process.on('message', (message: ToWorker) => {
  answer(message).then(
    (reply) => process.send?.(reply),
    (error: unknown) => process.send?.({ type: 'failed', error: String((error as Error)?.stack ?? error) }),
  )
})
// Whoever started us is gone, or has no more questions.
process.on('disconnect', () => process.exit())

await cache.ready()
// Connections are there before the questions are.
await Promise.all(Array.from({ length: 5 }, () => pool.query('select pg_sleep(0.01)')))
await request([0]).catch(() => {})
process.send?.({ type: 'ready' } satisfies FromWorker)
