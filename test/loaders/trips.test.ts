import type { Redis } from 'ioredis'
import { runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { startRedis } from '../servers/redis.ts'
import type { Server } from '../servers/server.ts'
import { closeRedis, testRedis } from '../support/redis.ts'
import { openCache, openShop, range, type Shop, type ShopCache } from './shop.ts'

/** One round trip of each kind, and one statement: what a wave of any size costs when nothing is cached. */
const COLD = { mget: 1, acquire: 1, select: 1, fill: 1 }

let shop: Shop
let redis: Redis
let opened: ShopCache

// A Redis of its own: its command statistics tell what was really sent.
let server: Server
beforeAll(async () => {
  server = await startRedis()
  shop = await openShop()
})
afterAll(async () => {
  await closeRedis()
  await shop.close()
  await server.stop()
})

beforeEach(async () => {
  const { redis: client, namespace } = testRedis({ url: server.url })
  redis = client
  opened = openCache(shop, { redis, namespace })
  await opened.cache.ready()
  shop.statements.length = 0
  return () => opened.cache.close()
})

/** The lookups of one page: five shapes of three models. */
function page(user: number) {
  const { User, Order, Product } = opened
  return Promise.all([
    User.cache.getAsync({ id: user }),
    User.cache.getAsync({ email: `user-${user + 1}@shop.test` }),
    User.cache.filterAsync({ org_id: user % 10, role: 'admin' }),
    Order.cache.filterAsync({ user_id: user }),
    Product.cache.getAsync({ sku: `sku-${user}` }),
  ])
}

describe('one shape', () => {
  test('100 keys: one statement, then one MGET', async () => {
    const { cache, User } = opened
    const read = runInLoop(() => Promise.all(range(100).map((id) => User.cache.getAsync({ id }))))
    const loaded = await expectTrips(cache, COLD, read)
    expect(loaded.map(({ id }) => id)).toEqual(range(100))
    expect(shop.statements).toHaveLength(1)
    expect(await expectTrips(cache, { mget: 1 }, read)).toEqual(loaded)
    expect(shop.statements).toHaveLength(1)
  })

  test('the statement is the same text for any number of keys', async () => {
    const { User } = opened
    for (const count of [1, 2, 99]) {
      await runInLoop(() => Promise.all(range(count, count).map((id) => User.cache.getAsync({ id }))))()
    }
    expect(shop.statements).toHaveLength(3)
    expect(new Set(shop.statements).size).toBe(1)
  })

  test('some keys cached, some not: the statement asks for the others only', async () => {
    const { cache, User } = opened
    const read = (count: number) =>
      runInLoop(() => Promise.all(range(count).map((id) => User.cache.getAsync({ id }))))
    await read(50)()
    const rows = await expectTrips(cache, COLD, read(100))
    expect(rows.map(({ id }) => id)).toEqual(range(100))
    const { hits, misses } = cache.stats()
    expect({ hits, misses }).toEqual({ hits: 50, misses: 100 })
  })

  test('more keys than one statement takes are split', async () => {
    const { cache, User } = opened
    const read = runInLoop(() => Promise.all(range(5001).map((id) => User.cache.getAsyncOrNone({ id }))))
    // A thousand keys of the store at a time, so that others need not wait for all of them.
    await expectTrips(cache, { ...COLD, mget: 6, select: 2 }, read)
    await expectTrips(cache, { mget: 6 }, read)
  })
})

describe('five shapes of three models in one Promise.all', () => {
  test('cold: one statement per shape. Then all hits: one MGET. Then some of each', async () => {
    const { cache, User, Product } = opened
    const cold = await expectTrips(cache, { ...COLD, select: 5 }, () => runInLoop(page)(7))
    expect(shop.statements).toHaveLength(5)
    expect(cold[0]).toMatchObject({ id: 7, email: 'user-7@shop.test' })
    expect(cold[1]).toMatchObject({ id: 8 })
    expect(cold[2]).toEqual([])
    expect(cold[3].map(({ id }) => id)).toEqual([19, 20, 21])
    expect(cold[4]).toMatchObject({ id: 7, name: 'product 7' })

    const warm = await expectTrips(cache, { mget: 1 }, () => runInLoop(page)(7))
    expect(warm).toEqual(cold)
    expect(shop.statements).toHaveLength(5)

    await User.cache.invalidate({ id: 7 })
    await Product.cache.invalidate({ sku: 'sku-7' })
    const mixed = await expectTrips(cache, { ...COLD, select: 2 }, () => runInLoop(page)(7))
    expect(mixed).toEqual(cold)
    expect(shop.statements).toHaveLength(7)
  })

  test('the very first lookups of a process are one wave too, although tables are looked at first', async () => {
    const { redis: client, namespace } = testRedis({ url: server.url })
    opened = openCache(shop, { redis: client, namespace })
    await expectTrips(opened.cache, { ...COLD, select: 5 }, () => runInLoop(page)(7))
    expect(opened.cache.stats().waves).toBe(1)
    await opened.cache.close()
  })

  test('the server says the same: one MGET and nothing else', async () => {
    await runInLoop(page)(7)
    await opened.cache.idle()
    await redis.config('RESETSTAT')
    await runInLoop(page)(7)
    await opened.cache.idle()
    expect(await commandsRun()).toEqual({ mget: 1 })
  })

  test('the server says the same of a cold page: one MGET, two scripts', async () => {
    await runInLoop(page)(7)
    await opened.cache.idle()
    await redis.config('RESETSTAT')
    await runInLoop(page)(17)
    await opened.cache.idle()
    // One list is shared by both pages. The scripts' own commands count as well: GET and SET per key.
    expect(await commandsRun()).toEqual({ mget: 1, evalsha: 2, get: 8, set: 8 })
  })

  /** The commands the server has run since RESETSTAT, but for those of the tests and of the watch on the epoch. */
  async function commandsRun(): Promise<Record<string, number>> {
    const stats = await redis.info('commandstats')
    const found = [...stats.matchAll(/^cmdstat_(\w+)(?:\|\w+)?:calls=(\d+)/gm)]
    const all = found.map(([, command, calls]) => [command, Number(calls)] as const)
    return Object.fromEntries(all.filter(([command]) => command !== 'info' && command !== 'config'))
  }
})

describe('the same key 1000 times', () => {
  test('in one scope: one lookup, one row', async () => {
    const { cache, User } = opened
    const rows = await expectTrips(cache, COLD, () =>
      runInLoop(() => Promise.all(range(1000).map(() => User.cache.getAsync({ id: 5 }))))(),
    )
    expect(new Set(rows).size).toBe(1)
    expect(cache.stats()).toMatchObject({ lookups: 1, keys: 1, memoHits: 999 })
  })

  test('in many scopes, one after the other: one statement, and a MGET each', async () => {
    const { cache, User } = opened
    const read = runInLoop(() => User.cache.getAsync({ id: 5 }))
    await expectTrips(cache, COLD, read)
    await expectTrips(cache, { mget: 100 }, async () => {
      for (let i = 0; i < 100; i++) await read()
    })
  })

  test('outside of any scope, in one tick: one key in one wave, and a row for each', async () => {
    const { cache, User } = opened
    const read = () => Promise.all(range(1000).map(() => User.cache.getAsync({ id: 5 })))
    const cold = await expectTrips(cache, COLD, read)
    expect(new Set(cold).size).toBe(1000)
    expect(new Set(await expectTrips(cache, { mget: 1 }, read)).size).toBe(1000)
    expect(cache.stats()).toMatchObject({ lookups: 2000, keys: 2, memoHits: 0, outOfScope: 2000 })
  })

  test('written in all the ways that mean the same value', async () => {
    const { cache, User } = opened
    const ways = [5, '5', 5n, ' 5', '+5', '05', 5.0] as unknown as number[]
    await expectTrips(cache, COLD, () =>
      runInLoop(() => Promise.all(ways.map((id) => User.cache.getAsync({ id }))))(),
    )
    expect(cache.stats().keys).toBe(1)
  })
})

describe('when lookups share a wave', () => {
  test('nested resolvers collapse into one wave per level', async () => {
    const { cache, User, Order, Product } = opened
    // As a GraphQL server would: users { orders { product } }, each field resolved by itself.
    const resolve = runInLoop(async () =>
      Promise.all(
        range(10).map(async (id) => {
          const user = await User.cache.getAsync({ id })
          const orders = await Order.cache.filterAsync({ user_id: user.id })
          return Promise.all(orders.map(({ product_id }) => Product.cache.getAsync({ id: product_id })))
        }),
      ),
    )
    const products = await expectTrips(cache, { mget: 3, acquire: 3, select: 3, fill: 3 }, resolve)
    expect(products.flat()).toHaveLength(30)
    await expectTrips(cache, { mget: 3 }, resolve)
  })

  test('awaits of what is already there do not part them', async () => {
    const { cache, User } = opened
    const later = async (ticks: number, id: number) => {
      for (let i = 0; i < ticks; i++) await null
      return User.cache.getAsync({ id })
    }
    await expectTrips(cache, COLD, () =>
      runInLoop(() => Promise.all([later(0, 1), later(1, 2), later(5, 3), later(20, 4)]))(),
    )
  })

  test('a lookup that waits for another is in the next wave', async () => {
    const { cache, User } = opened
    await expectTrips(cache, { mget: 2, acquire: 2, select: 2, fill: 2 }, () =>
      runInLoop(async () => {
        const { id } = await User.cache.getAsync({ email: 'user-1@shop.test' })
        await User.cache.getAsync({ id: id + 1 })
      })(),
    )
  })

  test('a hit does not wait for the misses of its wave', async () => {
    const { cache, User, Product } = opened
    await User.cache.getAsync({ id: 1 })
    await cache.idle()
    const locked = await shop.database.pool.connect()
    try {
      await locked.query('begin; lock table products in access exclusive mode')
      const slow = runInLoop(() => {
        const product = Product.cache.getAsync({ id: 1 })
        return { product, user: User.cache.getAsync({ id: 1 }) }
      })()
      expect(await slow.user).toMatchObject({ id: 1 })
      await locked.query('commit')
      expect(await slow.product).toMatchObject({ id: 1 })
    } finally {
      await locked.query('rollback')
      locked.release()
    }
  })
})

describe('what is not there', () => {
  test('a row that does not exist is asked for once', async () => {
    const { cache, User } = opened
    const read = runInLoop(() => User.cache.getAsyncOrNone({ email: 'nobody@shop.test' }))
    expect(await expectTrips(cache, COLD, read)).toBeNull()
    expect(await expectTrips(cache, { mget: 1 }, read)).toBeNull()
    expect(cache.stats()).toMatchObject({ absents: 1, misses: 1 })
  })

  test('an empty list is asked for once', async () => {
    const { cache, Order } = opened
    const read = runInLoop(() => Order.cache.filterAsync({ user_id: 9999 }))
    expect(await expectTrips(cache, COLD, read)).toEqual([])
    expect(await expectTrips(cache, { mget: 1 }, read)).toEqual([])
  })

  test('absent and present rows of one wave come back as what they are', async () => {
    const { cache, User } = opened
    const read = runInLoop(() =>
      Promise.all([198, 199, 200, 201, 202].map((id) => User.cache.getAsyncOrNone({ id }))),
    )
    const ids = (rows: readonly ({ id: number } | null)[]) => rows.map((row) => row?.id ?? null)
    expect(ids(await expectTrips(cache, COLD, read))).toEqual([198, 199, 200, null, null])
    expect(ids(await expectTrips(cache, { mget: 1 }, read))).toEqual([198, 199, 200, null, null])
  })
})

describe('NULL', () => {
  test('in a filter matches NULL, also side by side with values', async () => {
    const { cache, User } = opened
    const read = runInLoop(() =>
      Promise.all([
        User.cache.filterAsync({ org_id: 0, role: null }),
        User.cache.filterAsync({ org_id: 2, role: 'admin' }),
        User.cache.filterAsync({ org_id: 2, role: null }),
      ]),
    )
    const lists = await expectTrips(cache, COLD, read)
    expect(lists.map((list) => list.length)).toEqual([20, 20, 0])
    expect(await expectTrips(cache, { mget: 1 }, read)).toEqual(lists)
  })

  test('in a key identifies no row: nobody is asked', async () => {
    const { cache, User } = opened
    const id = null as unknown as number
    expect(await expectTrips(cache, {}, () => User.cache.getAsyncOrNone({ id }))).toBeNull()
    expect(shop.statements).toEqual([])
  })
})
