import type { Redis } from 'ioredis'
import { runInLoop } from 'loadstone'
import { expectTrips, type HeldStep, holdSteps } from 'loadstone/testing'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { startRedis } from '../servers/redis.ts'
import { closeRedis, testRedis } from '../support/redis.ts'
import { openCache, openShop, range, type Shop, type ShopCache } from './shop.ts'

let shop: Shop
beforeAll(async () => {
  shop = await openShop()
})
afterAll(async () => {
  await closeRedis()
  await shop.close()
})

describe('scopes that dispatch in the same tick', () => {
  let redis: Redis
  let opened: ShopCache

  // A server of their own, as its commands are counted.
  beforeEach(async () => {
    const server = await startRedis()
    const client = testRedis({ url: server.url })
    redis = client.redis
    opened = openCache(shop, client)
    onTestFinished(async () => {
      await opened.cache.close()
      redis.disconnect()
      await server.stop()
    })
    await opened.cache.ready()
  })

  const page = (first: number) =>
    runInLoop(() => Promise.all(range(20, first).map((id) => opened.User.cache.getAsync({ id }))))()

  /** How often the server was asked for values since it started. */
  async function mgets(): Promise<number> {
    return Number(/cmdstat_mget:calls=(\d+)/.exec(await redis.info('commandstats'))?.[1] ?? 0)
  }

  test('share a wave: 64 of them with 20 keys each are two commands, cold ones one statement each', async () => {
    const pages = () => Promise.all(range(64).map(page))
    const cold = await expectTrips(opened.cache, { mget: 2, acquire: 2, select: 2, fill: 2 }, pages)
    const before = await mgets()
    const warm = await expectTrips(opened.cache, { mget: 2 }, pages)
    expect((await mgets()) - before).toBe(2)
    expect(warm).toEqual(cold)
    warm.forEach((rows, i) => {
      expect(rows.map(({ id }) => id)).toEqual(range(20, i + 1))
    })
  })

  test('have rows of their own', async () => {
    const load = async () => {
      const [[mine], [theirs]] = (await Promise.all([page(1), page(1)])) as [
        { id: number }[],
        { id: number }[],
      ]
      Object.assign(mine as object, { first_name: 'mine alone' })
      return theirs
    }
    for (const trips of [{ mget: 1, acquire: 1, select: 1, fill: 1 }, { mget: 1 }])
      expect(await expectTrips(opened.cache, trips, load)).toMatchObject({ first_name: 'name 1' })
  })

  test('keep to what each of them wants: without the store, one absent, one failing', async () => {
    const { cache, User } = opened
    await page(1)
    const apart = runInLoop(() => User.cache.getAsync({ id: 1 }), { store: false })
    const absent = runInLoop(() => User.cache.getAsyncOrNone({ id: 9999 }))
    const missing = runInLoop(() => User.cache.getAsync({ id: 9999 }))
    const bad = runInLoop(() => User.cache.getAsync({ id: 'x' as never }))
    const settled = await expectTrips(cache, { mget: 1, acquire: 1, select: 2, fill: 1 }, () =>
      Promise.allSettled([apart(), absent(), missing(), bad()]),
    )
    expect(settled).toMatchObject([
      { value: { id: 1 } },
      { value: null },
      { reason: { name: 'NotFoundError' } },
      { reason: { name: 'InvalidKeyError' } },
    ])
  })

  test('a wave of 10,000 keys holds nobody up: it goes to the store in turns, and apart from the others', async () => {
    const { User } = opened
    await page(1)
    await opened.cache.idle()
    const steps = holdSteps(opened.cache)
    const large = runInLoop(() => Promise.all(range(10_000).map((id) => User.cache.getAsyncOrNone({ id }))))()
    const beside = runInLoop(() => User.cache.getAsync({ id: 3 }))()
    const look = await steps.next('getMany')
    expect(look.step).toMatchObject({ keys: [expect.stringMatching(/users:id:3$/)] })
    await look.take()
    expect(await beside).toMatchObject({ id: 3 })

    const turn = await steps.next('getMany')
    expect(turn.step).toHaveProperty('keys.length', 1000)
    await turn.take()
    const later = runInLoop(() => User.cache.getAsync({ id: 4 }))()
    await expect.poll(() => steps.held.length).toBe(2)
    const keysOf = ({ step }: HeldStep) => (step.op === 'getMany' ? step.keys.length : 0)
    const [ofLater, nextTurn] = [...steps.held].sort((a, b) => keysOf(a) - keysOf(b))
    expect(nextTurn?.step).toHaveProperty('keys.length', 1000)
    await ofLater?.take()
    expect(await later).toMatchObject({ id: 4 })

    steps.release()
    expect((await large).filter((row) => row !== null)).toHaveLength(200)
  })

  test('a large wave whose store fails in between keeps what it has, and SQL answers the rest', async () => {
    const { cache, User } = opened
    const read = runInLoop(() => Promise.all(range(2500).map((id) => User.cache.getAsyncOrNone({ id }))))
    const cold = await read()
    await cache.idle()
    const before = cache.stats()
    const steps = holdSteps(cache)
    const reading = read()
    await steps.take('getMany')
    const turn = await steps.next('getMany')
    turn.fail(new Error('gone'))
    const select = await steps.next('select')
    expect(select.step).toHaveProperty('keys.length', 1500)
    await select.take()
    expect(await reading).toEqual(cold)
    steps.release()
    await cache.idle()
    const { hits, absents, storeErrors, trips } = cache.stats()
    expect(hits + absents - before.hits - before.absents).toBe(1000)
    expect(storeErrors - before.storeErrors).toBe(1)
    expect(trips.select - before.trips.select).toBe(1)
  })
})
