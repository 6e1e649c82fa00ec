import { Redis } from 'ioredis'
import { Kysely, PostgresDialect } from 'kysely'
import { createModelCache, runInLoop, withInvalidation } from 'loadstone'
import { Pool } from 'pg'
import { createTable, type WriteTables } from './table.ts'

const CALLS = 400
const ROUNDS = 5

interface Way {
  readonly name: string
  readonly times: number[]
  readonly statements: () => number
  readonly trips: string
  call(i: number): Promise<unknown>
  /** Not timed: makes the next call what its name says. */
  prepare?(i: number): Promise<unknown>
}

/** A table of medians, in Markdown. */
export async function measureLookupsAndWrites(databaseUrl: string, redisUrl: string): Promise<string> {
  const redis = new Redis(redisUrl)
  await createTable(databaseUrl, 'items')
  await createTable(databaseUrl, 'strict_items')
  await createTable(databaseUrl, 'bare_items')
  let statements = 0
  const open = (wrapped: boolean) => {
    const dialect = new PostgresDialect({ pool: new Pool({ connectionString: databaseUrl }) })
    return new Kysely<WriteTables>({
      dialect: counting(wrapped ? withInvalidation(dialect) : dialect, dialect),
    })
  }
  // Counted below withInvalidation, where its own statements are seen too.
  const counting = (outer: PostgresDialect | ReturnType<typeof withInvalidation>, inner: PostgresDialect) => {
    const createDriver = inner.createDriver.bind(inner)
    inner.createDriver = () => {
      const driver = createDriver()
      const acquire = driver.acquireConnection.bind(driver)
      driver.acquireConnection = async (...args) => {
        const connection = await acquire(...args)
        if (!seen.has(connection)) {
          seen.add(connection)
          const execute = connection.executeQuery.bind(connection)
          connection.executeQuery = (...rest) => {
            if (!/delete from loadstone/.test(rest[0].sql)) statements++
            return execute(...rest)
          }
        }
        return connection
      }
      return driver
    }
    return outer
  }
  const seen = new WeakSet<object>()
  const plain = open(false)
  const db = open(true)
  const cache = createModelCache({ db, redis, namespace: 'levels', relay: false, storeTimeout: '5s' })
  const fields = {
    keyFields: [['id'], ['code']],
    filterFields: [['group_id'], ['group_id', 'state']],
  } as const
  const Item = cache.model('items', fields)
  const Strict = cache.model('strict_items', { ...fields, consistency: 'strict' })
  await cache.install()
  const item = runInLoop((id: number) => Item.cache.getAsync({ id }))
  const write = (on: Kysely<WriteTables>, table: keyof WriteTables, i: number) =>
    on
      .updateTable(table)
      .set({ amount: i })
      .where('id', '=', (i % 1000) + 1)
      .execute()

  const way = (name: string, trips: string, call: Way['call'], prepare?: Way['prepare']): Way => ({
    name,
    trips,
    times: [],
    statements: () => statements,
    call,
    ...(prepare && { prepare }),
  })
  const ways = [
    way('lookup: plain SQL', '–', (i) =>
      plain
        .selectFrom('items')
        .selectAll()
        .where('id', '=', (i % 1000) + 1)
        .execute(),
    ),
    way(
      'lookup: hit',
      '1',
      () => item(1),
      () => item(1),
    ),
    way(
      'lookup: miss',
      '2',
      (i) => item((i % 1000) + 1),
      (i) => Item.cache.invalidate({ id: (i % 1000) + 1 }),
    ),
    way('write: plain', '–', (i) => write(plain, 'bare_items', i)),
    way('write: plain, with triggers', '–', (i) => write(plain, 'items', i)),
    way('write: `default`', '1', (i) => write(db, 'items', i)),
    way('write: `strict`', '2', (i) => write(db, 'strict_items', i)),
    way('transaction of 5 writes: plain', '–', (i) => five(plain, 'bare_items', i)),
    way('transaction of 5 writes: `default`', '1', (i) => five(db, 'items', i)),
    way('transaction of 5 writes: `strict`', '2', (i) => five(db, 'strict_items', i)),
  ]
  const sent = new Map<Way, number>()
  for (let round = 0; round <= ROUNDS; round++) {
    for (const each of ways) {
      for (let i = 0; i < CALLS; i++) {
        await each.prepare?.(i)
        await cache.idle()
        const before = each.statements()
        const began = performance.now()
        await each.call(i)
        const took = performance.now() - began
        sent.set(each, each.statements() - before)
        if (round > 0) each.times.push(took)
      }
    }
  }
  await cache.close()
  await Promise.all([plain.destroy(), db.destroy()])
  redis.disconnect()
  void Strict
  const lines = ways.map(
    (each) => `| ${each.name} | ${sent.get(each)} | ${each.trips} | ${median(each.times).toFixed(2)} ms |`,
  )
  return ['| call | SQL | awaited store trips | median |', '|---|--:|--:|--:|', ...lines].join('\n')
}

function five(db: Kysely<WriteTables>, table: keyof WriteTables, i: number) {
  return db.transaction().execute(async (trx) => {
    for (let j = 0; j < 5; j++) {
      await trx
        .updateTable(table)
        .set({ amount: i })
        .where('id', '=', ((i + j * 200) % 1000) + 1)
        .execute()
    }
  })
}

function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] as number
}
