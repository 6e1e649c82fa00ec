import { Redis } from 'ioredis'
import { afterEach, describe, expect, onTestFinished, test } from 'vitest'
import { StoreUnavailableError } from '../../src/errors.ts'
import { Breaker } from '../../src/stores/breaker.ts'
import { GuardedStore } from '../../src/stores/guarded.ts'
import { RedisStore, type RedisStoreOptions } from '../../src/stores/redis.ts'
import { startRedis } from '../servers/redis.ts'
import type { Server } from '../servers/server.ts'
import { type FaultyProxy, startProxy } from '../support/proxy.ts'
import { closeRedis, testRedis } from '../support/redis.ts'

const MINUTE = 60_000
const FAILURES = 2

afterEach(closeRedis)

interface Rig {
  readonly server: Server
  readonly proxy: FaultyProxy
  readonly store: GuardedStore
  readonly breaker: Breaker
  /** A look past the store. */
  readonly redis: Redis
}

async function rig(options: RedisStoreOptions = {}, pauseMs = 20): Promise<Rig> {
  const server = await startRedis()
  onTestFinished(server.stop)
  const proxy = await startProxy(server.port)
  onTestFinished(proxy.close)
  const breaker = new Breaker({ failures: FAILURES, pauseMs }, () => performance.now())
  const client = new Redis({ port: proxy.port, lazyConnect: true })
  const store = new GuardedStore(
    new RedisStore(client, { timeout: 200, epochCheck: '1h', ...options }),
    breaker,
  )
  onTestFinished(() => store.close())
  const { redis } = testRedis({ url: server.url })
  redis.on('error', () => {}) // the server may be killed on purpose
  await expect.poll(() => store.getMany(['key']).then(String, () => 'not yet')).toBe('')
  return { server, proxy, store, breaker, redis }
}

async function open({ store, breaker, proxy }: Rig, direction?: 'requests' | 'replies'): Promise<void> {
  proxy.hold(direction)
  while (breaker.state === 'closed') await store.getMany(['key']).catch(() => undefined)
}

async function untilClosed({ breaker }: Rig): Promise<void> {
  await expect.poll(() => breaker.state, { timeout: 10_000, interval: 5 }).toBe('closed')
}

/** How often the server has run a command. */
async function calls(redis: Redis, command: string): Promise<number> {
  const stats = await redis.info('commandstats')
  return Number(new RegExp(`^cmdstat_${command}:calls=(\\d+)`, 'm').exec(stats)?.[1] ?? 0)
}

async function expectUnavailable(step: Promise<unknown>, message: RegExp): Promise<StoreUnavailableError> {
  const error: unknown = await step.then(
    () => undefined,
    (reason) => reason,
  )
  expect(error).toBeInstanceOf(StoreUnavailableError)
  expect(String(error)).toMatch(message)
  return error as StoreUnavailableError
}

const OPEN = /its breaker is open/

describe('while the breaker is open', () => {
  test('lookups and elections are refused and nothing is sent, with the reason', async () => {
    const here = await rig({}, MINUTE)
    const { store, redis, proxy } = here
    await open(here)
    proxy.release()
    const before = [await calls(redis, 'mget'), await calls(redis, 'evalsha')]
    const error = await expectUnavailable(store.getMany(['key']), OPEN)
    expect(String(error.cause)).toMatch(/no answer within 200 ms/)
    await expectUnavailable(store.acquire(['key'], [0], MINUTE), OPEN)
    await expectUnavailable(store.lead('name', 'me', MINUTE), OPEN)
    expect([await calls(redis, 'mget'), await calls(redis, 'evalsha')]).toEqual(before)
  })

  test('write intents are refused and not sent: the transaction can still be rolled back', async () => {
    const here = await rig({}, MINUTE)
    await open(here)
    here.proxy.release()
    await expectUnavailable(here.store.intend(['key'], 'somebodys-intent', MINUTE), OPEN)
    expect(await here.redis.exists('key')).toBe(0)
  })

  test.each<[string, (store: GuardedStore) => Promise<unknown>]>([
    ['clear', (store) => store.clear(['key'], null, true)],
    ['clear after a rollback', (store) => store.clear(['key'], 'somebodys-intent', false)],
    ['markStale', (store) => store.markStale(new Map([['key', MINUTE]]))],
    ['clearPrefix', (store) => store.clearPrefix('key')],
  ])('%s is sent, but not waited for, and counts as failed', async (_, step) => {
    const here = await rig({}, MINUTE)
    await open(here)
    const before = await calls(here.redis, 'evalsha')
    await expectUnavailable(step(here.store), OPEN)
    expect(await calls(here.redis, 'evalsha')).toBe(before)
    here.proxy.release()
    await expect.poll(() => calls(here.redis, 'evalsha')).toBe(before + 1)
  })

  test('the clear of a strict write after its COMMIT is waited for', async () => {
    const here = await rig({ timeout: '5s' }, MINUTE)
    const { store, breaker, redis, proxy } = here
    await store.intend(['key'], 'somebodys-intent', MINUTE)
    for (let i = 0; i < FAILURES; i++) breaker.failed(breaker.opened, new Error('no answer'))
    proxy.hold()
    const clearing = store.clear(['key'], 'somebodys-intent', true)
    await expectUnavailable(store.clear(['other'], null, true), OPEN)
    proxy.release()
    await clearing
    expect(await redis.exists('key')).toBe(0)
  })

  test('a fill of a lease from before is sent, so that the key does not stay leased', async () => {
    const here = await rig({}, MINUTE)
    const { lease } = await here.store.acquire(['key'], [0], MINUTE)
    await open(here)
    here.proxy.release()
    const fill = { key: 'key', schema: 0, payload: Buffer.from('row'), ttlMs: MINUTE }
    expect(await here.store.fill(lease, [fill])).toBe(1)
  })
})

describe('what opens the breaker', () => {
  test('writes that are not answered, as well as lookups', async () => {
    const { store, breaker, proxy } = await rig({}, MINUTE)
    proxy.hold()
    await expectUnavailable(store.clear(['key'], null, true), /no answer within 200 ms/)
    await expectUnavailable(store.intend(['key'], 'somebodys-intent', MINUTE), /no answer within 200 ms/)
    expect(breaker.state).toBe('open')
  })

  test('a server that refuses writes, as it is full, does not: lookups still have what it has', async () => {
    const { store, breaker, redis } = await rig()
    await redis.config('SET', 'maxmemory', '1')
    for (let i = 0; i < 2 * FAILURES; i++) {
      const error = await expectUnavailable(store.acquire(['key'], [0], MINUTE), /OOM/)
      expect(error.refused).toBe(true)
      await expectUnavailable(store.intend(['key'], 'somebodys-intent', MINUTE), /OOM/)
    }
    expect(breaker.opened).toBe(0)
    expect(await store.getMany(['key'])).toEqual([null])
  })

  test('replicas that do not get a write intent do not', async () => {
    const { store, breaker } = await rig({ intentReplicas: 1 })
    for (let i = 0; i < FAILURES; i++) {
      await expectUnavailable(
        store.intend(['key'], 'somebodys-intent', MINUTE),
        /only 0 of 1 replicas have the write intents/,
      )
    }
    expect(breaker.opened).toBe(0)
  })

  test('a server that refuses reads does: it has nothing for lookups', async () => {
    const { store, breaker, redis } = await rig({}, MINUTE)
    await redis.acl('SETUSER', 'default', '-mget')
    for (let i = 0; i < FAILURES; i++) await expectUnavailable(store.getMany(['key']), /NOPERM/)
    expect(breaker.state).toBe('open')
  })
})

describe('probes', () => {
  test('close the breaker when the server answers again, and lookups work', async () => {
    const here = await rig()
    await open(here)
    here.proxy.release()
    await untilClosed(here)
    expect(await here.store.getMany(['key'])).toEqual([null])
  })

  test('leave it open while answers come too late', async () => {
    const here = await rig()
    here.proxy.delay(150)
    while (here.breaker.state === 'closed') await here.store.getMany(['key']).catch(() => undefined)
    const before = await calls(here.redis, 'mget')
    await expect.poll(() => calls(here.redis, 'mget'), { timeout: 10_000 }).toBeGreaterThan(before + 2)
    expect(here.breaker.opened).toBe(1)
    expect(here.breaker.state).not.toBe('closed')
    here.proxy.delay(0)
    await untilClosed(here)
  })

  test('make a connection anew that says nothing any more', async () => {
    const here = await rig()
    expect(here.proxy.accepted).toBe(1)
    await open(here, 'replies')
    await expect.poll(() => here.proxy.accepted, { timeout: 10_000 }).toBeGreaterThan(1)
    here.proxy.release()
    await untilClosed(here)
  })

  test('one at a time: a server that does not answer is not sent more and more of them', async () => {
    const here = await rig()
    await open(here, 'replies')
    const before = await calls(here.redis, 'mget')
    await expect.poll(() => here.proxy.accepted, { timeout: 10_000 }).toBe(2)
    expect(await calls(here.redis, 'mget')).toBeLessThanOrEqual(before + 1)
    here.proxy.release()
  })

  test('end with the store', async () => {
    const here = await rig()
    await open(here)
    await here.store.close()
    expect(here.breaker.state).not.toBe('closed')
    here.proxy.release()
    await expectUnavailable(here.store.getMany(['key']), OPEN)
  })
})
