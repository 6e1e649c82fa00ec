import { StrictWriteError } from 'loadstone'
import { afterEach, describe, expect, onTestFinished, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { relayKey } from '../../src/models/key.ts'
import { lookAt, openBank, type Process, quiet, warm } from '../invalidation/bank.ts'
import { startRedis } from '../servers/redis.ts'
import { closeRedis } from '../support/redis.ts'

afterEach(closeRedis)

/** The breaker opens within about a second of silence, and not because the machine is busy for a moment. */
const IMPATIENT = { storeTimeout: '200ms' } as const

async function openOwnBank(consistency: 'default' | 'strict') {
  const redis = await startRedis()
  onTestFinished(redis.stop)
  return { redis, bank: await openBank(consistency, { redisUrl: redis.url }) }
}

async function untilOpen({ cache, read }: Process): Promise<void> {
  while (cache.stats().breaker === 'closed') await read()
}

async function untilClosed({ cache }: Process): Promise<void> {
  await expect.poll(() => cache.stats().breaker, { timeout: 10_000, interval: 5 }).toBe('closed')
}

describe('a write while the breaker is open', () => {
  test('default: is made; what it cleared nowhere is left to the relay, and other processes are told by that', async () => {
    const { bank } = await openOwnBank('default')
    const [here, there] = [await bank.open(IMPATIENT), await bank.open()]
    await warm(here, there)
    here.redisNetwork.hold()
    await untilOpen(here)
    await here.write(90)
    expect(here.cache.stats()).toMatchObject({ deferred: 1, cleared: 0 })
    expect([await bank.balance(), await bank.debt()]).toEqual([90, 1])
    expect([await here.read(), await there.read()]).toEqual([90, 100])
    here.redisNetwork.cut()
    await quiet(there)
    expect([await there.read(), await bank.debt()]).toEqual([90, 0])
  })

  test('default: a Redis that only paused hears of it before any later lookup', async () => {
    const { bank } = await openOwnBank('default')
    const here = await bank.open(IMPATIENT)
    await warm(here)
    expect(await bank.entry()).toBe('value')
    here.redisNetwork.hold('requests')
    await untilOpen(here)
    await here.write(90)
    here.redisNetwork.release()
    await untilClosed(here)
    const { hits } = here.cache.stats()
    expect(await here.read()).toBe(90)
    expect(here.cache.stats().hits).toBe(hits)
    expect(await bank.debt()).toBe(1)
  })

  test('strict: is rolled back, with an error that says it may be tried again, and nothing is written', async () => {
    const { bank } = await openOwnBank('strict')
    const here = await bank.open(IMPATIENT)
    await warm(here)
    here.redisNetwork.hold()
    await untilOpen(here)
    const error: unknown = await here.write(90).catch((reason) => reason)
    expect(error).toBeInstanceOf(StrictWriteError)
    expect(error).toMatchObject({
      transient: true,
      cause: { code: 'ERR_STORE_UNAVAILABLE', message: expect.stringContaining('its breaker is open') },
    })
    expect([await bank.balance(), await bank.debt(), await here.read()]).toEqual([100, 0, 100])
    here.redisNetwork.release()
    await untilClosed(here)
    await here.write(80)
    expect(await here.read()).toBe(80)
  })

  test('by hand: to invalidate is rejected, as nobody can say that it was done', async () => {
    const { bank } = await openOwnBank('default')
    const here = await bank.open(IMPATIENT)
    await warm(here)
    here.redisNetwork.hold()
    await untilOpen(here)
    for (const step of [() => here.Account.cache.invalidate({ id: 1 }), () => here.cache.clear()]) {
      await expect(step()).rejects.toMatchObject({ code: 'ERR_STORE_UNAVAILABLE', transient: true })
    }
  })
})

test('when Redis is back the relay looks at once for what it has missed, and not after its pause', async () => {
  const { bank, redis } = await openOwnBank('default')
  const leaderKey = relayKey(bank.key.split(':')[0] as string)
  const look = lookAt(redis.url)
  // Somebody else is the relay, so ours asks again in an hour.
  await look.set(leaderKey, 'somebody else')
  const here = await bank.open({ ...IMPATIENT, relay: { election: '1h', grace: 0 } })
  const { store } = insidesOf(here.cache)
  const asked = new Promise<unknown>((resolve) => {
    const lead = store.lead.bind(store)
    store.lead = async (...args) => {
      const leads = await lead(...args)
      resolve(leads)
      return leads
    }
  })
  expect(await asked).toBe(false)
  await warm(here)
  await look.del(leaderKey)
  await bank.foreign('update accounts set balance = 90 where id = 1')
  expect(await here.read()).toBe(100)

  here.redisNetwork.hold()
  await untilOpen(here)
  here.redisNetwork.release()
  await untilClosed(here)
  await expect.poll(here.read, { timeout: 10_000 }).toBe(90)
  expect(here.cache.stats().relayed).toBe(1)
})
