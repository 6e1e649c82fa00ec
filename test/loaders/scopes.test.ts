import { EventEmitter } from 'node:events'
import { Redis } from 'ioredis'
import { NotFoundError, NotFoundHttpError, runInLoop, SourceError } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { startRedis } from '../servers/redis.ts'
import type { Server } from '../servers/server.ts'
import { startProxy } from '../support/proxy.ts'
import { closeRedis, testRedis } from '../support/redis.ts'
import { openCache, openShop, range, type Shop, type ShopCache } from './shop.ts'

const COLD = { mget: 1, acquire: 1, select: 1, fill: 1 }
const WARM = { mget: 1 }

let shop: Shop
beforeAll(async () => {
  shop = await openShop()
})
afterAll(async () => {
  await closeRedis()
  await shop.close()
})

let opened: ShopCache
let cache: ShopCache['cache']
let User: ShopCache['User']
let Order: ShopCache['Order']
beforeEach(async () => {
  opened = openCache(shop, testRedis())
  cache = opened.cache
  User = opened.User
  Order = opened.Order
  await cache.ready()
  return () => opened.cache.close()
})

/** Changes a row that a lookup returned, which its type forbids. */
function deface(row: object): void {
  Object.assign(row, { first_name: 'defaced' })
}

describe('a scope', () => {
  test('looks a key up once, however much is awaited in between', async () => {
    await expectTrips(cache, COLD, () =>
      runInLoop(async () => {
        const first = await User.cache.getAsync({ id: 1 })
        await new Promise(setImmediate)
        expect(await User.cache.getAsync({ id: 1 })).toBe(first)
      })(),
    )
  })

  test('begins with nothing, though the one before looked the same key up', async () => {
    const read = runInLoop(() => User.cache.getAsync({ id: 1 }))
    const first = await expectTrips(cache, COLD, read)
    const second = await expectTrips(cache, WARM, read)
    expect(second).toEqual(first)
    expect(second).not.toBe(first)
  })

  test('passes arguments, `this` and the result of the function it wraps, and what that throws', async () => {
    const service = {
      factor: 3,
      times: runInLoop(function (this: { factor: number }, x: number) {
        return this.factor * x
      }),
    }
    expect(service.times(7)).toBe(21)
    const failing = runInLoop(() => {
      throw new RangeError('mine')
    })
    expect(failing).toThrow(RangeError)
    await expect(runInLoop(async () => Promise.reject(new RangeError('mine')))()).rejects.toThrow(RangeError)
  })

  test('nests: an inner one is fresh, and the outer one is back afterwards', async () => {
    await runInLoop(async () => {
      const outer = await User.cache.getAsync({ id: 1 })
      await cache.idle()
      await expectTrips(cache, WARM, () =>
        runInLoop(async () => {
          const inner = await User.cache.getAsync({ id: 1 })
          expect(inner).toEqual(outer)
          expect(inner).not.toBe(outer)
        })(),
      )
      await expectTrips(cache, {}, async () => {
        expect(await User.cache.getAsync({ id: 1 })).toBe(outer)
      })
    })()
  })
})

describe('rows are nobody else\u2019s', () => {
  test('what one scope does to a row never shows in another: not from SQL, not from the store', async () => {
    const read = runInLoop(async () => {
      const row = await User.cache.getAsync({ id: 1 })
      const seen = row.first_name
      deface(row)
      return seen
    })
    expect(await Promise.all([read(), read(), read()])).toEqual(['name 1', 'name 1', 'name 1'])
    await cache.idle()
    expect(await Promise.all([read(), read(), read()])).toEqual(['name 1', 'name 1', 'name 1'])
  })

  test('nor what is done to a list', async () => {
    const read = runInLoop(async () => {
      const rows = await Order.cache.filterAsync({ user_id: 1 })
      const seen = rows.map(({ id }) => id)
      for (const row of rows) deface(row)
      Object.assign(rows, { length: 0 })
      return seen
    })
    expect(await Promise.all([read(), read()])).toEqual([
      [1, 2, 3],
      [1, 2, 3],
    ])
    await cache.idle()
    expect(await read()).toEqual([1, 2, 3])
  })

  test('nor, outside of any scope, what is done to the row of a twin in the same tick', async () => {
    const read = async () => {
      const row = await User.cache.getAsync({ id: 1 })
      const seen = row.first_name
      deface(row)
      return seen
    }
    const five = () => Promise.all(range(5).map(read))
    expect(new Set(await five())).toEqual(new Set(['name 1']))
    await cache.idle()
    expect(new Set(await five())).toEqual(new Set(['name 1']))
  })

  test('a row defaced before it was filled is filled as it was', async () => {
    await User.cache.getAsync({ id: 1 }).then(deface)
    await cache.idle()
    expect(await User.cache.getAsync({ id: 1 })).toMatchObject({ first_name: 'name 1' })
  })

  test('1000 scopes at a time: each has its own rows, and keeps them', async () => {
    const visit = runInLoop(async (visitor: number) => {
      const ids = [(visitor % 50) + 1, ((visitor * 7) % 50) + 1, 99]
      const rows = await Promise.all(ids.map((id) => User.cache.getAsync({ id })))
      for (const row of rows) Object.assign(row, { visitor })
      await new Promise(setImmediate)
      const again = await Promise.all(ids.map((id) => User.cache.getAsync({ id })))
      return again.every((row, i) => row === rows[i] && (row as { visitor?: number }).visitor === visitor)
    })
    const kept = await Promise.all(range(1000).map((visitor) => visit(visitor)))
    expect(kept.filter(Boolean)).toHaveLength(1000)
    expect(cache.stats()).toMatchObject({ outOfScope: 0, storeErrors: 0 })
  })
})

describe('outside of any scope', () => {
  test('lookups join the wave of their tick', async () => {
    await expectTrips(cache, COLD, () => Promise.all(range(10).map((id) => User.cache.getAsync({ id }))))
  })

  test('nothing is remembered past its own answer', async () => {
    await expectTrips(cache, COLD, () => User.cache.getAsync({ id: 1 }))
    await expectTrips(cache, WARM, () => User.cache.getAsync({ id: 1 }))
    expect(User.cache.peek({ id: 1 })).toBeUndefined()
  })

  test('they are counted, and those in a scope are not', async () => {
    await User.cache.getAsync({ id: 1 })
    await Promise.all([User.cache.getAsync({ id: 1 }), User.cache.getAsyncOrNone({ id: 1 })])
    await runInLoop(() => User.cache.getAsync({ id: 1 }))()
    expect(cache.stats().outOfScope).toBe(3)
  })

  test('each twin is told of absence as it asked', async () => {
    const id = 12_345
    const [found, orThrow, or404] = await Promise.allSettled([
      User.cache.getAsyncOrNone({ id }),
      User.cache.getAsync({ id }),
      User.cache.getAsyncOr404({ id }),
    ])
    expect(found).toEqual({ status: 'fulfilled', value: null })
    expect(orThrow).toMatchObject({ status: 'rejected', reason: { code: 'ERR_NOT_FOUND' } })
    expect(or404).toMatchObject({ status: 'rejected', reason: { code: 'ERR_NOT_FOUND_HTTP' } })
  })
})

describe('a library that loses the async context', () => {
  /** Calls back from a timer of its own, as an old connection pool does. */
  class Queue {
    readonly #jobs: (() => void)[] = []
    readonly #timer = setInterval(() => {
      for (const job of this.#jobs.splice(0)) job()
    }, 1)

    push(job: () => void): void {
      this.#jobs.push(job)
    }

    end(): void {
      clearInterval(this.#timer)
    }
  }

  let queue: Queue
  beforeEach(() => {
    queue = new Queue()
    return () => queue.end()
  })

  test('its callbacks are outside of the scope: answered and counted, and not remembered', async () => {
    await runInLoop(async () => {
      const row = await User.cache.getAsync({ id: 1 })
      const lost = await new Promise<object>((resolve, reject) => {
        queue.push(() => User.cache.getAsync({ id: 1 }).then(resolve, reject))
      })
      expect(lost).toEqual(row)
      expect(lost).not.toBe(row)
      expect(cache.stats().outOfScope).toBe(1)
      expect(await User.cache.getAsync({ id: 1 })).toBe(row)
    })()
  })

  test('callbacks of two scopes in one tick share a wave, and no rows', async () => {
    const visit = runInLoop(
      () =>
        new Promise<object>((resolve, reject) => {
          queue.push(() => User.cache.getAsync({ id: 1 }).then(resolve, reject))
        }),
    )
    const [one, other] = await expectTrips(cache, COLD, () => Promise.all([visit(), visit()]))
    expect(one).toEqual(other)
    expect(one).not.toBe(other)
  })

  test('an emitter that calls back within the scope loses nothing', async () => {
    await runInLoop(async () => {
      const emitter = new EventEmitter()
      const row = await User.cache.getAsync({ id: 1 })
      const seen = new Promise<object>((resolve, reject) => {
        emitter.on('found', () => User.cache.getAsync({ id: 1 }).then(resolve, reject))
      })
      emitter.emit('found')
      expect(await seen).toBe(row)
    })()
    expect(cache.stats().outOfScope).toBe(0)
  })
})

describe('two caches in one process', () => {
  test('share scopes, but no waves, memos or counts', async () => {
    const other = openCache(shop, testRedis())
    await other.cache.ready()
    await runInLoop(async () => {
      const [mine, theirs] = await expectTrips(other.cache, COLD, () =>
        expectTrips(cache, COLD, () =>
          Promise.all([User.cache.getAsync({ id: 1 }), other.User.cache.getAsync({ id: 1 })]),
        ),
      )
      expect(mine).toEqual(theirs)
      expect(mine).not.toBe(theirs)
      await User.cache.invalidate({ id: 1 })
      expect(User.cache.peek({ id: 1 })).toBeUndefined()
      expect(other.User.cache.peek({ id: 1 })).toBe(theirs)
    })()
    await other.cache.close()
    expect(await User.cache.getAsync({ id: 1 })).toMatchObject({ id: 1 })
  })
})

describe('errors', () => {
  test('SQL that fails rejects the lookups of its shape, and no others of the wave', async () => {
    await shop.database.pool.query('alter table orders rename to orders_away')
    try {
      const [order, list, user] = await runInLoop(() =>
        Promise.allSettled([
          Order.cache.getAsync({ id: 1 }),
          Order.cache.filterAsync({ user_id: 1 }),
          User.cache.getAsync({ id: 1 }),
        ]),
      )()
      expect(user).toMatchObject({ status: 'fulfilled', value: { id: 1 } })
      for (const failed of [order, list]) {
        expect(failed).toMatchObject({ status: 'rejected', reason: { code: 'ERR_SOURCE', transient: true } })
      }
      const { reason } = order as PromiseRejectedResult
      expect(reason).toBeInstanceOf(SourceError)
      expect(String(reason)).toMatch(/SourceError: model 'orders': SQL for \['id'\] failed: .*does not exist/)
      expect((reason as Error).cause).toMatchObject({ code: '42P01' })
      await cache.idle()
      expect(cache.stats().sourceErrors).toBe(2)
    } finally {
      await shop.database.pool.query('alter table orders_away rename to orders')
    }
  })

  test('are not remembered: the next lookup of the same scope asks again', async () => {
    await runInLoop(async () => {
      await shop.database.pool.query('alter table orders rename to orders_away')
      try {
        await expect(Order.cache.getAsync({ id: 1 })).rejects.toThrow(SourceError)
        expect(Order.cache.peek({ id: 1 })).toBeUndefined()
      } finally {
        await shop.database.pool.query('alter table orders_away rename to orders')
      }
      // The lease was given back, so this one loads and fills.
      await expectTrips(cache, COLD, () => Order.cache.getAsync({ id: 1 }))
    })()
    await expectTrips(cache, WARM, () => Order.cache.getAsync({ id: 1 }))
  })

  test('all who asked for a key in one scope are told of the same error', async () => {
    await shop.database.pool.query('alter table orders rename to orders_away')
    try {
      const results = await runInLoop(() =>
        Promise.allSettled([
          Order.cache.getAsync({ id: 1 }),
          Order.cache.getAsyncOrNone({ id: 1 }),
          Order.cache.getAsyncOr404({ id: 1 }),
        ]),
      )()
      expect(results.map((result) => (result as PromiseRejectedResult).reason)).toEqual(
        Array.from({ length: 3 }, () => expect.any(SourceError)),
      )
    } finally {
      await shop.database.pool.query('alter table orders_away rename to orders')
    }
  })
})

describe('getAsync, getAsyncOrNone and getAsyncOr404 of one key in one scope', () => {
  test('are one lookup, and agree on the row', async () => {
    await expectTrips(cache, COLD, () =>
      runInLoop(async () => {
        const [one, other] = await Promise.all([
          User.cache.getAsync({ id: 1 }),
          User.cache.getAsyncOrNone({ id: 1 }),
        ])
        expect(one).toBe(other)
        expect(await User.cache.getAsyncOr404({ id: 1 })).toBe(one)
      })(),
    )
  })

  test.each([
    ['getAsync', 'getAsyncOrNone', 'getAsyncOr404'],
    ['getAsyncOrNone', 'getAsyncOr404', 'getAsync'],
    ['getAsyncOr404', 'getAsync', 'getAsyncOrNone'],
  ] as const)('agree that there is none: %s, then %s, then %s', async (...order) => {
    const errors = { getAsync: NotFoundError, getAsyncOr404: NotFoundHttpError }
    await expectTrips(cache, COLD, () =>
      runInLoop(async () => {
        for (const name of order) {
          const found = User.cache[name]({ id: 12_345 })
          if (name === 'getAsyncOrNone') expect(await found).toBeNull()
          else await expect(found).rejects.toBeInstanceOf(errors[name])
        }
        // At once, too.
        const all = await Promise.allSettled(order.map((name) => User.cache[name]({ id: 12_345 })))
        expect(all.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected', 'rejected'])
      })(),
    )
  })

  test('the error of getAsync says what was not found; that of getAsyncOr404 keeps it from clients', async () => {
    const key = { id: 12_345 }
    await expect(User.cache.getAsync(key)).rejects.toMatchObject({
      message: "model 'users' has no row with id = 12345",
      model: 'users',
      key,
    })
    await expect(User.cache.getAsyncOr404(key)).rejects.toMatchObject({
      message: 'Not Found',
      status: 404,
      statusCode: 404,
      model: 'users',
      key,
    })
  })
})

describe('peek', () => {
  test('tells what the scope knows, and never asks', async () => {
    await expectTrips(cache, COLD, () =>
      runInLoop(async () => {
        expect(User.cache.peek({ id: 1 })).toBeUndefined()
        const reading = User.cache.getAsync({ id: 1 })
        expect(User.cache.peek({ id: 1 })).toBeUndefined()
        const row = await reading
        expect(User.cache.peek({ id: 1 })).toBe(row)
        expect(User.cache.peek({ email: 'user-1@shop.test' })).toBeUndefined()
      })(),
    )
  })

  test('null: known not to exist', async () => {
    await runInLoop(async () => {
      await User.cache.getAsyncOrNone({ id: 12_345 })
      expect(User.cache.peek({ id: 12_345 })).toBeNull()
    })()
  })
})

describe('a query', () => {
  test('is lazy: nothing is looked up until it is asked to', async () => {
    const [one, list] = [User.cache.getQuery({ id: 1 }), Order.cache.filterQuery({ user_id: 1 })]
    await expectTrips(cache, {}, () => new Promise(setImmediate))
    const [user, orders] = await expectTrips(cache, { ...COLD, select: 2 }, () =>
      runInLoop(() => Promise.all([one.resolveAsync(), list.resolveAsync()]))(),
    )
    expect(user.id).toBe(1)
    expect(orders).toHaveLength(3)
  })

  test('belongs to the scope it is resolved in, and joins its wave', async () => {
    const query = User.cache.getQuery({ id: 1 })
    await runInLoop(async () => {
      const [resolved, looked] = await Promise.all([query.resolveAsync(), User.cache.getAsync({ id: 1 })])
      expect(resolved).toBe(looked)
    })()
  })

  test('with a bad key rejects when it is resolved', async () => {
    const query = User.cache.getQuery({ id: Number.NaN })
    await expect(query.resolveAsync()).rejects.toMatchObject({ code: 'ERR_INVALID_KEY' })
  })
})

describe('invalidate', () => {
  /** Reads with every shape that user 1 is in. */
  const readAll = () =>
    Promise.all([
      User.cache.getAsync({ id: 1 }),
      User.cache.getAsync({ email: 'user-1@shop.test' }),
      User.cache.filterAsync({ first_name: 'name 1' }),
      User.cache.filterAsync({ org_id: 1, role: 'member' }),
    ])

  test('by a key forgets that key, in the store and in the scope', async () => {
    await runInLoop(async () => {
      const before = await User.cache.getAsync({ id: 1 })
      await User.cache.getAsync({ id: 2 })
      await User.cache.invalidate({ id: 1 })
      expect(User.cache.peek({ id: 1 })).toBeUndefined()
      expect(User.cache.peek({ id: 2 })).not.toBeUndefined()
      await expectTrips(cache, COLD, async () => {
        const after = await User.cache.getAsync({ id: 1 })
        expect(after).toEqual(before)
        expect(after).not.toBe(before)
      })
    })()
  })

  test('by a filter forgets that list', async () => {
    await readAll()
    await cache.idle()
    await User.cache.invalidate({ org_id: 1, role: 'member' })
    await expectTrips(cache, COLD, readAll)
  })

  test('by a row forgets every key and list it is in', async () => {
    const [row] = await readAll()
    await cache.idle()
    await User.cache.invalidate(row)
    await expectTrips(cache, { ...COLD, select: 4 }, readAll)
  })

  test('takes lists of rows and keys, and none', async () => {
    const rows = await Promise.all([1, 2].map((id) => User.cache.getAsync({ id })))
    await User.cache.getAsync({ id: 3 })
    await cache.idle()
    await User.cache.invalidate([...rows, { id: 3 }])
    await expectTrips(cache, COLD, () => Promise.all([1, 2, 3].map((id) => User.cache.getAsync({ id }))))
    await User.cache.invalidate([])
    await expectTrips(cache, WARM, () => Promise.all([1, 2, 3].map((id) => User.cache.getAsync({ id }))))
  })

  test('ends what is known of an absence', async () => {
    const id = 5000
    await runInLoop(async () => {
      expect(await User.cache.getAsyncOrNone({ id })).toBeNull()
      await shop.database.pool.query(`insert into users values ($1, 'new@shop.test', 'new', 5, null)`, [id])
      await User.cache.invalidate({ id })
      expect(await User.cache.getAsync({ id })).toMatchObject({ first_name: 'new' })
    })()
    await shop.database.pool.query('delete from users where id = $1', [id])
  })

  test('of what is no key of the model is refused, and says what there is', async () => {
    await expect(User.cache.invalidate({ nickname: 'x' } as never)).rejects.toMatchObject({
      code: 'ERR_SHAPE_NOT_DECLARED',
      message: expect.stringContaining("['id'], ['email']"),
    })
    await expect(User.cache.invalidate(null as never)).rejects.toMatchObject({ code: 'ERR_INVALID_KEY' })
  })

  test('a lookup under way answers those who wait, but is not remembered', async () => {
    await runInLoop(async () => {
      const before = User.cache.getAsync({ id: 1 })
      await User.cache.invalidate({ id: 1 })
      await before
      expect(User.cache.peek({ id: 1 })).toBeUndefined()
    })()
  })
})

describe('clear', () => {
  test('forgets the whole model, in the store and in the scope, and no other', async () => {
    await runInLoop(async () => {
      const read = () =>
        Promise.all([User.cache.getAsync({ id: 1 }), User.cache.filterAsync({ org_id: 1, role: 'member' })])
      await read()
      const order = await Order.cache.getAsync({ id: 1 })
      await cache.idle()
      await User.cache.clear()
      await expectTrips(cache, { ...COLD, select: 2 }, read)
      expect(Order.cache.peek({ id: 1 })).toBe(order)
    })()
    await expectTrips(cache, WARM, () => Order.cache.getAsync({ id: 1 }))
  })

  test('while it is under way, a lookup may still see an old entry: it is not remembered', async () => {
    const server = await startRedis()
    onTestFinished(server.stop)
    const proxy = await startProxy(server.port)
    onTestFinished(proxy.close)
    const slow = openCache(shop, { redis: new Redis({ port: proxy.port, lazyConnect: true }) })
    onTestFinished(() => slow.cache.close())
    await slow.User.cache.getAsync({ id: 1 })
    await slow.cache.idle()

    await runInLoop(async () => {
      proxy.hold('replies')
      const scripts = await commandsRun(server, 'evalsha')
      const reading = slow.User.cache.getAsync({ id: 1 })
      await expect.poll(() => commandsRun(server, 'mget')).toBe(2)
      const clearing = slow.User.cache.clear()
      await expect.poll(() => commandsRun(server, 'evalsha')).toBe(scripts + 1)
      proxy.release()
      await Promise.all([clearing, reading])
      expect(slow.User.cache.peek({ id: 1 })).toBeUndefined()
    })()
  })

  async function commandsRun(server: Server, command: string): Promise<number> {
    const { redis } = testRedis({ url: server.url })
    const stats = await redis.info('commandstats')
    redis.disconnect()
    return Number(new RegExp(`^cmdstat_${command}:calls=(\\d+)`, 'm').exec(stats)?.[1] ?? 0)
  }
})
