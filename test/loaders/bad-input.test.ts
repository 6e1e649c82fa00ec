import { Redis } from 'ioredis'
import { type Generated, Kysely, PostgresDialect } from 'kysely'
import { createModelCache, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { freePort } from '../servers/ports.ts'
import { startRedis } from '../servers/redis.ts'
import type { Server } from '../servers/server.ts'
import { startProxy } from '../support/proxy.ts'
import { closeRedis, testRedis } from '../support/redis.ts'
import { openCache, openShop, range, type Shop, type ShopCache, type ShopTables } from './shop.ts'

const COLD = { mget: 1, acquire: 1, select: 1, fill: 1 }
const WARM = { mget: 1 }
/** The store could not be asked: SQL answers, and nothing is filled. */
const WITHOUT_STORE = { mget: 1, select: 1 }

interface OddTables extends ShopTables {
  events: { at: Date; title: string }
  documents: { id: Generated<number>; path: string; body: string }
}

let shop: Shop
let redis: Redis
let namespace: string
let opened: ShopCache
let cache: ShopCache['cache']
let User: ShopCache['User']

beforeAll(async () => {
  shop = await openShop()
  await shop.database.pool.query(`
    create table events (at timestamptz primary key, title text not null);
    create table documents (id int primary key, path text not null unique, body text not null);
    insert into events values ('2024-06-07 12:00:00+00', 'noon');`)
})
afterAll(async () => {
  await closeRedis()
  await shop.close()
})

beforeEach(async () => {
  const client = testRedis()
  redis = client.redis
  namespace = client.namespace
  opened = openCache(shop, client)
  cache = opened.cache
  User = opened.User
  await cache.ready()
  return () => opened.cache.close()
})

/** Models that the other tests have no use for. */
async function openOddities() {
  const odd = createModelCache<OddTables>({
    db: new Kysely<OddTables>({ dialect: new PostgresDialect({ pool: shop.database.pool }) }),
    redis,
    namespace,
    invalidation: 'manual',
    storeTimeout: '5s',
    relay: false,
  })
  onTestFinished(() => odd.close())
  const models = {
    cache: odd,
    Event: odd.model('events', { keyFields: [['at']] }),
    Document: odd.model('documents', { keyFields: [['id'], ['path']] }),
    Namesake: odd.model('users', { keyFields: [['id'], ['first_name']] }),
    Order: odd.model('orders', { keyFields: [['id']], filterFields: [['product_id']], maxListRows: 10 }),
  }
  await odd.ready()
  return models
}

describe('a bad lookup is rejected before anybody is asked', () => {
  const bad: [string, unknown, string, RegExp][] = [
    [
      'an undeclared shape',
      { first_name: 'x' },
      'ERR_SHAPE_NOT_DECLARED',
      /no keyFields \['first_name'\]; declared: \['id'\], \['email'\]/,
    ],
    ['a field too many', { id: 1, email: 'x' }, 'ERR_SHAPE_NOT_DECLARED', /\['id', 'email'\]/],
    ['no field', {}, 'ERR_SHAPE_NOT_DECLARED', /no keyFields \[\]/],
    ['no object', undefined, 'ERR_INVALID_KEY', /takes an object such as \{ id \}/],
    ['null', null, 'ERR_INVALID_KEY', /takes an object/],
    ['a number', 42, 'ERR_INVALID_KEY', /takes an object/],
    ['undefined', { id: undefined }, 'ERR_INVALID_KEY', /field 'id' must .*undefined/],
    [
      'undefined in a field that is not declared',
      { nick: undefined },
      'ERR_INVALID_KEY',
      /'nick' must not be undefined/,
    ],
    ['NaN', { id: Number.NaN }, 'ERR_INVALID_KEY', /field 'id' must not be NaN/],
    [
      'an object in a key field',
      { id: { gt: 5 } },
      'ERR_INVALID_KEY',
      /field 'id' must be an integer, but is a Object/,
    ],
    ['an array in a key field', { id: [1] }, 'ERR_INVALID_KEY', /must be an integer/],
    ['a word for a number', { id: 'five' }, 'ERR_INVALID_KEY', /must be a number/],
    ['a function', { email: () => 'x' }, 'ERR_INVALID_KEY', /must be a text/],
    ['a symbol', { email: Symbol('x') }, 'ERR_INVALID_KEY', /must be a text/],
  ]

  test.each(bad)('%s', async (_, key, code, message) => {
    const ways = [User.cache.getAsync, User.cache.getAsyncOrNone, User.cache.getAsyncOr404]
    await expectTrips(cache, {}, async () => {
      for (const way of ways) {
        // A rejection, never a throw: one bad lookup of a Promise.all must not leave the others unheard.
        const looked = way.call(User.cache, key as never)
        await expect(looked).rejects.toMatchObject({ code, message: expect.stringMatching(message) })
      }
    })
    expect(cache.stats().lookups).toBe(0)
  })

  test('a missing filter field', async () => {
    await expect(User.cache.filterAsync({ org_id: 1 } as never)).rejects.toMatchObject({
      code: 'ERR_SHAPE_NOT_DECLARED',
      message: expect.stringContaining(
        "no filterFields ['org_id']; declared: ['first_name'], ['org_id', 'role']",
      ),
    })
  })

  test('an invalid Date', async () => {
    const { Event } = await openOddities()
    await expect(Event.cache.getAsync({ at: new Date('soon') })).rejects.toMatchObject({
      code: 'ERR_INVALID_KEY',
      message: expect.stringContaining('must not be an invalid Date'),
    })
  })

  test('the others of its wave are answered', async () => {
    const [bad, good] = await Promise.allSettled([
      User.cache.getAsync({ id: Number.NaN }),
      User.cache.getAsync({ id: 1 }),
    ])
    expect(bad.status).toBe('rejected')
    expect(good).toMatchObject({ status: 'fulfilled', value: { id: 1 } })
  })
})

describe('values that no row can have', () => {
  test.each([4.2, 3_000_000_000, '99999999999999999999', Number.POSITIVE_INFINITY, null])(
    'an integer %s: absent at once',
    async (id) => {
      expect(await expectTrips(cache, {}, () => User.cache.getAsyncOrNone({ id: id as number }))).toBeNull()
      await expect(User.cache.getAsync({ id: id as number })).rejects.toMatchObject({ code: 'ERR_NOT_FOUND' })
    },
  )

  test('a text with a NUL: absent at once', async () => {
    expect(await expectTrips(cache, {}, () => User.cache.getAsyncOrNone({ email: 'a\0b' }))).toBeNull()
  })
})

describe('a value whose text only the database knows', () => {
  // Without an offset, a time means what the session's time zone makes of it.
  const at = '2024-06-07 12:00:00' as unknown as Date

  test('is looked up past the store, in a statement of its own, and once per scope', async () => {
    const { cache: odd, Event } = await openOddities()
    const read = runInLoop(() => Promise.all([Event.cache.getAsync({ at }), Event.cache.getAsync({ at })]))
    await expectTrips(odd, { select: 1 }, read)
    const [one, other] = await expectTrips(odd, { select: 1 }, read)
    expect(one).toMatchObject({ title: 'noon' })
    expect(one).toBe(other)
    expect(odd.stats().bypassed).toBe(2)
  })

  test('joins the wave of others without being in their way', async () => {
    const { cache: odd, Event, Document } = await openOddities()
    await expectTrips(odd, { ...COLD, select: 2 }, () =>
      Promise.all([Event.cache.getAsync({ at }), Document.cache.getAsyncOrNone({ id: 1 })]),
    )
  })

  test('that is none of the type rejects its own lookup only', async () => {
    const { Event } = await openOddities()
    const [wrong, right] = await Promise.allSettled([
      Event.cache.getAsync({ at: 'at noon' as unknown as Date }),
      Event.cache.getAsync({ at: new Date('2024-06-07T12:00:00Z') }),
    ])
    expect(wrong).toMatchObject({ status: 'rejected', reason: { code: 'ERR_SOURCE' } })
    expect(right).toMatchObject({ status: 'fulfilled', value: { title: 'noon' } })
  })

  test('is forgotten in the scope when the row is invalidated, under whatever text', async () => {
    const { Event } = await openOddities()
    await runInLoop(async () => {
      const row = await Event.cache.getAsync({ at })
      await shop.database.pool.query("update events set title = 'midday'")
      await Event.cache.invalidate(row)
      expect(await Event.cache.getAsync({ at })).toMatchObject({ title: 'midday' })
    })()
    await shop.database.pool.query("update events set title = 'noon'")
  })
})

describe('a keyFields list that is not unique', () => {
  test('rejects the lookups of that key, and says what to do; nobody gets one of the rows', async () => {
    const { cache: odd, Namesake } = await openOddities()
    const read = () =>
      runInLoop(() =>
        Promise.allSettled([
          Namesake.cache.getAsync({ first_name: 'name 1' }),
          Namesake.cache.getAsyncOrNone({ first_name: 'name 1' }),
          Namesake.cache.getAsyncOrNone({ first_name: 'nobody' }),
          Namesake.cache.getAsync({ id: 1 }),
        ]),
      )()
    const [one, orNone, nobody, byId] = await expectTrips(odd, { ...COLD, select: 2 }, read)
    for (const failed of [one, orNone]) {
      expect(failed).toMatchObject({
        reason: {
          code: 'ERR_NOT_UNIQUE',
          fields: ['first_name'],
          message:
            "model 'users': keyFields ['first_name'] is not unique, first_name = \"name 1\" selects more than one row. " +
            'Add a unique constraint, or declare these fields under filterFields',
        },
      })
    }
    expect(nobody).toMatchObject({ status: 'fulfilled', value: null })
    expect(byId).toMatchObject({ status: 'fulfilled', value: { id: 1 } })
    // The failure was not cached, the answers were.
    await expectTrips(odd, COLD, read)
  })
})

describe('odd keys', () => {
  const paths = [
    'a:b',
    'a b',
    ':',
    '::',
    '%3A',
    'a,b',
    '~',
    '#',
    '*',
    '[a]',
    '\\',
    '"',
    "'",
    '\n',
    'ключ',
    '鍵',
    '🔑',
    'e\u0301',
    '\u00e9',
    '',
    ' ',
    '  ',
    'null',
    'x'.repeat(10_000),
    `${'x'.repeat(9_999)}y`,
  ]

  test('separators, blanks, unicode and 10 kB: each finds its own row, cached or not', async () => {
    const { cache: odd, Document } = await openOddities()
    await shop.database.pool.query(
      'insert into documents select i, path, i::text from unnest($1::text[]) with ordinality as p(path, i)',
      [paths],
    )
    const read = runInLoop(() => Promise.all(paths.map((path) => Document.cache.getAsync({ path }))))
    expect((await expectTrips(odd, COLD, read)).map(({ path }) => path)).toEqual(paths)
    expect((await expectTrips(odd, WARM, read)).map(({ path }) => path)).toEqual(paths)
    const keys = await redis.keys(`${namespace}:documents:path:*`)
    expect(keys).toHaveLength(paths.length)
    expect(Math.max(...keys.map((key) => key.length))).toBeLessThan(250)
    await Document.cache.clear()
    await expectTrips(odd, COLD, read)
    await shop.database.pool.query('delete from documents')
  })

  test('a namespace of any text', async () => {
    const odd = openCache(shop, { redis, namespace: `${namespace}:odd * [n] %` })
    onTestFinished(() => odd.cache.close())
    await odd.User.cache.getAsync({ id: 1 })
    await odd.cache.idle()
    await User.cache.getAsync({ id: 1 })
    await cache.idle()
    await odd.User.cache.clear()
    await expectTrips(odd.cache, COLD, () => odd.User.cache.getAsync({ id: 1 }))
    await expectTrips(cache, WARM, () => User.cache.getAsync({ id: 1 }))
  })
})

describe('what is too large to cache is answered all the same', () => {
  const UNCACHED = { mget: 1, acquire: 1, select: 1, fill: 1 } // the fill gives the lease back

  test('a row of 5 MB', async () => {
    const { cache: odd, Document } = await openOddities()
    await shop.database.pool.query("insert into documents values (1, 'large', repeat('x', 5000000))")
    const read = runInLoop(() => Document.cache.getAsync({ id: 1 }))
    expect((await expectTrips(odd, UNCACHED, read)).body).toHaveLength(5_000_000)
    expect((await expectTrips(odd, UNCACHED, read)).body).toHaveLength(5_000_000)
    expect(odd.stats()).toMatchObject({ uncached: 2, storeErrors: 0 })
    expect(await redis.keys(`${namespace}:documents:id:*`)).toEqual([])
    await shop.database.pool.query('delete from documents')
  })

  test('a list of 100,000 rows, with the usual limit of 10,000', async () => {
    const { Order } = opened
    await shop.database.pool.query(
      'insert into orders (id, user_id, product_id) select 100000 + i, 5555, i % 50 + 1 from generate_series(1, 100000) i',
    )
    const read = runInLoop(() => Order.cache.filterAsync({ user_id: 5555 }))
    const rows = await expectTrips(cache, UNCACHED, read)
    expect(rows).toHaveLength(100_000)
    expect(rows[99_999]).toEqual({ id: 200_000, user_id: 5555, product_id: 1, note: null })
    await expectTrips(cache, UNCACHED, read)
    expect(cache.stats()).toMatchObject({ uncached: 2, storeErrors: 0 })
    await shop.database.pool.query('delete from orders where user_id = 5555')
  })

  test('a list at the limit is cached, one longer is not', async () => {
    const { cache: odd, Order } = await openOddities()
    const list = (product_id: number, count: number) =>
      shop.database.pool.query(
        'insert into orders (user_id, product_id) select 6666, $1::int from generate_series(1, $2::int)',
        [product_id, count],
      )
    await Promise.all([list(910, 10), list(911, 11)])
    const read = (product_id: number) => runInLoop(() => Order.cache.filterAsync({ product_id }))
    for (const id of [910, 911]) await expectTrips(odd, COLD, read(id))
    await expectTrips(odd, WARM, read(910))
    await expectTrips(odd, UNCACHED, read(911))
    expect(odd.stats().uncached).toBe(2)
  })

  test('twins outside of any scope read once more each, and get rows of their own', async () => {
    const small = openCache(shop, { redis, namespace: `${namespace}-small`, maxValueBytes: 10 })
    onTestFinished(() => small.cache.close())
    await small.cache.ready()
    const read = () => Promise.all(range(3).map(() => small.User.cache.getAsync({ id: 1 })))
    const rows = await expectTrips(small.cache, { ...UNCACHED, select: 3 }, read)
    expect(new Set(rows).size).toBe(3)
    expect(rows[1]).toEqual(rows[0])
  })
})

describe('what is in the store', () => {
  const key = () => `${namespace}:users:id:1`
  const read = () => runInLoop(() => User.cache.getAsync({ id: 1 }))()

  test.each([
    ['nothing of ours', Buffer.from('hello')],
    ['an empty text', Buffer.alloc(0)],
    ['JSON of another cache', Buffer.from('{"id":1,"email":"evil@shop.test"}')],
    ['half a lease', Buffer.from('Lfoo')],
    ['half an intent', Buffer.from('Wfoo')],
  ])('%s: a miss, counted, and replaced', async (_, bytes) => {
    await redis.set(key(), bytes)
    expect(await expectTrips(cache, COLD, read)).toMatchObject({ email: 'user-1@shop.test' })
    expect(cache.stats()).toMatchObject({ damaged: 1, misses: 1, hits: 0 })
    expect(await redis.pttl(key())).toBeGreaterThan(0)
    await expectTrips(cache, WARM, read)
  })

  test('a hash: a miss, and replaced', async () => {
    await redis.hset(key(), 'id', 1)
    await expectTrips(cache, COLD, read)
    await expectTrips(cache, WARM, read)
  })

  test.each([
    ['cut short', (record: Buffer) => record.subarray(0, record.length - 1)],
    ['cut to its header', (record: Buffer) => record.subarray(0, 13)],
    ['longer by a byte', (record: Buffer) => Buffer.concat([record, Buffer.from('x')])],
    [
      'of other columns',
      (record: Buffer) => Buffer.concat([record.subarray(0, 13), Buffer.from('????'), record.subarray(17)]),
    ],
    ['of zeros', (record: Buffer) => Buffer.concat([record.subarray(0, 13), Buffer.alloc(20)])],
  ])('a value %s: a miss, counted, and replaced', async (_, damage) => {
    const row = await read()
    await cache.idle()
    const record = (await redis.getBuffer(key())) as Buffer
    await redis.set(key(), damage(record))
    expect(await expectTrips(cache, COLD, read)).toEqual(row)
    expect(cache.stats().damaged).toBe(1)
    await expectTrips(cache, WARM, read)
    expect(await redis.pttl(key())).toBeGreaterThan(0)
  })

  test('every single byte of a value replaced: never an exception, and never half a row', async () => {
    const row = await read()
    await cache.idle()
    const record = (await redis.getBuffer(key())) as Buffer
    for (let i = 0; i < record.length; i++) {
      const damaged = Buffer.from(record)
      damaged[i] = (damaged[i] as number) ^ 0x81
      await redis.set(key(), damaged, 'PX', 60_000)
      // A byte of a text may be another letter: nothing can tell. The columns are always there, of their types.
      const found = await read()
      expect(Object.keys(found)).toEqual(Object.keys(row))
      expect(Object.values(found).map((value) => typeof value)).toEqual(
        Object.values(row).map((value) => typeof value),
      )
      await cache.idle()
    }
    expect(cache.stats().storeErrors).toBe(0)
  })

  test("older code's value: a miss, and replaced. Newer code's: SQL, and left alone", async () => {
    const newer = openCache(shop, { redis, namespace, version: 3 })
    onTestFinished(() => newer.cache.close())
    await newer.cache.ready()
    const readNewer = runInLoop(() => newer.User.cache.getAsync({ id: 1 }))
    await read()
    await cache.idle()
    await expectTrips(newer.cache, COLD, readNewer)
    await expectTrips(cache, { mget: 1, select: 1 }, read)
    await expectTrips(newer.cache, WARM, readNewer)
    expect([cache.stats().damaged, newer.cache.stats().damaged]).toEqual([0, 0])
  })

  test("another model's value under this key: a miss, counted", async () => {
    await runInLoop(() => opened.Order.cache.getAsync({ id: 1 }))()
    await cache.idle()
    await redis.copy(`${namespace}:orders:id:1`, key())
    expect(await expectTrips(cache, COLD, read)).toMatchObject({ email: 'user-1@shop.test' })
    expect(cache.stats().damaged).toBe(1)
  })

  test('a row where a list is expected, and the other way round: a miss, counted', async () => {
    const { Order } = opened
    await Promise.all([Order.cache.getAsync({ id: 1 }), Order.cache.filterAsync({ user_id: 1 })])
    await cache.idle()
    const [row, list] = [`${namespace}:orders:id:1`, `${namespace}:orders:user_id[]:1`]
    expect(await redis.exists(row, list)).toBe(2)
    await redis.rename(row, `${row}~`)
    await redis.rename(list, row)
    await redis.rename(`${row}~`, list)
    expect(await Order.cache.getAsync({ id: 1 })).toMatchObject({ id: 1 })
    expect(await Order.cache.filterAsync({ user_id: 1 })).toHaveLength(3)
    await cache.idle()
    expect(cache.stats().damaged).toBe(2)
  })
})

describe('the store is away', () => {
  const key = () => `${namespace}:users:id:1`

  /** A look past the cache. */
  function lookAt(server: Server): Redis {
    const look = testRedis({ url: server.url }).redis
    look.on('error', () => {}) // the server is stopped before it
    return look
  }

  test('refused: SQL answers, in one statement per shape, and it is counted', async () => {
    const client = new Redis({ port: await freePort(), lazyConnect: true })
    const lost = openCache(shop, { redis: client, namespace })
    onTestFinished(() => lost.cache.close())
    await lost.cache.ready()
    const read = runInLoop(() => Promise.all(range(100).map((id) => lost.User.cache.getAsync({ id }))))
    expect(await expectTrips(lost.cache, WITHOUT_STORE, read)).toHaveLength(100)
    await expectTrips(lost.cache, WITHOUT_STORE, read)
    expect(lost.cache.stats()).toMatchObject({ storeErrors: 2, sourceErrors: 0, hits: 0, misses: 0 })
  })

  test('refused: to invalidate is rejected, as the store was not told', async () => {
    const client = new Redis({ port: await freePort(), lazyConnect: true })
    const lost = openCache(shop, { redis: client, namespace })
    onTestFinished(() => lost.cache.close())
    await expect(lost.User.cache.invalidate({ id: 1 })).rejects.toMatchObject({
      code: 'ERR_STORE_UNAVAILABLE',
    })
    await expect(lost.User.cache.clear()).rejects.toMatchObject({ code: 'ERR_STORE_UNAVAILABLE' })
  })

  test('silent: SQL answers after the store timeout', async () => {
    const server = await startRedis()
    onTestFinished(server.stop)
    const proxy = await startProxy(server.port)
    onTestFinished(proxy.close)
    const client = new Redis({ port: proxy.port, lazyConnect: true })
    const slow = openCache(shop, { redis: client, namespace, storeTimeout: '100ms' })
    onTestFinished(() => slow.cache.close())
    const read = runInLoop(() => slow.User.cache.getAsync({ id: 1 }))
    await read()
    await slow.cache.idle()

    proxy.hold()
    const began = performance.now()
    expect(await expectTrips(slow.cache, WITHOUT_STORE, read)).toMatchObject({ id: 1 })
    expect(performance.now() - began).toBeLessThan(2000)
    expect(slow.cache.stats().storeErrors).toBe(1)
    proxy.release()
    await expect
      .poll(() =>
        slow.User.cache.invalidate({ id: 2 }).then(
          () => true,
          () => false,
        ),
      )
      .toBe(true)
    await expectTrips(slow.cache, WARM, read)
  })

  test('cut off between the lease and the fill: answered, and nothing is stored', async () => {
    const server = await startRedis()
    onTestFinished(server.stop)
    const proxy = await startProxy(server.port)
    onTestFinished(proxy.close)
    const client = new Redis({ port: proxy.port, lazyConnect: true })
    const lost = openCache(shop, { redis: client, namespace })
    onTestFinished(() => lost.cache.close())
    await lost.cache.ready()
    const locked = await shop.database.pool.connect()
    try {
      await locked.query('begin; lock table users in access exclusive mode')
      const reading = runInLoop(() => lost.User.cache.getAsync({ id: 1 }))()
      const look = lookAt(server)
      await expect.poll(() => look.get(key())).toMatch(/^L/)
      proxy.cut()
      await expect
        .poll(() =>
          lost.User.cache.invalidate({ id: 2 }).then(
            () => true,
            () => false,
          ),
        )
        .toBe(true)
      await locked.query('commit')
      expect(await reading).toMatchObject({ id: 1 })
      await lost.cache.idle()
      expect(await look.get(key())).toMatch(/^L/)
      expect(lost.cache.stats().storeErrors).toBe(1)
    } finally {
      await locked.query('rollback')
      locked.release()
    }
  })

  test('killed and restarted under load: every lookup is answered, and the cache is back', async () => {
    const server = await startRedis()
    onTestFinished(server.stop)
    const client = new Redis({ port: server.port, lazyConnect: true })
    const shaken = openCache(shop, { redis: client, namespace })
    onTestFinished(() => shaken.cache.close())
    await shaken.cache.ready()
    const visit = runInLoop((i: number) =>
      Promise.all(range(10, (i % 10) + 1).map((id) => shaken.User.cache.getAsync({ id }))),
    )
    let running = true
    const load = (async () => {
      let answered = 0
      for (let i = 0; running; i++) answered += (await Promise.all([visit(i), visit(i + 5)])).flat().length
      return answered
    })()
    await server.kill()
    await server.restart()
    await expect.poll(() => shaken.cache.stats().storeErrors).toBeGreaterThan(0)
    const { hits } = shaken.cache.stats()
    await expect.poll(() => shaken.cache.stats().hits, { timeout: 5000 }).toBeGreaterThan(hits)
    running = false
    expect((await load) % 20).toBe(0)
  })
})
