import type { Redis } from 'ioredis'
import { runInLoop } from 'loadstone'
import { expectTrips, holdSteps, type Steps } from 'loadstone/testing'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { isLeaseRecord } from '../../src/stores/entry.ts'
import { startRedis } from '../servers/redis.ts'
import { closeRedis, testRedis } from '../support/redis.ts'
import { openCache, openShop, type Shop, type ShopCache } from './shop.ts'

const COLD = { mget: 1, acquire: 1, select: 1, fill: 1 }
const WARM = { mget: 1 }
/** A reader that waits for somebody else's lease looks again so many times, and then asks SQL. */
const WAITED_OUT = { mget: 6, select: 1 }

let shop: Shop
beforeAll(async () => {
  shop = await openShop()
})
afterAll(async () => {
  await closeRedis()
  await shop.close()
})

let redis: Redis
let namespace: string
/** Two processes, so to speak: two caches of one namespace on one server. */
let mine: ShopCache
let theirs: ShopCache
let key: string

beforeEach(async () => {
  const opened = testRedis()
  redis = opened.redis
  namespace = opened.namespace
  key = `${namespace}:users:id:1`
  mine = await open()
  theirs = await open()
  await rename('old')
})

async function open(options: Parameters<typeof openCache>[1] = {}): Promise<ShopCache> {
  const opened = openCache(shop, { redis, namespace, ...options })
  onTestFinished(() => opened.cache.close())
  await opened.cache.ready()
  return opened
}

/** Each read is a request of its own. */
function read({ User }: ShopCache): Promise<string> {
  return runInLoop(() => User.cache.getAsync({ id: 1 }))().then(({ first_name }) => first_name)
}

async function rename(name: string): Promise<void> {
  await shop.database.pool.query('update users set first_name = $1 where id = 1', [name])
}

/** What a write through Loadstone comes to: commit, then clear. */
async function write(name: string): Promise<void> {
  await rename(name)
  await theirs.User.cache.invalidate({ id: 1 })
}

/** What is looked up after it is in another wave. */
function turnOfEventLoop(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/** Takes a reader up to a step of its wave, and leaves it there. */
async function takeUpTo(steps: Steps, op: 'acquire' | 'select' | 'fill') {
  for (const each of ['getMany', 'acquire', 'select'] as const) {
    if (each === op) break
    await steps.take(each)
  }
  return steps.next(op)
}

describe('a load', () => {
  test('sends its SQL only after the lease was granted', async () => {
    const steps = holdSteps(mine.cache)
    const reading = read(mine)
    await steps.take('getMany')
    const acquire = await steps.next()
    expect(acquire.op).toBe('acquire')
    await new Promise(setImmediate)
    expect(steps.held.map(({ op }) => op)).toEqual(['acquire'])
    await acquire.take()
    expect((await steps.next()).op).toBe('select')
    expect(isLeaseRecord((await redis.getBuffer(key)) as Buffer)).toBe(true)
    steps.release()
    expect(await reading).toBe('old')
  })

  test('answers before it fills: callers do not wait for the store', async () => {
    const steps = holdSteps(mine.cache)
    const reading = read(mine)
    const fill = await takeUpTo(steps, 'fill')
    expect(await reading).toBe('old')
    await fill.take()
  })

  test('whose fill fails has answered, and the key is loaded again when the lease is over', async () => {
    const steps = holdSteps(mine.cache)
    const reading = read(mine)
    const fill = await takeUpTo(steps, 'fill')
    fill.fail(new Error('the network is down'))
    steps.release()
    expect(await reading).toBe('old')
    await mine.cache.idle()
    expect(mine.cache.stats().storeErrors).toBe(1)
    expect(await expectTrips(mine.cache, WAITED_OUT, () => read(mine))).toBe('old')
    await redis.pexpire(key, 0)
    expect(await expectTrips(mine.cache, COLD, () => read(mine))).toBe('old')
  })

  test('whose lease was not granted in time answers from SQL, and fills nothing', async () => {
    const steps = holdSteps(mine.cache)
    const reading = read(mine)
    const acquire = await takeUpTo(steps, 'acquire')
    acquire.fail(new Error('no answer within 50 ms'))
    steps.release()
    expect(await expectTrips(mine.cache, {}, () => reading)).toBe('old')
    expect(mine.cache.stats()).toMatchObject({ storeErrors: 1, trips: { mget: 1, select: 1, fill: 0 } })
    expect(await redis.exists(key)).toBe(0)
  })

  test('of which one statement is slow fills the others without waiting for it', async () => {
    const locked = await shop.database.pool.connect()
    try {
      await locked.query('begin; lock table products in access exclusive mode')
      const { product, user } = runInLoop(() => ({
        product: mine.Product.cache.getAsync({ id: 1 }),
        user: mine.User.cache.getAsync({ id: 1 }),
      }))()
      await user
      await expect.poll(() => redis.get(key), { timeout: 5000 }).toMatch(/^V/)
      await locked.query('commit')
      await product
    } finally {
      await locked.query('rollback')
      locked.release()
    }
    await mine.cache.idle()
    await expectTrips(mine.cache, WARM, () => mine.Product.cache.getAsync({ id: 1 }))
  })
})

describe('a write during a load', () => {
  test('before its SQL: the new row is answered, and not filled', async () => {
    const steps = holdSteps(mine.cache)
    const reading = read(mine)
    await takeUpTo(steps, 'select')
    await write('new')
    steps.release()
    expect(await reading).toBe('new')
    await mine.cache.idle()
    expect(await redis.exists(key)).toBe(0)
  })

  test('between its SQL and its fill: the old row is kept out', async () => {
    const steps = holdSteps(mine.cache)
    const reading = read(mine)
    const fill = await takeUpTo(steps, 'fill')
    await write('new')
    await fill.take()
    steps.release()
    expect(await reading).toBe('old') // it began before the write returned
    expect(await redis.exists(key)).toBe(0)
    expect(await expectTrips(theirs.cache, COLD, () => read(theirs))).toBe('new')
  })

  test('after its lease expired: the old row is kept out', async () => {
    const steps = holdSteps(mine.cache)
    const reading = read(mine)
    const fill = await takeUpTo(steps, 'fill')
    await redis.pexpire(key, 0)
    await write('new')
    await fill.take()
    steps.release()
    await reading
    expect(await redis.exists(key)).toBe(0)
    expect(await read(theirs)).toBe('new')
  })

  test('after its lease expired and another reader was given one: the old row is kept out, the new one goes in', async () => {
    const [mySteps, theirSteps] = [holdSteps(mine.cache), holdSteps(theirs.cache)]
    const reading = read(mine)
    const oldFill = await takeUpTo(mySteps, 'fill')
    await redis.pexpire(key, 0)
    await write('new')
    const theirReading = read(theirs)
    const newFill = await takeUpTo(theirSteps, 'fill')
    await oldFill.take()
    await newFill.take()
    mySteps.release()
    theirSteps.release()
    expect([await reading, await theirReading]).toEqual(['old', 'new'])
    expect(await expectTrips(mine.cache, WARM, () => read(mine))).toBe('new')
  })

  test('of a list: the old list is kept out', async () => {
    const list = (cache: ShopCache) =>
      runInLoop(() => cache.User.cache.filterAsync({ org_id: 77, role: 'admin' }))()
    const steps = holdSteps(mine.cache)
    const reading = list(mine)
    const fill = await takeUpTo(steps, 'fill')
    await shop.database.pool.query("insert into users values (7777, 'x@shop.test', 'x', 77, 'admin')")
    await theirs.User.cache.invalidate({ org_id: 77, role: 'admin' })
    await fill.take()
    steps.release()
    expect(await reading).toEqual([])
    expect(await list(theirs)).toHaveLength(1)
    await shop.database.pool.query('delete from users where id = 7777')
  })
})

describe('a load of another process that takes longer than the wait', () => {
  /** Their load, and 20 readers here that have seen its lease. */
  async function herd() {
    const theirSteps = holdSteps(theirs.cache)
    const their = read(theirs)
    await takeUpTo(theirSteps, 'select')
    const steps = holdSteps(mine.cache)
    const readers: Promise<string>[] = []
    // One after the other, so that each has a wave of its own.
    for (let i = 0; i < 20; i++) {
      readers.push(read(mine))
      await steps.take('getMany')
    }
    await steps.next('join')
    return { their, theirSteps, steps, readers }
  }

  test('costs one statement for all who wait in a process', async () => {
    const { their, theirSteps, steps, readers } = await herd()
    steps.release()
    expect(new Set(await Promise.all(readers))).toEqual(new Set(['old']))
    await mine.cache.idle()
    expect(mine.cache.stats()).toMatchObject({ joined: 19, waitedOut: 1, trips: { select: 1, fill: 0 } })
    theirSteps.release()
    await their
  })

  test('costs none when it arrives while one of them looks for it', async () => {
    const { their, theirSteps, steps, readers } = await herd()
    theirSteps.release()
    await their
    await theirs.cache.idle()
    steps.release()
    expect(new Set(await Promise.all(readers))).toEqual(new Set(['old']))
    await mine.cache.idle()
    expect(mine.cache.stats()).toMatchObject({ joined: 19, trips: { select: 0 } })
  })

  test('is not joined by who no longer sees its lease: a write came between', async () => {
    const { their, theirSteps, steps, readers } = await herd()
    await write('new')
    const late = read(mine)
    await steps.take('getMany')
    await steps.take('acquire')
    await steps.take('select')
    expect(await late).toBe('new')
    steps.release()
    theirSteps.release()
    await Promise.all([their, ...readers])
  })
})

describe('a second reader in the same process', () => {
  test('that sees the lease of a load in flight joins it: one statement', async () => {
    const steps = holdSteps(mine.cache)
    const first = read(mine)
    await takeUpTo(steps, 'select')
    const second = read(mine)
    await steps.take('getMany')
    expect((await steps.next('join')).op).toBe('join')
    steps.release()
    expect(await Promise.all([first, second])).toEqual(['old', 'old'])
    await mine.cache.idle()
    expect(mine.cache.stats()).toMatchObject({
      joined: 1,
      trips: { mget: 2, acquire: 1, select: 1, fill: 1 },
    })
  })

  test('that is refused a lease because of a load in flight joins it', async () => {
    const steps = holdSteps(mine.cache)
    const first = read(mine)
    const firstLook = await steps.next('getMany')
    const second = read(mine)
    await turnOfEventLoop()
    await firstLook.take()
    await steps.take('getMany')
    await steps.take('acquire')
    await steps.take('acquire')
    await steps.next('join')
    steps.release()
    await Promise.all([first, second])
    await mine.cache.idle()
    expect(mine.cache.stats()).toMatchObject({
      joined: 1,
      trips: { mget: 2, acquire: 2, select: 1, fill: 1 },
    })
  })

  test('joins also between SQL and fill, as long as the lease stands', async () => {
    const steps = holdSteps(mine.cache)
    const first = read(mine)
    await takeUpTo(steps, 'fill')
    await first
    const second = read(mine)
    await steps.take('getMany')
    await steps.take('join')
    expect(await second).toBe('old')
    steps.release()
  })

  test('that sees no lease, because a write took it away, does not join: it reads the new row', async () => {
    const steps = holdSteps(mine.cache)
    const first = read(mine)
    const oldFill = await takeUpTo(steps, 'fill')
    await write('new')
    const second = read(mine)
    await steps.take('getMany')
    await steps.take('acquire')
    await steps.take('select')
    expect(await second).toBe('new')
    await oldFill.take()
    steps.release()
    expect(await first).toBe('old')
    await mine.cache.idle()
    expect(mine.cache.stats()).toMatchObject({ joined: 0, trips: { select: 2 } })
    expect(await expectTrips(theirs.cache, WARM, () => read(theirs))).toBe('new')
  })

  test("that sees another process' lease does not join its own older load", async () => {
    const [mySteps, theirSteps] = [holdSteps(mine.cache), holdSteps(theirs.cache)]
    const first = read(mine)
    await takeUpTo(mySteps, 'fill')
    await write('new')
    const other = read(theirs)
    await takeUpTo(theirSteps, 'select')
    const second = read(mine)
    await mySteps.take('getMany')
    expect((await mySteps.next('sleep')).op).toBe('sleep')
    theirSteps.release()
    expect(await other).toBe('new')
    mySteps.release()
    expect(await second).toBe('new')
    expect(await first).toBe('old')
    expect(mine.cache.stats().joined).toBe(0)
  })

  test('gets rows of its own', async () => {
    const steps = holdSteps(mine.cache)
    const row = runInLoop(() => mine.User.cache.getAsync({ id: 1 }))
    const first = row()
    await steps.take('getMany')
    await steps.take('acquire')
    const second = row()
    await steps.take('getMany')
    await steps.next('join')
    steps.release()
    expect(await first).toEqual(await second)
    expect(await first).not.toBe(await second)
  })

  test('shares the error of the load it joined, and the next one asks again', async () => {
    const steps = holdSteps(mine.cache)
    const first = read(mine)
    const select = await takeUpTo(steps, 'select')
    const second = read(mine)
    await steps.take('getMany')
    await steps.next('join')
    select.fail(new Error('connection terminated'))
    steps.release()
    const results = await Promise.allSettled([first, second])
    expect(results.map((result) => String((result as PromiseRejectedResult).reason))).toEqual([
      expect.stringContaining('connection terminated'),
      expect.stringContaining('connection terminated'),
    ])
    await mine.cache.idle()
    expect(await expectTrips(mine.cache, COLD, () => read(mine))).toBe('old')
  })

  test('that joins a load whose value cannot be shared reads for itself', async () => {
    const small = await open({ maxValueBytes: 1 })
    const steps = holdSteps(small.cache)
    const first = read(small)
    await takeUpTo(steps, 'select')
    const second = read(small)
    await steps.take('getMany')
    await steps.next('join')
    steps.release()
    expect(await Promise.all([first, second])).toEqual(['old', 'old'])
    await small.cache.idle()
    expect(small.cache.stats()).toMatchObject({ joined: 1, trips: { select: 2 } })
  })

  test('that joins a load which breaks down by a fault of ours reads for itself', async () => {
    const { hook } = insidesOf(mine.cache)
    let breakDown: (() => void) | undefined
    let joined: (() => void) | undefined
    const joining = new Promise<void>((resolve) => {
      joined = resolve
    })
    hook.gate = (step, take) => {
      if (step.op === 'join') joined?.()
      if (step.op !== 'select' || breakDown) return take()
      return new Promise((resolve) => {
        breakDown = () => resolve([]) // a list per key is what a source promises
      })
    }
    const first = read(mine)
    await expect.poll(() => breakDown).toBeDefined()
    const second = read(mine)
    await joining
    breakDown?.()
    await expect(first).rejects.toBeInstanceOf(TypeError)
    expect(await second).toBe('old')
  })

  test('outside of any scope, 100 in a row while one loads: one statement', async () => {
    const steps = holdSteps(mine.cache)
    const first = read(mine)
    await takeUpTo(steps, 'select')
    const later: Promise<string>[] = []
    for (let i = 0; i < 100; i++) {
      later.push(read(mine))
      await steps.take('getMany')
    }
    steps.release()
    await Promise.all([first, ...later])
    await mine.cache.idle()
    expect(mine.cache.stats().trips.select).toBe(1)
  })
})

describe("another process' lease", () => {
  test('is waited for: its value is a hit', async () => {
    const [mySteps, theirSteps] = [holdSteps(mine.cache), holdSteps(theirs.cache)]
    const their = read(theirs)
    await takeUpTo(theirSteps, 'select')
    const my = read(mine)
    await mySteps.take('getMany')
    const sleep = await mySteps.next('sleep')
    theirSteps.release()
    await their
    await theirs.cache.idle()
    await sleep.take()
    await mySteps.take('getMany')
    expect(await my).toBe('old')
    await mine.cache.idle()
    expect(mine.cache.stats()).toMatchObject({ waitedOut: 0, hits: 1, trips: { mget: 2, select: 0 } })
  })

  test('is waited for briefly, then SQL answers and nothing is filled', async () => {
    const theirSteps = holdSteps(theirs.cache)
    const their = read(theirs)
    await takeUpTo(theirSteps, 'select')
    expect(await expectTrips(mine.cache, WAITED_OUT, () => read(mine))).toBe('old')
    expect(mine.cache.stats().waitedOut).toBe(1)
    expect(await redis.get(key)).toMatch(/^L/)
    theirSteps.release()
    await their
  })

  test('that ends while it is waited for is taken over', async () => {
    const [mySteps, theirSteps] = [holdSteps(mine.cache), holdSteps(theirs.cache)]
    const their = read(theirs)
    await takeUpTo(theirSteps, 'select')
    const my = read(mine)
    await mySteps.take('getMany')
    await redis.pexpire(key, 0)
    await mySteps.take('sleep')
    await mySteps.take('getMany')
    expect((await mySteps.next()).op).toBe('acquire')
    mySteps.release()
    expect(await my).toBe('old')
    theirSteps.release()
    await their
    await mine.cache.idle()
    expect(await redis.get(key)).toMatch(/^V/)
  })

  test('does not hold up the other keys of a wave', async () => {
    const theirSteps = holdSteps(theirs.cache)
    const their = read(theirs)
    await takeUpTo(theirSteps, 'select')
    const mySteps = holdSteps(mine.cache)
    const [waiting, other] = runInLoop(() => [
      mine.User.cache.getAsync({ id: 1 }),
      mine.User.cache.getAsync({ id: 2 }),
    ])()
    await mySteps.take('getMany')
    await mySteps.take('acquire')
    await mySteps.take('select')
    expect(await other).toMatchObject({ id: 2 })
    expect(mySteps.held.map(({ op }) => op)).toEqual(['sleep'])
    mySteps.release()
    await waiting
    theirSteps.release()
    await their
  })

  test('with the store failing meanwhile: SQL answers', async () => {
    const [mySteps, theirSteps] = [holdSteps(mine.cache), holdSteps(theirs.cache)]
    const their = read(theirs)
    await takeUpTo(theirSteps, 'select')
    const my = read(mine)
    await mySteps.take('getMany')
    await mySteps.take('sleep')
    ;(await mySteps.next('getMany')).fail(new Error('gone'))
    mySteps.release()
    theirSteps.release()
    expect(await Promise.all([my, their])).toEqual(['old', 'old'])
    await mine.cache.idle()
    expect(mine.cache.stats()).toMatchObject({ storeErrors: 1, trips: { acquire: 0, select: 1, fill: 0 } })
  })
})

describe("a writer's intent", () => {
  const INTENT = `W${'somebodys-intent'}${'9'.repeat(13)}`

  test('is waited for briefly, then SQL answers and nothing is filled', async () => {
    await redis.set(key, INTENT, 'PX', 60_000)
    expect(await expectTrips(mine.cache, WAITED_OUT, () => read(mine))).toBe('old')
    expect(await redis.get(key)).toBe(INTENT)
  })

  test('that is gone while it is waited for: the new row is loaded and filled', async () => {
    await redis.set(key, INTENT, 'PX', 60_000)
    const steps = holdSteps(mine.cache)
    const reading = read(mine)
    await steps.take('getMany')
    await steps.next('sleep')
    await rename('new')
    await redis.del(key)
    steps.release()
    expect(await reading).toBe('new')
    await mine.cache.idle()
    expect(await redis.get(key)).toMatch(/^V/)
  })
})

describe('old and new code side by side', () => {
  test("new code takes older code's value over", async () => {
    const newer = await open({ version: 1 })
    await read(mine)
    await mine.cache.idle()
    expect(await expectTrips(newer.cache, COLD, () => read(newer))).toBe('old')
    expect(await expectTrips(newer.cache, WARM, () => read(newer))).toBe('old')
  })

  test("older code leaves newer code's value alone: SQL at once, and no fill", async () => {
    const newer = await open({ version: 1 })
    await read(newer)
    await newer.cache.idle()
    const record = await redis.getBuffer(key)
    expect(await expectTrips(mine.cache, { mget: 1, select: 1 }, () => read(mine))).toBe('old')
    expect(await redis.getBuffer(key)).toEqual(record)
    expect(await expectTrips(newer.cache, WARM, () => read(newer))).toBe('old')
  })

  test("each one's writes reach the other's values", async () => {
    const newer = await open({ version: 1 })
    await read(newer)
    await newer.cache.idle()
    await write('new')
    expect(await expectTrips(newer.cache, COLD, () => read(newer))).toBe('new')
  })

  test('an absence known to other code is treated the same way', async () => {
    const newer = await open({ version: 1 })
    const absent = ({ User }: ShopCache) => User.cache.getAsyncOrNone({ id: 12_345 })
    await absent(newer)
    await newer.cache.idle()
    expect(await expectTrips(mine.cache, { mget: 1, select: 1 }, () => absent(mine))).toBeNull()
  })
})

describe('a Redis that forgets', () => {
  // A snapshot is what a replica is, that takes over without having heard of the last commands.
  test('who took a lease away: its load is neither filled nor joined', async () => {
    const server = await startRedis()
    onTestFinished(server.stop)
    const client = testRedis({ url: server.url })
    client.redis.on('error', () => {})
    const forgetful = await open({ redis: client.redis, namespace: client.namespace })

    const steps = holdSteps(forgetful.cache)
    const first = read(forgetful)
    const fill = await takeUpTo(steps, 'fill')
    await client.redis.save()
    await rename('new')
    await forgetful.User.cache.invalidate({ id: 1 })
    await server.kill()
    await server.restart()
    await expect
      .poll(() => forgetful.User.cache.invalidate({ id: 2 }).then(() => 'connected', String))
      .toBe('connected')
    expect(await client.redis.get(`${client.namespace}:users:id:1`)).toMatch(/^L/)

    const second = read(forgetful)
    await steps.take('getMany')
    steps.release()
    expect(await second).toBe('new')
    await fill.take()
    expect(await first).toBe('old')
    expect(await client.redis.get(`${client.namespace}:users:id:1`)).toMatch(/^L/)
  })
})
