import { Redis } from 'ioredis'
import { Kysely, PostgresDialect } from 'kysely'
import { type CacheOptions, createModelCache, runInLoop } from 'loadstone'
import { holdSteps } from 'loadstone/testing'
import { Pool } from 'pg'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { openCache, openShop, type Shop, type ShopTables } from '../loaders/shop.ts'
import { freePort } from '../servers/ports.ts'
import { closeRedis, testRedis } from '../support/redis.ts'

let shop: Shop
beforeAll(async () => {
  shop = await openShop()
})
afterAll(async () => {
  await closeRedis()
  await shop.close()
})

function open(options: Parameters<typeof openCache>[1] = {}) {
  const opened = openCache(shop, options)
  onTestFinished(() => opened.cache.close())
  return opened
}

describe('createModelCache', () => {
  const redis = new Redis({ lazyConnect: true })
  const bad: [string, (good: CacheOptions<ShopTables>) => unknown, RegExp][] = [
    [
      'no options',
      () => undefined,
      /option 'options' must be an object with db and namespace, but is undefined/,
    ],
    [
      'an unknown option',
      (good) => ({ ...good, nameSpace: 'x' }),
      /'createModelCache.nameSpace' must be left out; known are db, /,
    ],
    [
      'no namespace',
      ({ db }) => ({ db }),
      /'namespace' must be a text that is not empty, of well-formed Unicode, without '~', but is undefined/,
    ],
    [
      'a namespace with what sets further databases apart',
      (good) => ({ ...good, namespace: 'a~b' }),
      /'namespace'.*but is "a~b"/,
    ],
    ['an empty namespace', (good) => ({ ...good, namespace: '' }), /'namespace'.*but is ""/],
    ['no db', () => ({ namespace: 'x' }), /'db' must be a Kysely instance/],
    ['a pool for db', (good) => ({ ...good, db: new Pool() }), /'db' must be a Kysely instance/],
    [
      'a URL for redis',
      (good) => ({ ...good, redis: 'redis://localhost' }),
      /'redis' must be an ioredis client, but is "redis:/,
    ],
    [
      'null for redis',
      (good) => ({ ...good, redis: null }),
      /'redis' must be an ioredis client, but is null/,
    ],
    [
      'bounds for a store that is not there',
      (good) => ({ ...good, redis, memory: {} }),
      /'memory' must be left out when redis is given/,
    ],
    [
      'a ttl of words',
      (good) => ({ ...good, ttl: 'a week' }),
      /'ttl' must be a duration of at least 1 ms.*but is "a week"/,
    ],
    ['a ttl of nothing', (good) => ({ ...good, ttl: 0 }), /'ttl' must be a duration of at least 1 ms/],
    ['a negative timeout', (good) => ({ ...good, storeTimeout: -1 }), /'storeTimeout' must be/],
    ['a budget of less than nothing', (good) => ({ ...good, waitBudget: -1 }), /'waitBudget' must be/],
    [
      'a bulkhead without places',
      (good) => ({ ...good, fallback: { concurrency: 0 } }),
      /'fallback.concurrency' must be a whole number of at least 1, but is 0/,
    ],
    [
      'half a place to wait',
      (good) => ({ ...good, fallback: { queue: 0.5 } }),
      /'fallback.queue' must be a whole number of at least 0/,
    ],
    ['no time to wait', (good) => ({ ...good, fallback: { timeout: 0 } }), /'fallback.timeout' must be/],
    [
      'a misspelt option of the bulkhead',
      (good) => ({ ...good, fallback: { concurency: 5 } }),
      /'fallback.concurency' must be left out; known are concurrency, queue, timeout/,
    ],
    ['no bulkhead', (good) => ({ ...good, fallback: null }), /'fallback' must be an object, but is null/],
    [
      'half a byte',
      (good) => ({ ...good, maxValueBytes: 0.5 }),
      /'maxValueBytes' must be a whole number of at least 0, but is 0.5/,
    ],
    [
      'memory without room',
      (good) => ({ ...good, memory: { maxEntries: 0 } }),
      /'memory.maxEntries' must be a whole number/,
    ],
  ]

  test.each(bad)('%s: refused', (_, make, message) => {
    const good = { db: shop.db, namespace: 'shop', relay: false } as const
    const options = make(good) as CacheOptions<ShopTables>
    expect(() => createModelCache(options)).toThrow(
      expect.objectContaining({
        name: 'OptionError',
        code: 'ERR_OPTION',
        message: expect.stringMatching(message),
      }),
    )
  })

  test('connects to nothing but the store: the database is first asked when it is needed', () => {
    shop.statements.length = 0
    const { cache } = open()
    expect(cache.stats().waves).toBe(0)
    expect(shop.statements).toEqual([])
  })
})

describe('model', () => {
  test('declared twice: refused', () => {
    const { cache } = open()
    expect(() => cache.model('users', { keyFields: [['id']] })).toThrow(
      expect.objectContaining({
        code: 'ERR_MODEL',
        message: "model 'users': is declared twice in one database",
      }),
    )
  })

  test('without keyFields, or with a misspelt option: refused, by name', () => {
    const cache = createModelCache<ShopTables>({ db: shop.db, namespace: 'x', relay: false })
    expect(() => cache.model('users', { keyFields: [] })).toThrow(
      /'users.keyFields' must be at least one field list/,
    )
    expect(() => cache.model('users', { keyFields: [['id']], keyfields: 1 } as never)).toThrow(
      /'users.keyfields'/,
    )
  })
})

describe('ready', () => {
  /** Two tables that are there, one that is not, one with a field that is not. */
  interface Lacking extends ShopTables {
    missing: { id: number }
  }
  function openLacking() {
    const cache = createModelCache<Lacking>({
      db: shop.db as unknown as Kysely<Lacking>,
      namespace: 'lacking',
      relay: false,
    })
    onTestFinished(() => cache.close())
    return cache
  }

  test('resolves when all tables fit', async () => {
    await expect(open().cache.ready()).resolves.toBeUndefined()
  })

  test('a table that is not there: rejects, and so do its lookups, but no others', async () => {
    const cache = openLacking()
    const Missing = cache.model('missing', { keyFields: [['id']] })
    const User = cache.model('users', { keyFields: [['id']] })
    const missing = {
      code: 'ERR_MODEL',
      message: expect.stringContaining('the database has no table "missing"'),
    }
    await expect(cache.ready()).rejects.toMatchObject(missing)
    const [lacking, good] = await Promise.allSettled([
      Missing.cache.getAsync({ id: 1 }),
      User.cache.getAsync({ id: 1 }),
    ])
    expect(lacking).toMatchObject({ status: 'rejected', reason: missing })
    expect(good).toMatchObject({ status: 'fulfilled', value: { id: 1 } })
  })

  test('a table that comes later is found then', async () => {
    const cache = openLacking()
    const Missing = cache.model('missing', { keyFields: [['id']] })
    await expect(Missing.cache.getAsync({ id: 1 })).rejects.toMatchObject({ code: 'ERR_MODEL' })
    await shop.database.pool.query(
      'create table missing (id int primary key); insert into missing values (1)',
    )
    expect(await Missing.cache.getAsync({ id: 1 })).toEqual({ id: 1 })
    await shop.database.pool.query('drop table missing')
  })

  test('a column that is not there: rejects, and tells those that are', async () => {
    const cache = openLacking()
    cache.model('users', { keyFields: [['id'], ['nickname' as 'email']] })
    await expect(cache.ready()).rejects.toMatchObject({
      code: 'ERR_MODEL',
      message: expect.stringMatching(/no column 'nickname'; it has id, email, first_name/),
    })
  })

  test('a database that cannot be asked: rejects, as do lookups, until it can', async () => {
    const pool = new Pool({ port: await freePort(), host: '127.0.0.1' })
    const cache = createModelCache<ShopTables>({
      db: new Kysely({ dialect: new PostgresDialect({ pool }) }),
      namespace: 'x',
      relay: false,
    })
    onTestFinished(() => cache.close())
    const User = cache.model('users', { keyFields: [['id']] })
    const refused = { code: 'ERR_SOURCE', transient: true, message: expect.stringContaining('ECONNREFUSED') }
    await expect(cache.ready()).rejects.toMatchObject(refused)
    await expect(User.cache.getAsync({ id: 1 })).rejects.toMatchObject(refused)
    await pool.end()
  })
})

describe('a table that changes while the process runs', () => {
  test('a new column is answered at once, and cached with the next load', async () => {
    await shop.database.pool.query(
      'create table notes (id int primary key); insert into notes values (1), (2), (3)',
    )
    interface Notes extends ShopTables {
      notes: { id: number }
    }
    const cache = createModelCache<Notes>({
      db: shop.db as unknown as Kysely<Notes>,
      namespace: 'notes',
      relay: false,
    })
    onTestFinished(() => cache.close())
    const Note = cache.model('notes', { keyFields: [['id']] })
    const read = (id: number) => runInLoop(() => Note.cache.getAsync({ id }))()
    expect(await read(1)).toEqual({ id: 1 })
    await shop.database.pool.query("alter table notes add column body text not null default 'b'")
    expect(await read(2)).toEqual({ id: 2, body: 'b' })
    await cache.idle()
    expect(cache.stats().uncached).toBe(1)
    expect(await read(3)).toEqual({ id: 3, body: 'b' })
    await cache.idle()
    expect(cache.stats().uncached).toBe(1)
    // What was cached before is of another form: it is not read.
    expect(await read(1)).toEqual({ id: 1, body: 'b' })
    await shop.database.pool.query('drop table notes')
  })
})

describe('idle', () => {
  test('resolves at once when nothing is under way, and else when it is done', async () => {
    const { cache, User } = open(testRedis())
    await cache.idle()
    const steps = holdSteps(cache)
    const reading = runInLoop(() => User.cache.getAsync({ id: 1 }))()
    await steps.take('getMany')
    let idle = false
    const waiting = cache.idle().then(() => {
      idle = true
    })
    await steps.take('acquire')
    await steps.take('select')
    await reading
    await steps.next('fill')
    await new Promise(setImmediate)
    expect(idle).toBe(false)
    await steps.take('fill')
    await waiting
  })
})

describe('close', () => {
  test('lets what is under way end, fills included', async () => {
    const client = testRedis()
    const { cache, User } = openCache(shop, client)
    await cache.ready()
    const steps = holdSteps(cache)
    const reading = runInLoop(() => User.cache.getAsync({ id: 1 }))()
    await steps.take('getMany')
    let closed = false
    const closing = cache.close().then(() => {
      closed = true
    })
    await steps.take('acquire')
    await steps.take('select')
    expect(await reading).toMatchObject({ id: 1 })
    await new Promise(setImmediate)
    expect(closed).toBe(false)
    await steps.take('fill')
    await closing
    expect(await client.redis.get(`${client.namespace}:users:id:1`)).toMatch(/^V/)
  })

  test('a lookup of the same tick is still answered', async () => {
    const { cache, User } = openCache(shop, testRedis())
    await cache.ready()
    const reading = User.cache.getAsync({ id: 1 })
    await cache.close()
    expect(await reading).toMatchObject({ id: 1 })
    await cache.idle()
    expect(cache.stats()).toMatchObject({ waves: 1, storeErrors: 0 })
  })

  test('whatever comes later is rejected', async () => {
    const { cache, User } = openCache(shop, { ...testRedis(), namespace: 'closed' })
    const query = User.cache.getQuery({ id: 1 })
    await cache.close()
    const closed = { code: 'ERR_CACHE_CLOSED', message: "the cache 'closed' is closed" }
    for (const late of [
      () => User.cache.getAsync({ id: 1 }),
      () => User.cache.getAsyncOrNone({ id: 1 }),
      () => User.cache.getAsyncOr404({ id: 1 }),
      () => User.cache.filterAsync({ first_name: 'x' }),
      () => query.resolveAsync(),
      () => User.cache.invalidate({ id: 1 }),
      () => User.cache.clear(),
    ]) {
      await expect(late()).rejects.toMatchObject(closed)
    }
  })

  test('twice is once', async () => {
    const { cache } = openCache(shop, testRedis())
    await Promise.all([cache.close(), cache.close()])
    await cache.close()
  })

  test('leaves the clients it was given open: they are the application\u2019s', async () => {
    const client = testRedis()
    const { cache } = openCache(shop, client)
    await cache.ready()
    await cache.close()
    expect(await client.redis.ping()).toBe('PONG')
    expect(await shop.db.selectFrom('users').select('id').where('id', '=', 1).execute()).toEqual([{ id: 1 }])
  })

  test('with a store that is away ends all the same', async () => {
    const away = new Redis({ port: await freePort(), lazyConnect: true })
    const { cache, User } = openCache(shop, { redis: away })
    await User.cache.getAsync({ id: 1 })
    await cache.close()
  })
})
