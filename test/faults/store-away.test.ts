import { channel } from 'node:diagnostics_channel'
import { Redis } from 'ioredis'
import { type BreakerMessage, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { openCache, openShop, range, type Shop, type ShopCache } from '../loaders/shop.ts'
import { freePort } from '../servers/ports.ts'
import { startRedis } from '../servers/redis.ts'
import type { Server } from '../servers/server.ts'
import { type FaultyProxy, startProxy } from '../support/proxy.ts'
import { closeRedis, testRedis } from '../support/redis.ts'

// An unhandled rejection anywhere in this file fails the run: Vitest sees to that.

const COLD = { mget: 1, acquire: 1, select: 1, fill: 1 }
const WARM = { mget: 1 }
/** What a lookup costs while the breaker is open: nobody asks the store, not even to be refused. */
const AWAY = { select: 1 }

let shop: Shop
beforeAll(async () => {
  shop = await openShop()
})
afterAll(() => shop.close())
afterEach(closeRedis)

interface Rig {
  readonly server: Server
  /** Between the cache and the server. */
  readonly network: FaultyProxy
  readonly shopCache: ShopCache
  /** A look past the cache. */
  readonly redis: Redis
}

async function rig(args: readonly string[] = []): Promise<Rig> {
  const server = await startRedis({ args })
  onTestFinished(server.stop)
  const network = await startProxy(server.port)
  onTestFinished(network.close)
  const { namespace, redis } = testRedis({ url: server.url, retryStrategy: () => 20 })
  redis.on('error', () => {}) // the server is killed on purpose
  const client = new Redis({ port: network.port, lazyConnect: true })
  // More than the default, as the machine is shared: what fails here shall fail by itself.
  const shopCache = openCache(shop, { redis: client, namespace, storeTimeout: '200ms' })
  onTestFinished(() => shopCache.cache.close())
  await shopCache.cache.ready()
  return { server, network, shopCache, redis }
}

/** Every read is a request of its own. */
async function read({ shopCache }: Rig, ids: readonly number[] = [1, 2, 3]): Promise<void> {
  const { User } = shopCache
  const rows = await runInLoop(() => Promise.all(ids.map((id) => User.cache.getAsync({ id }))))()
  expect(rows.map(({ email }) => email)).toEqual(ids.map((id) => `user-${id}@shop.test`))
}

/** Reads until the cache works, and the rows are in it. */
async function warmUp(here: Rig): Promise<void> {
  const { cache } = here.shopCache
  await expect
    .poll(
      async () => {
        await cache.idle()
        const { hits } = cache.stats()
        await read(here)
        return cache.stats().hits - hits
      },
      { timeout: 10_000, interval: 5 },
    )
    .toBe(3)
}

interface Fault {
  readonly args?: readonly string[]
  /** Settles when the fault is there. */
  begin(rig: Rig): Promise<unknown>
  end(rig: Rig): Promise<unknown>
}

/** So many keys, of which each takes so long to be loaded from a snapshot. */
const SLOW_KEYS = 1500
const LOADS_SLOWLY = ['--key-load-delay', '2000', '--loading-process-events-interval-bytes', '1024']
let restarted: Promise<void> | undefined

const FAULTS: Record<string, Fault> = {
  'is killed, and connections are refused': {
    begin: ({ server }) => server.kill(),
    end: ({ server }) => server.restart(),
  },
  'is behind a network that swallows everything': {
    begin: async ({ network }) => network.hold(),
    end: async ({ network }) => network.release(),
  },
  'is behind a network that swallows its replies': {
    begin: async ({ network }) => network.hold('replies'),
    end: async ({ network }) => network.release(),
  },
  'is frozen': {
    begin: async ({ server }) => server.pause(),
    end: async ({ server }) => server.resume(),
  },
  'takes half a second for every answer': {
    begin: async ({ network }) => network.delay(250),
    end: async ({ network }) => network.delay(0),
  },
  'has become a replica (READONLY)': {
    begin: async ({ redis, shopCache }) => {
      await redis.replicaof('127.0.0.1', await freePort())
      // What is cached may be answered until a write, or the watch on the master, finds out.
      await shopCache.User.cache.invalidate({ id: 1 }).catch(() => undefined)
    },
    end: ({ redis }) => redis.replicaof('NO', 'ONE'),
  },
  'restarts, and loads its snapshot (LOADING)': {
    args: LOADS_SLOWLY,
    async begin({ server, redis }) {
      await redis.mset(range(SLOW_KEYS).flatMap((i) => [`filler:${i}`, 'x'.repeat(100)]))
      await redis.save()
      await server.kill()
      restarted = server.restart()
      const look = testRedis({ url: server.url, enableReadyCheck: false, retryStrategy: () => 5 }).redis
      look.on('error', () => {})
      await expect.poll(() => look.get('any').catch(String), { interval: 5 }).toMatch(/LOADING/)
    },
    end: async () => restarted,
  },
  'refuses commands (NOPERM)': {
    begin: ({ redis }) => redis.acl('SETUSER', 'default', '-mget'),
    end: ({ redis }) => redis.acl('SETUSER', 'default', '+mget'),
  },
}

describe.each(Object.entries(FAULTS))('a Redis that %s', (_, fault) => {
  test('every lookup is answered by SQL, soon without asking it, and it is back by itself', async () => {
    const here = await rig(fault.args)
    const { cache } = here.shopCache
    await warmUp(here)
    expect(cache.stats()).toMatchObject({ breaker: 'closed', breakerOpened: 0, away: 0 })

    await fault.begin(here)
    let waited = 0
    for (; cache.stats().breaker === 'closed'; waited++) await read(here)
    expect(waited).toBeLessThanOrEqual(5)
    const { away } = cache.stats()
    await expectTrips(cache, AWAY, () => read(here))
    await expectTrips(cache, { select: 10 }, async () => {
      for (const id of range(10, 20)) await read(here, [id])
    })
    expect(cache.stats()).toMatchObject({ breakerOpened: 1, away: away + 13, sourceErrors: 0 })

    await fault.end(here)
    await expect.poll(() => cache.stats().breaker, { timeout: 10_000, interval: 5 }).toBe('closed')
    await warmUp(here)
    await expectTrips(cache, WARM, () => read(here))
  })
})

describe('a Redis that is full (OOM)', () => {
  test('hits go on, misses are answered by SQL and not cached, and the breaker stays closed', async () => {
    const here = await rig()
    const { cache } = here.shopCache
    await warmUp(here)
    await here.redis.config('SET', 'maxmemory', '1')
    for (const id of range(10, 20)) {
      await expectTrips(cache, WARM, () => read(here))
      await expectTrips(cache, { mget: 1, acquire: 1, select: 1 }, () => read(here, [id]))
    }
    expect(cache.stats()).toMatchObject({ breaker: 'closed', breakerOpened: 0, storeErrors: 10 })
    await here.redis.config('SET', 'maxmemory', '0')
    await expectTrips(cache, COLD, () => read(here, [20]))
    await expectTrips(cache, WARM, () => read(here, [20]))
  })
})

describe('a Redis that was never there', () => {
  test('lookups are answered by SQL, and it is used when it has come', async () => {
    const port = await freePort()
    const client = new Redis({ port, lazyConnect: true })
    const { namespace } = testRedis({ lazyConnect: true })
    const shopCache = openCache(shop, { redis: client, namespace, storeTimeout: '200ms' })
    onTestFinished(() => shopCache.cache.close())
    const here = { shopCache } as Rig
    while (shopCache.cache.stats().breaker === 'closed') await read(here)
    await expectTrips(shopCache.cache, AWAY, () => read(here))
    const server = await startRedis({ port })
    onTestFinished(server.stop)
    await warmUp(here)
  })
})

test('under load: every lookup of 50 requests at a time is answered, through a crash and back', async () => {
  const here = await rig()
  const { cache } = here.shopCache
  await warmUp(here)
  let running = true
  let answered = 0
  const load = Promise.all(
    range(50).map(async (i) => {
      for (; running; answered++) await read(here, range(5, ((i + answered) % 100) + 1))
    }),
  )
  await here.server.kill()
  await expect.poll(() => cache.stats().breaker, { interval: 5 }).not.toBe('closed')
  const during = answered
  await expect.poll(() => answered, { timeout: 10_000 }).toBeGreaterThan(during + 100)
  await here.server.restart()
  await expect.poll(() => cache.stats().breaker, { timeout: 10_000, interval: 5 }).toBe('closed')
  const { hits } = cache.stats()
  await expect.poll(() => cache.stats().hits, { timeout: 10_000 }).toBeGreaterThan(hits)
  running = false
  await load
  expect(cache.stats()).toMatchObject({ overloaded: 0, sourceErrors: 0 })
})

test('a lookup that asks only the cache is told that it does not know', async () => {
  const here = await rig()
  await warmUp(here)
  here.network.hold()
  while (here.shopCache.cache.stats().breaker === 'closed') await read(here)
  const only = runInLoop(() =>
    here.shopCache.User.cache.getQuery({ id: 1 }).resolveAsync({ onlyCache: true }),
  )
  expect(await expectTrips(here.shopCache.cache, {}, only)).toBeUndefined()
})

test('loadstone:breaker tells when it opens, probes and closes, and why', async () => {
  const here = await rig()
  await warmUp(here)
  const messages: BreakerMessage[] = []
  const listener = (message: unknown) => void messages.push(message as BreakerMessage)
  channel('loadstone:breaker').subscribe(listener)
  onTestFinished(() => void channel('loadstone:breaker').unsubscribe(listener))
  here.network.hold()
  while (messages.length === 0) await read(here)
  await expect.poll(() => messages.length).toBeGreaterThanOrEqual(3)
  here.network.release()
  await expect.poll(() => messages.at(-1)?.state, { timeout: 10_000 }).toBe('closed')
  expect(messages.slice(0, 3)).toEqual([
    expect.objectContaining({ state: 'open', opened: 1, namespace: expect.any(String) }),
    expect.objectContaining({ state: 'half-open', opened: 1 }),
    expect.objectContaining({ state: 'open', opened: 1 }),
  ])
  expect(String(messages[0]?.error)).toMatch(/no answer within 200 ms/)
})
