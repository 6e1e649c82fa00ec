import { AssertionError } from 'node:assert'
import { createModelCache, runInLoop } from 'loadstone'
import { expectTrips, holdSteps } from 'loadstone/testing'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { openCache, openShop, type Shop, type ShopCache } from '../loaders/shop.ts'

const COLD = { mget: 1, acquire: 1, select: 1, fill: 1 }

let shop: Shop
let opened: ShopCache
let cache: ShopCache['cache']
let read: () => Promise<{ id: number }>
beforeAll(async () => {
  shop = await openShop()
})
afterAll(() => shop.close())
beforeEach(async () => {
  opened = openCache(shop)
  cache = opened.cache
  await cache.ready()
  read = runInLoop(() => opened.User.cache.getAsync({ id: 1 }))
  return () => cache.close()
})

/** What is looked up in one tick is one wave. */
function inAnotherTick(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

describe('expectTrips', () => {
  test('returns what the function returned, after the fills', async () => {
    expect(await expectTrips(cache, COLD, read)).toMatchObject({ id: 1 })
    expect(await expectTrips(cache, {}, () => 42)).toBe(42)
  })

  test.each([
    ['too few', { ...COLD, select: 2 }],
    ['too many', { ...COLD, select: 0 }],
    ['a kind that is not named', { mget: 1, acquire: 1, select: 1 }],
  ])('%s: throws, with what was expected and what was made', async (_, expected) => {
    const error: unknown = await expectTrips(cache, expected, read).catch((reason) => reason)
    expect(error).toBeInstanceOf(AssertionError)
    const { acquire = 0, fill = 0, mget = 0, select = 0 } = { fill: 0, ...expected }
    expect(error).toMatchObject({
      actual: COLD,
      expected: { mget, acquire, fill, select },
      message: `expected the trips mget ${mget}, acquire ${acquire}, fill ${fill}, select ${select}, load 0, but made mget 1, acquire 1, fill 1, select 1, load 0`,
    })
  })

  test('does not count what was under way before', async () => {
    const before = read()
    await new Promise(setImmediate)
    await expectTrips(cache, {}, () => undefined)
    await before
  })

  test('what the function rejects with comes through', async () => {
    await expect(expectTrips(cache, {}, () => Promise.reject(new RangeError('mine')))).rejects.toThrow(
      RangeError,
    )
  })
})

describe('holdSteps', () => {
  test('holds every step until the test takes it', async () => {
    const steps = holdSteps(cache)
    const reading = read()
    const taken: string[] = []
    for (let i = 0; i < 4; i++) {
      const step = await steps.next()
      expect(steps.held).toEqual([step])
      taken.push(step.op)
      await step.take()
    }
    expect(taken).toEqual(['getMany', 'acquire', 'select', 'fill'])
    expect(steps.held).toEqual([])
    await reading
  })

  test('shows what the wave asks for', async () => {
    const steps = holdSteps(cache)
    const reading = read()
    expect((await steps.next()).step).toEqual({ op: 'getMany', keys: ['shop:users:id:1'] })
    await steps.take('getMany')
    expect((await steps.next()).step).toMatchObject({ op: 'acquire', leaseMs: 6000 })
    await steps.take('acquire')
    expect((await steps.next()).step).toMatchObject({ op: 'select', keys: [['1']] })
    steps.release()
    await reading
  })

  test('nothing is sent while a step is held', async () => {
    const steps = holdSteps(cache)
    const reading = read()
    await steps.take('getMany')
    await steps.take('acquire')
    shop.statements.length = 0
    await steps.next('select')
    await new Promise(setImmediate)
    expect(shop.statements).toEqual([])
    await steps.take('select')
    expect(shop.statements).toHaveLength(1)
    steps.release()
    await reading
  })

  test('takes steps of two waves in any order', async () => {
    const steps = holdSteps(cache)
    const one = read()
    await inAnotherTick()
    const other = runInLoop(() => opened.Product.cache.getAsync({ id: 1 }))()
    await steps.take('getMany')
    await steps.take('getMany')
    const [first, second] = [await steps.next('acquire'), steps.held[1]]
    await second?.take()
    await steps.take('select')
    expect(await other).toMatchObject({ sku: 'sku-1' })
    await first.take()
    steps.release()
    expect(await one).toMatchObject({ id: 1 })
  })

  test('two who wait for a step get one each', async () => {
    const steps = holdSteps(cache)
    const waiting = [steps.take('getMany'), steps.take('getMany')]
    const one = read()
    await inAnotherTick()
    const reading = [one, read()]
    await Promise.all(waiting)
    steps.release()
    await Promise.all(reading)
  })

  test('two who take a step that is there already take two', async () => {
    const steps = holdSteps(cache)
    const one = read()
    await inAnotherTick()
    const reading = [one, read()]
    await steps.next()
    await expect.poll(() => steps.held.length).toBe(2)
    await Promise.all([steps.take('getMany'), steps.take('getMany')])
    expect((await steps.next()).op).toBe('acquire')
    steps.release()
    await Promise.all(reading)
    await cache.idle()
    expect(cache.stats().trips.mget).toBe(2)
  })

  test('fail: the wave goes on as if the step had failed, and it is not taken', async () => {
    const steps = holdSteps(cache)
    const reading = read()
    await steps.take('getMany')
    await steps.take('acquire')
    ;(await steps.next('select')).fail(new Error('connection terminated'))
    steps.release()
    await expect(reading).rejects.toMatchObject({ code: 'ERR_SOURCE', message: /connection terminated/ })
    expect(cache.stats().trips.select).toBe(0)
  })

  test('a step that failed for real fails the wave, not the test', async () => {
    await shop.database.pool.query('alter table users rename to users_away')
    try {
      const steps = holdSteps(cache)
      const reading = read()
      reading.catch(() => undefined)
      await steps.take('getMany')
      await steps.take('acquire')
      await steps.take('select')
      steps.release()
      await expect(reading).rejects.toMatchObject({ code: 'ERR_SOURCE' })
    } finally {
      await shop.database.pool.query('alter table users_away rename to users')
    }
  })

  test('release lets all go on, and holds no more', async () => {
    const steps = holdSteps(cache)
    const reading = read()
    await steps.next()
    steps.release()
    expect(await reading).toMatchObject({ id: 1 })
    await expectTrips(cache, { mget: 1 }, read)
  })

  test('of something that is no cache: says so', () => {
    expect(() => holdSteps({ ...cache })).toThrow(/'cache' must be made by createModelCache/)
  })

  test('holds the steps of one cache only', async () => {
    const other = createModelCache({ db: shop.db, namespace: 'other', relay: false })
    const User = other.model('users', { keyFields: [['id']] })
    const steps = holdSteps(cache)
    expect(await User.cache.getAsync({ id: 1 })).toMatchObject({ id: 1 })
    expect(steps.held).toEqual([])
    await other.close()
  })
})
