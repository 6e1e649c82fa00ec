import { runInLoop } from 'loadstone'
import { expectTrips, holdSteps } from 'loadstone/testing'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { openCache, openShop, range, type Shop, type ShopCache } from '../loaders/shop.ts'

const COLD = { mget: 1, acquire: 1, select: 1, fill: 1 }
const WARM = { mget: 1 }

let shop: Shop
let clock: { now: number }
let opened: ShopCache
beforeAll(async () => {
  shop = await openShop()
})
afterAll(() => shop.close())

beforeEach(async () => {
  clock = { now: 0 }
  opened = openCache(shop, { memory: { now: () => clock.now, maxEntries: 1000 }, ttl: '1h' })
  await opened.cache.ready()
  return () => opened.cache.close()
})

describe('a cache without Redis', () => {
  test('takes the same steps, with a store inside the process', async () => {
    const { cache, User, Order } = opened
    const page = runInLoop(() =>
      Promise.all([
        User.cache.getAsync({ id: 1 }),
        User.cache.getAsyncOrNone({ email: 'nobody' }),
        Order.cache.filterAsync({ user_id: 1 }),
      ]),
    )
    const cold = await expectTrips(cache, { ...COLD, select: 3 }, page)
    expect(await expectTrips(cache, WARM, page)).toEqual(cold)
  })

  test('rows of two scopes are two', async () => {
    const read = runInLoop(() => opened.User.cache.getAsync({ id: 1 }))
    const one = await read()
    await opened.cache.idle()
    const [two, three] = await Promise.all([read(), read()])
    expect([two, three]).toEqual([one, one])
    expect(new Set([one, two, three]).size).toBe(3)
  })

  test('a value ends after its ttl, by up to a tenth earlier', async () => {
    const read = runInLoop(() => opened.User.cache.getAsync({ id: 1 }))
    await expectTrips(opened.cache, COLD, read)
    clock.now += 0.9 * 3_600_000 - 1
    await expectTrips(opened.cache, WARM, read)
    clock.now += 0.1 * 3_600_000 + 2
    await expectTrips(opened.cache, COLD, read)
  })

  test('what is known to be absent ends after negativeTtl', async () => {
    const brief = openCache(shop, { memory: { now: () => clock.now }, ttl: '7d' })
    onTestFinished(() => brief.cache.close())
    await brief.cache.ready()
    const read = runInLoop(() => brief.User.cache.getAsyncOrNone({ id: 5000 }))
    await expectTrips(brief.cache, COLD, read)
    clock.now += 0.9 * 3_600_000 - 1
    await expectTrips(brief.cache, WARM, read)
    clock.now += 0.1 * 3_600_000 + 2
    await expectTrips(brief.cache, COLD, read)
  })

  test('an old row is kept out when a write came between its SQL and its fill', async () => {
    const { cache, User } = opened
    const read = runInLoop(() => User.cache.getAsync({ id: 2 }))
    const steps = holdSteps(cache)
    const reading = read()
    for (const op of ['getMany', 'acquire', 'select'] as const) await steps.take(op)
    const fill = await steps.next('fill')
    await shop.database.pool.query("update users set first_name = 'renamed' where id = 2")
    await User.cache.invalidate({ id: 2 })
    await fill.take()
    steps.release()
    expect((await reading).first_name).toBe('name 2')
    expect((await read()).first_name).toBe('renamed')
  })

  test('a lease that was never filled ends after leaseTtl', async () => {
    const { cache, User } = opened
    const read = runInLoop(() => User.cache.getAsync({ id: 3 }))
    const steps = holdSteps(cache)
    const reading = read()
    for (const op of ['getMany', 'acquire', 'select'] as const) await steps.take(op)
    ;(await steps.next('fill')).fail(new Error('lost'))
    steps.release()
    await reading
    await cache.idle()
    clock.now += 6001
    await expectTrips(cache, COLD, read)
  })

  test('keeps as much as it is told to', async () => {
    const { cache, User } = opened
    const read = (ids: readonly number[]) =>
      runInLoop(() => Promise.all(ids.map((id) => User.cache.getAsyncOrNone({ id }))))
    await read(range(1500))()
    await cache.idle()
    await expectTrips(cache, WARM, read(range(500, 1001)))
    await expectTrips(cache, COLD, read([1]))
  })

  test('forgets a model with clear(), and everything with close()', async () => {
    const { cache, User, Product } = opened
    const read = runInLoop(() =>
      Promise.all([User.cache.getAsync({ id: 1 }), Product.cache.getAsync({ id: 1 })]),
    )
    await read()
    await cache.idle()
    await User.cache.clear()
    await expectTrips(cache, COLD, read)
  })
})
