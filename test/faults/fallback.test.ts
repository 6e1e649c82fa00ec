import { Redis } from 'ioredis'
import { Kysely, PostgresDialect } from 'kysely'
import {
  type CacheOptions,
  type FallbackOptions,
  OverloadedError,
  runInLoop,
  withInvalidation,
} from 'loadstone'
import { holdSteps } from 'loadstone/testing'
import type { PoolClient } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { openCache, openShop, range, type Shop, type ShopCache, type ShopTables } from '../loaders/shop.ts'
import { freePort } from '../servers/ports.ts'
import { closeRedis, testRedis } from '../support/redis.ts'

let shop: Shop
let client: Redis
beforeAll(async () => {
  shop = await openShop()
  client = new Redis({ port: await freePort(), lazyConnect: true })
})
afterAll(() => shop.close())
afterEach(closeRedis)
beforeEach(async () => {
  await rename('old')
  shop.statements.length = 0
})

/** A cache whose Redis refuses connections, and is not asked any more. */
async function openAway(
  fallback: FallbackOptions = {},
  options: Partial<CacheOptions<ShopTables>> = {},
): Promise<ShopCache> {
  const opened = openCache(shop, { redis: client, fallback, ...options })
  onTestFinished(() => opened.cache.close())
  const { User, Order, Product } = opened
  while (opened.cache.stats().breaker === 'closed') {
    for (const { cache } of [User, Order, Product]) await cache.getAsync({ id: 1 })
  }
  shop.statements.length = 0
  return opened
}

/** Every read is a request of its own. */
function read({ User }: ShopCache, ...ids: readonly number[]) {
  return runInLoop(() => Promise.all(ids.map((id) => User.cache.getAsync({ id }))))()
}

function rename(name: string) {
  return shop.database.pool.query('update users set first_name = $1 where id = 1', [name])
}

/** Lets no statement about users through until it is told to. */
async function lockUsers(): Promise<{ blocked(): Promise<number>; unlock(): Promise<void> }> {
  const holder: PoolClient = await shop.database.pool.connect()
  await holder.query('begin; lock table users in access exclusive mode')
  let isLocked = true
  const unlock = async () => {
    if (isLocked) await holder.query('rollback')
    isLocked = false
  }
  onTestFinished(async () => {
    await unlock()
    holder.release()
  })
  return {
    // On another connection: within a transaction, it would be told the same again and again.
    async blocked() {
      const { rows } = await shop.database.pool.query(
        "select count(*)::int from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
      )
      return rows[0].count
    },
    unlock,
  }
}

/** Resolves at the end of this turn of the event loop, when what was looked up has begun or waits. */
const endOfTurn = () => new Promise(setImmediate)

async function inTurn<T>(ids: readonly number[], look: (id: number) => Promise<T>): Promise<Promise<T>[]> {
  const all: Promise<T>[] = []
  for (const id of ids) {
    all.push(look(id))
    all.at(-1)?.catch(() => {}) // whoever awaits it does so later
    await endOfTurn()
  }
  return all
}

describe('while the store is away', () => {
  test('no more statements run at once than were allowed, and the others wait their turn', async () => {
    const away = await openAway({ concurrency: 3 })
    const users = await lockUsers()
    const reading = await inTurn(range(20), (id) => read(away, id))
    await expect.poll(users.blocked).toBe(3)
    await users.unlock()
    const rows = (await Promise.all(reading)).flat()
    expect(rows.map(({ id }) => id)).toEqual(range(20))
    expect(shop.statements).toHaveLength(20)
  })

  test('lookups beyond the queue are rejected at once, and no others', async () => {
    const away = await openAway({ concurrency: 1, queue: 2 })
    const users = await lockUsers()
    const reading = await inTurn([1, 2, 3], (id) => read(away, id))
    const { User, Product } = away
    const [known, refused, other] = runInLoop(() => [
      User.cache.getAsync({ id: 3 }),
      User.cache.getAsync({ id: 4 }),
      User.cache.getAsync({ id: 5 }),
    ])()
    const overloaded = expect(refused).rejects.toMatchObject({ code: 'ERR_OVERLOADED', transient: true })
    await expect(other).rejects.toBeInstanceOf(OverloadedError)
    await overloaded
    await expect(runInLoop(() => Product.cache.getAsync({ id: 1 }))()).rejects.toBeInstanceOf(OverloadedError)
    expect(away.cache.stats()).toMatchObject({ overloaded: 3, sourceErrors: 0 })
    await users.unlock()
    expect((await Promise.all(reading)).flat().map(({ id }) => id)).toEqual([1, 2, 3])
    expect(await known).toMatchObject({ id: 3 })
    expect(await read(away, 4)).toMatchObject([{ id: 4 }])
    expect(shop.statements).toHaveLength(4)
  })

  test('lookups that have waited for too long are rejected, and their statement is never sent', async () => {
    const away = await openAway({ concurrency: 1, timeout: 20 })
    const users = await lockUsers()
    const [running, waiting] = await inTurn([1, 2], (id) => read(away, id))
    await expect(waiting).rejects.toThrow(/a load has waited for 20 ms/)
    await users.unlock()
    expect(await running).toMatchObject([{ id: 1 }])
    expect(shop.statements).toHaveLength(1)
    expect(await read(away, 2)).toMatchObject([{ id: 2 }])
  })

  test('an error of the bulkhead is not memoised: the same request may ask again', async () => {
    const away = await openAway({ concurrency: 1, queue: 0 })
    const users = await lockUsers()
    const [running] = await inTurn([1], (id) => read(away, id))
    await runInLoop(async () => {
      await expect(away.User.cache.getAsync({ id: 2 })).rejects.toBeInstanceOf(OverloadedError)
      await users.unlock()
      await running
      expect(await away.User.cache.getAsync({ id: 2 })).toMatchObject({ id: 2 })
    })()
  })

  test('transactions are not held up: they have their connection already', async () => {
    const dialect = withInvalidation(new PostgresDialect({ pool: shop.database.pool }))
    const away = await openAway(
      { concurrency: 1, queue: 0 },
      { db: new Kysely<ShopTables>({ dialect }), invalidation: 'triggers' },
    )
    const users = await lockUsers()
    const [running] = await inTurn([1], (id) => read(away, id))
    await expect(runInLoop(() => away.Product.cache.getAsync({ id: 1 }))()).rejects.toThrow(OverloadedError)
    expect(await away.cache.transaction(() => away.Product.cache.getAsync({ id: 1 }))).toMatchObject({
      id: 1,
    })
    await users.unlock()
    await running
  })

  test('nor is what the application reads from SQL anyway', async () => {
    const away = await openAway({ concurrency: 1, queue: 0 })
    const past = openCache(shop, { redis: client, enabled: false, fallback: { concurrency: 1, queue: 0 } })
    onTestFinished(() => past.cache.close())
    await past.cache.ready()
    const users = await lockUsers()
    const [running] = await inTurn([1], (id) => read(away, id))
    const { Product } = away
    const pastTheStore = runInLoop((id: number) => Product.cache.getAsync({ id }), { store: false })
    expect(await Promise.all(await inTurn([1, 2, 3], pastTheStore))).toHaveLength(3)
    const disabled = runInLoop((id: number) => past.Product.cache.getAsync({ id }))
    expect(await Promise.all(await inTurn([1, 2, 3], disabled))).toHaveLength(3)
    await users.unlock()
    await running
  })

  test('a custom cache whose load looks up in turn does not wait for its own place', async () => {
    const away = await openAway({ concurrency: 1, queue: 10 })
    const { cache, User, Product } = away
    const NameOfUser = cache.instance({
      name: 'NameOfUser',
      model: User,
      keyFields: ['id'],
      loadOne: async ({ id }) => (await User.cache.getAsync({ id })).first_name,
    })
    const Greeting = cache.instance({
      name: 'Greeting',
      model: Product,
      keyFields: ['id'],
      loadOne: async ({ id }) => `hello ${await NameOfUser({ id }).resolveAsync()}`,
    })
    const greet = runInLoop((id: number) => Greeting({ id }).resolveAsync())
    const greetings = await Promise.all(await inTurn([1, 2, 3], greet))
    expect(greetings).toEqual(['hello old', 'hello name 2', 'hello name 3'])
  })
})

describe('one key in several requests, while the store is away', () => {
  test('50 in one turn of the event loop: one statement, and a row for each', async () => {
    const away = await openAway()
    const rows = (await Promise.all(range(50).map(() => read(away, 1, 2)))).flat()
    expect(shop.statements).toHaveLength(1)
    expect(rows).toEqual(range(50).flatMap(() => [rows[0], rows[1]]))
    expect(new Set(rows).size).toBe(100)
  })

  test('lists and absent rows are shared as well', async () => {
    const away = await openAway()
    const look = runInLoop(() =>
      Promise.all([
        away.Order.cache.filterAsync({ user_id: 1 }),
        away.User.cache.getAsyncOrNone({ id: 5000 }),
      ]),
    )
    const answers = await Promise.all(range(10).map(look))
    expect(shop.statements).toHaveLength(2)
    for (const [orders, nobody] of answers) {
      expect(orders.map(({ id }) => id)).toEqual([1, 2, 3])
      expect(nobody).toBeNull()
    }
  })

  test('while all places are taken: they wait for one statement, whenever they came', async () => {
    const away = await openAway({ concurrency: 2, queue: 1 })
    const users = await lockUsers()
    const others = await inTurn([2, 3], (id) => read(away, id))
    await expect.poll(users.blocked).toBe(2)
    const same = await inTurn(
      Array.from({ length: 30 }, () => 1),
      (id) => read(away, id),
    )
    await users.unlock()
    const rows = (await Promise.all(same)).flat()
    expect(rows.map(({ id }) => id)).toEqual(rows.map(() => 1))
    await Promise.all(others)
    expect(shop.statements).toHaveLength(3)
    expect(away.cache.stats().overloaded).toBe(0)
  })

  test('who joined a statement that waits sees what was committed before it was sent', async () => {
    const away = await openAway()
    const steps = holdSteps(away.cache)
    const first = read(away, 1)
    const select = await steps.next('select')
    await rename('new')
    const second = read(away, 1)
    await steps.next('join')
    await select.take()
    steps.release()
    expect(await Promise.all([first, second])).toMatchObject([
      [{ first_name: 'new' }],
      [{ first_name: 'new' }],
    ])
    expect(shop.statements).toHaveLength(1)
  })

  test('a statement that was sent is joined by nobody: a write may have come since', async () => {
    const away = await openAway()
    const { hook } = insidesOf(away.cache)
    let letGo = () => {}
    let sent: () => void
    const answered = new Promise<void>((resolve) => {
      sent = resolve
    })
    hook.gate = async (_, take) => {
      hook.gate = undefined
      const rows = await take()
      sent()
      await new Promise<void>((resolve) => {
        letGo = resolve
      })
      return rows
    }
    const first = read(away, 1)
    await answered
    await rename('new')
    expect(await read(away, 1)).toMatchObject([{ first_name: 'new' }])
    letGo()
    expect(await first).toMatchObject([{ first_name: 'old' }])
    expect(away.cache.stats().joined).toBe(0)
  })

  test('an error is shared, and the next one asks again', async () => {
    const away = await openAway()
    const steps = holdSteps(away.cache)
    const first = read(away, 1)
    const select = await steps.next('select')
    const second = read(away, 1)
    await steps.next('join')
    select.fail(new Error('connection terminated'))
    steps.release()
    for (const each of [first, second]) await expect(each).rejects.toThrow(/connection terminated/)
    expect(await read(away, 1)).toMatchObject([{ id: 1 }])
  })

  test('what cannot be shared is loaded by each, through the bulkhead as well', async () => {
    const away = await openAway({ concurrency: 1 }, { maxValueBytes: 1 })
    const users = await lockUsers()
    const first = await inTurn([2], (id) => read(away, id))
    const reading = await inTurn([1, 1, 1], (id) => read(away, id))
    await users.unlock()
    const rows = (await Promise.all(reading)).flat()
    expect(rows.map(({ id }) => id)).toEqual([1, 1, 1])
    await Promise.all(first)
    expect(shop.statements).toHaveLength(4)
    expect(away.cache.stats()).toMatchObject({ overloaded: 0, joined: 2 })
  })
})

describe('without the store for a wave only', () => {
  test("who waited for another process' load together when it went away has one statement in all", async () => {
    const { redis, namespace } = testRedis()
    const [mine, theirs] = [0, 1].map(() => {
      const opened = openCache(shop, { redis, namespace })
      onTestFinished(() => opened.cache.close())
      return opened
    }) as [ShopCache, ShopCache]
    await Promise.all([mine.cache.ready(), theirs.cache.ready()])
    const theirSteps = holdSteps(theirs.cache)
    const their = read(theirs, 1)
    await theirSteps.take('getMany')
    await theirSteps.take('acquire')
    shop.statements.length = 0

    const steps = holdSteps(mine.cache)
    const gone = new Error('no answer')
    const waiting = read(mine, 1)
    await steps.take('getMany')
    await steps.next('sleep')
    const joined = read(mine, 1)
    await steps.take('getMany')
    await steps.next('join')
    const late = read(mine, 1)
    ;(await steps.next('getMany')).fail(gone)
    await steps.next('select')
    await steps.take('sleep')
    ;(await steps.next('getMany')).fail(gone)
    await expect.poll(() => steps.held.filter(({ op }) => op === 'join').length).toBe(2)
    steps.release()
    expect((await Promise.all([waiting, joined, late])).flat()).toMatchObject([
      { id: 1 },
      { id: 1 },
      { id: 1 },
    ])
    await mine.cache.idle()
    expect(shop.statements).toHaveLength(1)
    theirSteps.release()
    await their
  })

  test('a lease that is refused, as Redis is full, has its load go through the bulkhead as well', async () => {
    const { redis, namespace } = testRedis()
    const full = openCache(shop, { redis, namespace, fallback: { concurrency: 1, queue: 0 } })
    onTestFinished(() => full.cache.close())
    await full.cache.ready()
    const users = await lockUsers()
    const steps = holdSteps(full.cache)
    const reading: ReturnType<typeof read>[] = []
    // One after the other, so that each has a wave of its own.
    for (const id of [1, 2]) {
      reading.push(read(full, id))
      await steps.take('getMany')
    }
    const settled = Promise.allSettled(reading)
    for (let i = 0; i < 2; i++) (await steps.next('acquire')).fail(new Error('OOM'))
    steps.release()
    await expect(reading[1]).rejects.toBeInstanceOf(OverloadedError)
    await users.unlock()
    expect((await settled).map(({ status }) => status)).toEqual(['fulfilled', 'rejected'])
  })
})
