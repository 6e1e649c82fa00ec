import { PGlite } from '@electric-sql/pglite'
import { type Generated, Kysely, PGliteDialect, PostgresDialect } from 'kysely'
import { type Cache, type CacheOptions, createModelCache, runInLoop, withInvalidation } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { Pool } from 'pg'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { createTestDatabase } from '../support/database.ts'
import { closeRedis, testRedis } from '../support/redis.ts'

interface MainTables {
  users: { id: Generated<number>; name: string }
  notes: { id: Generated<number>; target_type: string; target_id: number }
}

interface ArchiveTables {
  users: { id: Generated<number>; name: string; year: number }
  orders: { id: Generated<number>; user_id: number; total: number }
}

const MAIN = `
  create table users (id int primary key, name text not null);
  create table notes (id int primary key, target_type text not null, target_id int not null);
  insert into users select i, 'user ' || i from generate_series(1, 5) i;
  insert into notes values (1, 'user', 1), (2, 'order', 2)`
const ARCHIVE = `
  create table users (id int primary key, name text not null, year int not null);
  create table orders (id int primary key, user_id int not null, total int not null);
  create index on orders (user_id);
  insert into users select i, 'old user ' || i, 2000 + i from generate_series(1, 5) i;
  insert into orders select i, (i + 1) / 2, i * 10 from generate_series(1, 8) i`

interface Opened {
  readonly db: Kysely<never>
  run(statement: string): Promise<unknown>
  close(): Promise<void>
}

async function onServer(schema: string): Promise<Opened> {
  const database = await createTestDatabase()
  await database.pool.query(schema)
  const pool = new Pool({ connectionString: database.url, max: 10 })
  pool.on('error', () => {})
  const db = new Kysely<never>({ dialect: withInvalidation(new PostgresDialect({ pool })) })
  return {
    db,
    run: (statement) => database.pool.query(statement),
    async close() {
      await db.destroy()
      await database.drop()
    },
  }
}

const engines: Promise<PGlite>[] = []
const free: Promise<PGlite>[] = []

async function embedded(schema: string): Promise<Opened> {
  const engine = free.pop() ?? PGlite.create()
  if (!engines.includes(engine)) engines.push(engine)
  const pglite = await engine
  await pglite.exec(
    'drop schema if exists loadstone cascade; drop schema public cascade; create schema public',
  )
  await pglite.exec(schema)
  const db = new Kysely<never>({ dialect: withInvalidation(new PGliteDialect({ pglite })) })
  return {
    db,
    run: (statement) => pglite.exec(statement),
    close: async () => void free.push(engine),
  }
}

const ONE_LOADED = { mget: 1, acquire: 1, select: 1, fill: 1 }

const PLACES = {
  'Redis and Postgres': { open: onServer, store: () => testRedis() },
  'in-process store and PGlite': { open: embedded, store: () => ({ namespace: 'two' }) },
}

afterAll(async () => {
  await closeRedis()
  for (const engine of engines) await (await engine).close()
})

describe.each(Object.entries(PLACES))('a cache over two databases: %s', (_, place) => {
  let main: Opened
  let archive: Opened
  let options: CacheOptions<MainTables>
  let office: ReturnType<typeof declare>
  const caches: Cache<MainTables>[] = []

  function declare(more: Partial<CacheOptions<MainTables>> = {}) {
    const cache = createModelCache({ ...options, ...more })
    caches.push(cache)
    const old = cache.using('archive', archive.db as unknown as Kysely<ArchiveTables>)
    const Order = old.model('orders', {
      keyFields: [['id']],
      filterFields: [['user_id']],
      relations: { user: { one: 'users', on: { user_id: 'id' } } },
    })
    return {
      cache,
      old,
      User: cache.model('users', { keyFields: [['id']] }),
      Note: cache.model('notes', { keyFields: [['id']] }),
      OldUser: old.model('users', { keyFields: [['id']] }),
      Order,
      Orders: old.count({ name: 'OrderCount', model: Order, keyFields: ['user_id'] }),
      Total: old.instance({
        name: 'OrderTotal',
        model: Order,
        keyFields: ['user_id'],
        async load(keys, { db }) {
          const rows = await db
            .selectFrom('orders')
            .select((eb) => ['user_id', eb.fn.sum<string>('total').as('sum')])
            .groupBy('user_id')
            .execute()
          return keys.map(({ user_id }) => Number(rows.find((row) => row.user_id === user_id)?.sum ?? 0))
        },
      }),
    }
  }

  beforeEach(async () => {
    ;[main, archive] = await Promise.all([place.open(MAIN), place.open(ARCHIVE)])
    options = {
      db: main.db as unknown as Kysely<MainTables>,
      relay: false,
      storeTimeout: '5s',
      ...place.store(),
    }
    office = declare()
    await office.cache.install()
    await office.old.install()
  })
  afterEach(async () => {
    for (const cache of caches.splice(0)) await cache.close()
    await main.close()
    await archive.close()
  })

  /** One of everything, of both databases. */
  const page = runInLoop(({ User, OldUser, Order, Orders, Total }: typeof office) =>
    Promise.all([
      User.cache.getAsync({ id: 1 }),
      OldUser.cache.getAsync({ id: 1 }),
      Order.cache.filterAsync({ user_id: 1 }),
      Orders(1).resolveAsync(),
      Total(1).resolveAsync(),
    ]),
  )
  const PAGE = [
    { id: 1, name: 'user 1' },
    { id: 1, name: 'old user 1', year: 2001 },
    [
      { id: 1, user_id: 1, total: 10 },
      { id: 2, user_id: 1, total: 20 },
    ],
    2,
    30,
  ]

  test('lookups of both are one wave, and what is cached of tables of one name is apart', async () => {
    const cold = { mget: 1, acquire: 1, select: 3, load: 2, fill: 1 }
    expect(await expectTrips(office.cache, cold, () => page(office))).toEqual(PAGE)
    expect(await expectTrips(office.cache, { mget: 1 }, () => page(office))).toEqual(PAGE)
  })

  test('another process with the same names shares what is cached', async () => {
    if (!options.redis) return expect(office.cache.databases.has('archive')).toBe(true)
    await page(office)
    const another = declare()
    expect(await expectTrips(another.cache, { mget: 1 }, () => page(another))).toEqual(PAGE)
  })

  test('a write through either is seen at once, and clears nothing of the other', async () => {
    await page(office)
    await (archive.db as unknown as Kysely<ArchiveTables>)
      .updateTable('users')
      .set({ name: 'renamed' })
      .where('id', '=', 1)
      .execute()
    const [, renamed] = await expectTrips(office.cache, ONE_LOADED, () => page(office))
    expect(renamed).toMatchObject({ name: 'renamed' })

    await (main.db as unknown as Kysely<MainTables>)
      .updateTable('users')
      .set({ name: 'also renamed' })
      .where('id', '=', 1)
      .execute()
    const last = await expectTrips(office.cache, ONE_LOADED, () => page(office))
    expect(last.slice(0, 2)).toEqual([
      { id: 1, name: 'also renamed' },
      { id: 1, name: 'renamed', year: 2001 },
    ])
    expect(office.cache.stats().cleared).toBeGreaterThanOrEqual(2)
  })

  test('a write by another program is applied by the relay of its database', async () => {
    await page(office)
    const { relayed } = office.cache.stats()
    await archive.run('update orders set total = 100 where id = 1')
    expect(await insidesOf(office.cache).relay.turn(0)).toBe(0)
    expect(await insidesOf(office.old).relay.turn(0)).toBe(1)
    expect((await page(office)).slice(2)).toEqual([
      [
        { id: 1, user_id: 1, total: 100 },
        { id: 2, user_id: 1, total: 20 },
      ],
      2,
      120,
    ])
    expect(office.cache.stats().relayed).toBe(relayed + 1)
  })

  test('lookups in a transaction see what it wrote in its database; those of the other are answered by SQL', async () => {
    await runInLoop(async () => {
      await page(office)
      await office.old.transaction(async (trx) => {
        await trx.updateTable('users').set({ name: 'in between' }).where('id', '=', 1).execute()
        const inside = await expectTrips(office.cache, { select: 2 }, () =>
          Promise.all([office.OldUser.cache.getAsync({ id: 1 }), office.User.cache.getAsync({ id: 1 })]),
        )
        expect(inside).toEqual([
          { id: 1, name: 'in between', year: 2001 },
          { id: 1, name: 'user 1' },
        ])
        await expect(office.cache.transaction(async () => 1)).rejects.toMatchObject({
          name: 'TransactionUseError',
        })
      })
      expect(await office.OldUser.cache.getAsync({ id: 1 })).toMatchObject({ name: 'in between' })
    })()
  })

  test('relations, and rows a field points at', async () => {
    const order = await office.Order.cache.getAsync({ id: 3 }, { with: ['user'] })
    expect(order.user).toMatchObject({ name: 'old user 2' })
    const Target = office.cache.polymorphic({
      type: 'target_type',
      id: 'target_id',
      to: { user: office.User, order: office.Order },
    })
    const [first, second] = await Promise.all([
      office.Note.cache.getAsync({ id: 1 }),
      office.Note.cache.getAsync({ id: 2 }),
    ])
    const cold = { mget: 1, acquire: 1, select: 2, fill: 1 }
    const both = runInLoop(() => Promise.all([Target.lookup(first), Target.lookup(second)]))
    expect(await expectTrips(office.cache, cold, both)).toEqual([
      { id: 1, name: 'user 1' },
      { id: 2, user_id: 1, total: 20 },
    ])
  })

  test('each is installed, checked, verified and cleared by itself', async () => {
    await page(office)
    expect(await office.cache.clear()).toBeUndefined()
    await expectTrips(office.cache, ONE_LOADED, () => page(office))
    await office.old.clear(['orders'])
    await expectTrips(office.cache, { ...ONE_LOADED, load: 2 }, () => page(office))

    await archive.run('begin; set local session_replication_role = replica; delete from users; commit')
    expect(await office.cache.verify({ settleMs: 0 })).toMatchObject({ checked: 1, stale: 0 })
    // What the application loads by itself cannot be compared.
    expect(await office.old.verify({ settleMs: 0 })).toMatchObject({ entries: 4, checked: 3, stale: 1 })

    expect(office.cache.modelNames).toEqual(['users', 'notes'])
    expect(office.old.modelNames).toEqual(['orders', 'users'])
    expect(await office.old.uninstall()).not.toEqual([])
    await expect(office.old.ready()).rejects.toMatchObject({ name: 'InstallError' })
    await expect(office.cache.ready()).resolves.toBeUndefined()
    expect((await office.old.doctor()).filter(({ status }) => status === 'fail')).not.toEqual([])
    expect((await office.cache.doctor()).filter(({ status }) => status === 'fail')).toEqual([])
    expect(await office.old.installSql()).toContain('orders')
    expect(await office.cache.installSql()).not.toContain('orders')
  })

  test('a strict model of a further database keeps its promise, also while its clear fails', async () => {
    const cache = createModelCache({ ...options, namespace: `${options.namespace}-strict` })
    caches.push(cache)
    const old = cache.using('archive', archive.db as unknown as Kysely<ArchiveTables>)
    const Strict = old.model('users', { keyFields: [['id']], consistency: 'strict' })
    await old.install()
    await Strict.cache.getAsync({ id: 2 })
    const { store } = insidesOf(old)
    store.clear = async () => {
      throw new Error('the store is gone')
    }
    await (archive.db as unknown as Kysely<ArchiveTables>)
      .updateTable('users')
      .set({ name: 'strictly' })
      .where('id', '=', 2)
      .execute()
    expect(await Strict.cache.getAsync({ id: 2 })).toMatchObject({ name: 'strictly' })
  })

  test('shards: the same models on each, chosen by the key, in one wave', async () => {
    const shards = [main, archive].map(({ db }, i) =>
      office.cache
        .using(`shard${i}`, db as unknown as Kysely<Pick<MainTables, 'users'>>)
        .model('users', { keyFields: [['id']], columns: ['id', 'name'] }),
    )
    const userOf = (id: number) => (shards[id % 2] as (typeof shards)[number]).cache.getAsync({ id })
    const all = runInLoop(() => Promise.all([1, 2, 3, 4].map(userOf)))
    const names = ['old user 1', 'user 2', 'old user 3', 'user 4']
    const cold = await expectTrips(office.cache, { mget: 1, acquire: 1, select: 2, fill: 1 }, all)
    expect(cold.map(({ name }) => name)).toEqual(names)
    const warm = await expectTrips(office.cache, { mget: 1 }, all)
    expect(warm.map(({ name }) => name)).toEqual(names)
  })

  test('a model of the other database is none of this one', () => {
    const { cache, old, User, Order } = office
    const wrong = (make: () => unknown) =>
      expect(make).toThrow(expect.objectContaining({ name: 'OptionError' }))
    wrong(() => cache.count({ name: 'Wrong', model: Order as never, keyFields: ['user_id'] as never }))
    wrong(() =>
      old.related({
        name: 'Wrong',
        model: Order,
        keyFields: ['id'],
        path: [{ model: User, on: { user_id: 'id' } }],
      }),
    )
  })

  test.each([
    ['', /'using' must be a name of letters/],
    ['a b', /'using' must be a name of letters/],
    ['a~b', /'using' must be a name of letters/],
    ['archive', /'using' must be a name that is not taken/],
  ])('the name %j is refused', (name, message) => {
    expect(() => office.cache.using(name, archive.db)).toThrow(message)
  })

  test('what is no Kysely instance is refused, and a closed cache takes none', async () => {
    expect(() => office.cache.using('pool', new Pool() as never)).toThrow(
      /'using pool' must be a Kysely instance/,
    )
    const closing = createModelCache({ ...options, namespace: 'closing' })
    await closing.close()
    expect(() => closing.using('late', archive.db)).toThrow(
      expect.objectContaining({ name: 'CacheClosedError' }),
    )
  })
})
