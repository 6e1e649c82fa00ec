import { channel } from 'node:diagnostics_channel'
import { runInLoop, type WaveMessage } from 'loadstone'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { closeRedis, testRedis } from '../support/redis.ts'
import { openCache, openShop, range, type Shop, type ShopCache } from './shop.ts'

let shop: Shop
let opened: ShopCache
let namespace: string
beforeAll(async () => {
  shop = await openShop()
})
afterAll(async () => {
  await closeRedis()
  await shop.close()
})
beforeEach(async () => {
  const client = testRedis()
  namespace = client.namespace
  opened = openCache(shop, client)
  await opened.cache.ready()
  return () => opened.cache.close()
})

/** Two shapes and a memo hit; of each shape one key is there and one is not. */
const page = runInLoop(() => {
  const { User, Product } = opened
  return Promise.all([
    User.cache.getAsyncOrNone({ id: 1 }),
    User.cache.getAsyncOrNone({ id: 1 }),
    User.cache.getAsyncOrNone({ id: 5000 }),
    Product.cache.getAsyncOrNone({ sku: 'sku-1' }),
    Product.cache.getAsyncOrNone({ sku: 'none' }),
    Product.cache.getAsyncOrNone({ id: 4.2 }),
  ])
})

const NOTHING = {
  lookups: 0,
  keys: 0,
  hits: 0,
  absents: 0,
  stale: 0,
  misses: 0,
  bypassed: 0,
  joined: 0,
  waitedOut: 0,
  damaged: 0,
  uncached: 0,
  away: 0,
  overloaded: 0,
  storeErrors: 0,
  sourceErrors: 0,
  memoHits: 0,
}

/** What is published while the test runs. */
function listen(): WaveMessage[] {
  const messages: WaveMessage[] = []
  const listener = (message: unknown) => void messages.push(message as WaveMessage)
  channel('loadstone:wave').subscribe(listener)
  onTestFinished(() => void channel('loadstone:wave').unsubscribe(listener))
  return messages
}

describe('loadstone:wave', () => {
  test('tells of each wave when it has ended, its fill included', async () => {
    const messages = listen()
    await page()
    await opened.cache.idle()
    await page()
    await opened.cache.idle()
    expect(messages).toEqual([
      {
        ...NOTHING,
        namespace,
        scopes: 1,
        lookups: 5,
        keys: 4,
        misses: 4,
        memoHits: 1,
        trips: { mget: 1, acquire: 1, select: 2, fill: 1, load: 0 },
        durationMs: expect.any(Number),
      },
      {
        ...NOTHING,
        namespace,
        scopes: 1,
        lookups: 5,
        keys: 4,
        hits: 2,
        absents: 2,
        memoHits: 1,
        trips: { mget: 1, acquire: 0, select: 0, fill: 0, load: 0 },
        durationMs: expect.any(Number),
      },
    ])
    for (const { durationMs } of messages) expect(durationMs).toBeGreaterThan(0)
  })

  test('tells how many scopes share a wave', async () => {
    const messages = listen()
    await page()
    await opened.cache.idle()
    await Promise.all(range(3).map(page))
    await opened.cache.idle()
    expect(messages.map(({ scopes, lookups, keys, memoHits }) => [scopes, lookups, keys, memoHits])).toEqual([
      [1, 5, 4, 1],
      [3, 15, 4, 3],
    ])
  })

  test('is not published to when nobody listens', async () => {
    const publish = vi.spyOn(channel('loadstone:wave'), 'publish')
    onTestFinished(() => publish.mockRestore())
    await page()
    await opened.cache.idle()
    expect(publish).not.toHaveBeenCalled()
  })

  test('a listener that throws does no harm to lookups', async () => {
    const thrown: unknown[] = []
    const keep = (error: unknown) => void thrown.push(error)
    const others = process.listeners('uncaughtException')
    process.removeAllListeners('uncaughtException').once('uncaughtException', keep)
    const listener = () => {
      throw new Error('of the listener')
    }
    channel('loadstone:wave').subscribe(listener)
    onTestFinished(() => {
      channel('loadstone:wave').unsubscribe(listener)
      process.removeListener('uncaughtException', keep)
      for (const other of others) process.on('uncaughtException', other)
    })
    expect(await page()).toHaveLength(6)
    await opened.cache.idle()
    await expect.poll(() => thrown.map(String)).toEqual(['Error: of the listener'])
  })
})

describe('stats', () => {
  test('add up what the waves did since the cache was made', async () => {
    const { cache } = opened
    expect(cache.stats()).toMatchObject({ ...NOTHING, waves: 0, outOfScope: 0 })
    await page()
    await cache.idle()
    await page()
    await cache.idle()
    expect(cache.stats()).toMatchObject({
      ...NOTHING,
      waves: 2,
      lookups: 10,
      keys: 8,
      hits: 2,
      absents: 2,
      misses: 4,
      memoHits: 2,
      outOfScope: 0,
      trips: { mget: 2, acquire: 1, select: 2, fill: 1, load: 0 },
    })
  })

  test('are a copy: what was read stays as it was', async () => {
    const { cache } = opened
    const before = cache.stats()
    await page()
    await cache.idle()
    expect(before).toMatchObject({ waves: 0, trips: { mget: 0 } })
  })

  test('count lookups that the memo answered after the last wave', async () => {
    const { cache, User } = opened
    await runInLoop(async () => {
      await User.cache.getAsync({ id: 1 })
      for (let i = 0; i < 5; i++) await User.cache.getAsync({ id: 1 })
    })()
    await cache.idle()
    expect(cache.stats().memoHits).toBe(5)
  })
})
