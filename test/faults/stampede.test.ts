import type { Redis } from 'ioredis'
import { afterAll, beforeAll, beforeEach, describe, expect, inject, onTestFinished, test } from 'vitest'
import { openShop, range, type Shop } from '../loaders/shop.ts'
import { closeRedis, testRedis } from '../support/redis.ts'
import { startWorker, type Worker } from './stampede-fleet.ts'

const PROCESSES = 4
const REQUESTS = 50

let shop: Shop
let namespace: string
let redis: Redis
let fleet: Worker[] = []

beforeAll(async () => {
  shop = await openShop()
  ;({ namespace, redis } = testRedis())
})
afterAll(async () => {
  await Promise.all(fleet.map((worker) => worker.kill()))
  await closeRedis()
  await shop.close()
})

/** All processes are there, those of before that were not killed among them, and nothing is cached. */
beforeEach(async () => {
  const options = { databaseUrl: shop.database.url, redisUrl: inject('redisUrl'), namespace }
  const missing = range(PROCESSES - fleet.length).map(() => startWorker(options))
  fleet = [...fleet, ...(await Promise.all(missing))]
  await redis.del(keysOf(range(100)))
})

function keysOf(ids: readonly number[]): string[] {
  return ids.map((id) => `${namespace}:users:id:${id}`)
}

/** Every process has so many requests for these rows at once. Resolves to how many statements all of them sent. */
async function stampede(workers: readonly Worker[], ids: readonly number[]): Promise<number> {
  const counts = await Promise.all(workers.map((worker) => worker.ask({ requests: REQUESTS, ids })))
  return counts.reduce((sum, count) => sum + count, 0)
}

/** Lets no statement about users through until it is told to. */
async function lockUsers() {
  const holder = await shop.database.pool.connect()
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
  // On another connection: within a transaction, it would be told the same again and again.
  const blocked = async () => {
    const { rows } = await shop.database.pool.query(
      "select count(*)::int from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
    )
    return rows[0].count as number
  }
  return { blocked, unlock }
}

/** How often anybody has looked for keys so far. */
async function mgets(): Promise<number> {
  return Number(/^cmdstat_mget:calls=(\d+)/m.exec(await redis.info('commandstats'))?.[1])
}

describe(`${PROCESSES} processes, each with ${REQUESTS} requests at once`, () => {
  test('for one cold key: one statement in all, and none when it is warm', async () => {
    expect(await stampede(fleet, [1])).toBe(1)
    expect(await stampede(fleet, [1])).toBe(0)
  })

  test('for the same 100 cold keys: one statement in all', async () => {
    expect(await stampede(fleet, range(100))).toBe(1)
    expect(await stampede(fleet, range(100))).toBe(0)
  })

  test('for one cold key, whose load takes long: the others wait for it', async () => {
    const users = await lockUsers()
    const before = await mgets()
    const answered = stampede(fleet, [1])
    await expect.poll(users.blocked, { timeout: 10_000 }).toBe(1)
    await expect.poll(mgets, { timeout: 10_000 }).toBeGreaterThan(before + (REQUESTS + 5) * PROCESSES)
    await users.unlock()
    expect(await answered).toBe(1)
  })

  describe('of which the first, that loads, is killed', () => {
    /** The first process holds the leases, and its statement has not come back. */
    async function killable(ids: readonly number[]) {
      const [filler, ...others] = fleet as [Worker, ...Worker[]]
      fleet = others
      const users = await lockUsers()
      const lost = expect(filler.ask({ requests: REQUESTS, ids })).rejects.toThrow(/it has ended/)
      await expect.poll(users.blocked, { timeout: 10_000 }).toBe(1)
      return {
        async kill() {
          await Promise.all([filler.kill(), lost])
          await users.unlock()
        },
        /** Its leases have run out. Without waiting for it, so that nobody's own has because the machine is busy. */
        async runOut() {
          expect(await redis.del(keysOf(ids))).toBe(ids.length)
        },
      }
    }

    test.each([
      ['1 key', [1]],
      ['100 keys', range(100)],
    ])('%s: those who come when its lease has run out send one more', async (_, ids) => {
      const filler = await killable(ids)
      await filler.kill()
      await filler.runOut()
      expect(await stampede(fleet, ids)).toBe(1)
    })

    test('those who wait for it already send one more, when its lease has run out', async () => {
      const filler = await killable([1])
      const before = await mgets()
      const answered = stampede(fleet, [1])
      await expect.poll(mgets, { timeout: 10_000 }).toBeGreaterThan(before + (REQUESTS + 5) * fleet.length)
      await filler.kill()
      await filler.runOut()
      expect(await answered).toBe(1)
    })
  })
})
