import { Redis } from 'ioredis'
import { Kysely, PostgresDialect } from 'kysely'
import { createModelCache, runInLoop, withInvalidation } from 'loadstone'
import { Client, Pool } from 'pg'
import { createTable, type WriteTables } from './table.ts'

const CALLS = 400
const ROUNDS = 5

interface Counts {
  sql: number
  store: number
}

interface Way {
  readonly name: string
  readonly times: number[]
  /** What the caller waits for, and what is sent afterwards: the last call's. */
  awaited: Counts
  later: Counts
  call(i: number): Promise<unknown>
  /** Not timed: makes the next call what its name says. */
  prepare(i: number): Promise<unknown>
}

/** A table of medians, in Markdown. */
export async function measureLookupsAndWrites(databaseUrl: string, redisUrl: string): Promise<string> {
  const sent: Counts = { sql: 0, store: 0 }
  const redis = new (countingRedis(sent))(redisUrl)
  await createTable(databaseUrl, 'items')
  await createTable(databaseUrl, 'strict_items')
  await createTable(databaseUrl, 'bare_items')
  const dialect = () =>
    new PostgresDialect({
      pool: new Pool({ connectionString: databaseUrl, Client: countingClient(sent) }),
    })
  const plain = new Kysely<WriteTables>({ dialect: dialect() })
  const db = new Kysely<WriteTables>({ dialect: withInvalidation(dialect()) })
  const cache = createModelCache({ db, redis, namespace: 'levels', relay: false, storeTimeout: '5s' })
  const fields = {
    keyFields: [['id'], ['code']],
    filterFields: [['group_id'], ['group_id', 'state']],
  } as const
  const Item = cache.model('items', fields)
  cache.model('strict_items', { ...fields, consistency: 'strict' })
  await cache.install()
  const item = runInLoop((id: number) => Item.cache.getAsync({ id }))
  const ways = [
    way('lookup: plain SQL', (i) =>
      plain.selectFrom('items').selectAll().where('id', '=', idOf(i)).execute(),
    ),
    way(
      'lookup: hit',
      () => item(1),
      () => item(1),
    ),
    way(
      'lookup: miss',
      (i) => item(idOf(i)),
      (i) => Item.cache.invalidate({ id: idOf(i) }),
    ),
    way('write: plain', (i) => write(plain, 'bare_items', i)),
    way('write: plain, with triggers', (i) => write(plain, 'items', i)),
    way('write: `default`', (i) => write(db, 'items', i)),
    way('write: `strict`', (i) => write(db, 'strict_items', i)),
    way('transaction of 5 writes: plain', (i) => five(plain, 'bare_items', i)),
    way('transaction of 5 writes: `default`', (i) => five(db, 'items', i)),
    way('transaction of 5 writes: `strict`', (i) => five(db, 'strict_items', i)),
  ]
  for (let round = 0; round <= ROUNDS; round++) {
    for (const each of ways) {
      for (let i = 0; i < CALLS; i++) {
        await each.prepare(i)
        await cache.idle()
        const before = { ...sent }
        const began = performance.now()
        await each.call(i)
        const took = performance.now() - began
        const answered = { ...sent }
        await cache.idle()
        each.awaited = difference(answered, before)
        each.later = difference(sent, answered)
        if (round > 0) each.times.push(took)
      }
    }
  }
  await cache.close()
  await Promise.all([plain.destroy(), db.destroy()])
  redis.disconnect()
  const inAll = (awaited: number, later: number) => (later ? `${awaited} + ${later}` : String(awaited))
  const lines = ways.map(
    ({ name, awaited, later, times }) =>
      `| ${name} | ${inAll(awaited.sql, later.sql)} | ${inAll(awaited.store, later.store)} | ${median(times).toFixed(2)} ms |`,
  )
  return ['| call | SQL | Redis commands | median |', '|---|--:|--:|--:|', ...lines].join('\n')
}

function way(name: string, call: Way['call'], prepare: Way['prepare'] = async () => {}): Way {
  return { name, call, prepare, times: [], awaited: { sql: 0, store: 0 }, later: { sql: 0, store: 0 } }
}

function difference(after: Counts, before: Counts): Counts {
  return { sql: after.sql - before.sql, store: after.store - before.store }
}

function countingClient(sent: Counts): typeof Client {
  return class extends Client {
    override query = (...args: never[]): never => {
      sent.sql++
      return (super.query as (...args: never[]) => never)(...args)
    }
  }
}

function countingRedis(sent: Counts): typeof Redis {
  return class extends Redis {
    override sendCommand(...args: Parameters<Redis['sendCommand']>): unknown {
      sent.store++
      return super.sendCommand(...args)
    }
    // The store works on a duplicate, which would else be a plain Redis.
    override duplicate(override?: object): Redis {
      return new (this.constructor as new (options: object) => Redis)({ ...this.options, ...override })
    }
  }
}

const idOf = (i: number) => (i % 1000) + 1

function write(db: Kysely<WriteTables>, table: keyof WriteTables, i: number) {
  return db.updateTable(table).set({ amount: i }).where('id', '=', idOf(i)).execute()
}

function five(db: Kysely<WriteTables>, table: keyof WriteTables, i: number) {
  return db.transaction().execute(async (trx) => {
    for (let j = 0; j < 5; j++) {
      await trx
        .updateTable(table)
        .set({ amount: i })
        .where('id', '=', idOf(i + j * 200))
        .execute()
    }
  })
}

function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] as number
}
