import { Cluster, Redis } from 'ioredis'
import { Kysely, PostgresDialect } from 'kysely'
import { createModelCache, runInLoop, StrictWriteError, withInvalidation } from 'loadstone'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { Breaker } from '../../src/stores/breaker.ts'
import { stateOf } from '../../src/stores/entry.ts'
import { openRedisStore } from '../../src/stores/open.ts'
import type { RedisClient } from '../../src/stores/redis.ts'
import type { CacheStore } from '../../src/stores/store.ts'
import type { ClusterClient } from '../../src/stores/topology.ts'
import { startCluster } from '../servers/cluster.ts'
import { startSentinel } from '../servers/sentinel.ts'
import type { Server } from '../servers/server.ts'
import { ClusterView, newNamespace } from '../support/cluster.ts'
import { createTestDatabase } from '../support/database.ts'

// An unhandled rejection anywhere in this file fails the run: Vitest sees to that.

const MINUTE = 60_000
const TOKEN = 'somebodys-intent'
/** A failover takes the servers some two seconds, and the machine is shared. */
const FAILOVER = { timeout: 20_000, interval: 10 }
const CONSISTENCIES = ['default', 'strict'] as const

/** Where a key is, and who takes its place. */
interface Pair {
  readonly master: Server
  readonly replica: Server
}

interface Place {
  client(): RedisClient | ClusterClient
  pairOf(key: string): Promise<Pair>
}

const PLACES: Record<string, () => Promise<Place>> = {
  async Sentinel() {
    const { master, replica, client, stop } = await startSentinel()
    onTestFinished(stop)
    return {
      client: () => new Redis({ ...client, lazyConnect: true }),
      pairOf: async () => ({ master, replica }),
    }
  },
  async 'a cluster of three masters and three replicas'() {
    const cluster = await startCluster({ replicas: 1, nodeTimeout: 1000 })
    onTestFinished(cluster.stop)
    const view = new ClusterView(cluster)
    onTestFinished(() => view.close())
    return {
      client: () => new Cluster([...cluster.nodes], { lazyConnect: true }),
      async pairOf(key) {
        const index = await view.ownerOf(key)
        return { master: cluster.masters[index] as Server, replica: cluster.replicas[index] as Server }
      },
    }
  },
}

/** A look past the store. */
function lookAt(server: Server): Redis {
  const redis = new Redis(server.url, { retryStrategy: () => 20 })
  redis.on('error', () => {}) // it is killed on purpose
  redis.call('READONLY').catch(() => {}) // of a cluster's replica; others know it not
  onTestFinished(() => redis.disconnect())
  return redis
}

async function openBank(place: Place, consistency: (typeof CONSISTENCIES)[number]) {
  const database = await createTestDatabase()
  onTestFinished(() => database.drop())
  await database.pool.query(`create table accounts (id int primary key, balance int not null);
    insert into accounts select i, 100 from generate_series(1, 20) i`)
  const db = new Kysely<{ accounts: { id: number; balance: number } }>({
    dialect: withInvalidation(new PostgresDialect({ pool: database.pool })),
  })
  const namespace = newNamespace()
  const cache = createModelCache({
    db,
    redis: place.client(),
    namespace,
    storeTimeout: '100ms',
    // An intent that was taken just before its master was killed may be on the new one, and nobody takes it back.
    intentTtl: '5s',
    relay: false,
  })
  onTestFinished(() => cache.close())
  const Account = cache.model('accounts', { keyFields: [['id']], consistency })
  await cache.install()
  const read = runInLoop(async (id: number) => (await Account.cache.getAsync({ id })).balance)
  return {
    cache,
    key: `${namespace}:accounts:id:1`,
    read,
    /** As a read that looks whether it was a hit; fills are waited for. */
    async isHit() {
      const before = cache.stats().hits
      await read(1)
      await cache.idle()
      return cache.stats().hits > before
    },
    write: (balance: number) => db.updateTable('accounts').set({ balance }).where('id', '=', 1).execute(),
  }
}

async function untilHit({ isHit }: { isHit(): Promise<boolean> }): Promise<void> {
  await vi.waitFor(async () => expect(await isHit()).toBe(true), FAILOVER)
}

/** Replica and master have heard the same, and from now on the replica hears nothing more. */
async function cutOff({ master, replica }: Pair): Promise<void> {
  expect(await lookAt(master).wait(1, 5000)).toBe(1)
  replica.pause()
  // It is closed before anything more is written to it: what it has not read yet it would read later.
  await lookAt(master).call('CLIENT', 'KILL', 'TYPE', 'replica')
}

describe.each(Object.entries(PLACES))('a failover, with %s', (_, open) => {
  test.each(CONSISTENCIES)(
    'under load: no wrong answer, none that is late, then hits again: %s',
    async (consistency) => {
      const place = await open()
      const bank = await openBank(place, consistency)
      await untilHit(bank)
      const { master } = await place.pairOf(bank.key)
      let isOver = false
      let written = 100
      let slowestMs = 0
      let refused = 0
      const reader = async (id: number) => {
        while (!isOver) {
          const atLeast = id === 1 ? written : 100
          const began = performance.now()
          expect(await bank.read(id)).toBeGreaterThanOrEqual(atLeast)
          slowestMs = Math.max(slowestMs, performance.now() - began)
          await new Promise(setImmediate)
        }
      }
      const writer = async () => {
        while (!isOver) {
          const next = written + 1
          try {
            await bank.write(next)
            written = next
          } catch (error) {
            expect(error).toBeInstanceOf(StrictWriteError)
            refused++
          }
          await new Promise((resolve) => setTimeout(resolve, 5))
        }
      }
      const load = Promise.all([reader(1), reader(1), reader(2), reader(3), writer()])
      try {
        await vi.waitFor(() => expect(written).toBeGreaterThan(105), FAILOVER)
        await master.kill()
        const before = written
        // Written again, and read from the store again.
        await vi.waitFor(async () => {
          expect(written).toBeGreaterThan(before + 5)
          const { store } = insidesOf(bank.cache)
          const [record] = await store.getMany([bank.key.replace(/1$/, 'any')])
          expect(record).toBeNull()
        }, FAILOVER)
      } finally {
        isOver = true
      }
      await load
      await untilHit(bank)
      expect(await bank.read(1)).toBe(written)
      const { relay } = insidesOf(bank.cache)
      while ((await relay.turn(0)) > 0);
      expect(await bank.read(1)).toBe(written)
      // The store's deadline, twice (a read, a lease), and SQL on a busy machine; a hang would last for seconds.
      expect(slowestMs).toBeLessThan(3000)
      if (consistency === 'default') expect(refused).toBe(0)
    },
    60_000,
  )

  test('what the new master has from before is there, and not believed: it missed the write', async () => {
    const place = await open()
    const bank = await openBank(place, 'default')
    await untilHit(bank)
    const pair = await place.pairOf(bank.key)
    await cutOff(pair)
    await bank.write(200)
    await pair.master.kill()
    pair.replica.resume()
    const replica = lookAt(pair.replica)
    await vi.waitFor(async () => expect(await replica.info('replication')).toMatch(/^role:master/m), FAILOVER)
    expect(stateOf(await replica.getBuffer(bank.key), 0)).not.toBe('none')
    // SQL answers until it is connected to; then it has nothing that is believed, until it is filled.
    expect(await bank.read(1)).toBe(200)
    await untilHit(bank)
    expect(await bank.read(1)).toBe(200)
  }, 60_000)

  test('intents that a replica had before COMMIT stand at the new master', async () => {
    const place = await open()
    const key = `${newNamespace()}:key`
    const store: CacheStore = openRedisStore(
      place.client(),
      { timeout: '1s', intentReplicas: 1 },
      new Breaker({ failures: 5, pauseMs: 100 }, () => performance.now()),
    )
    onTestFinished(() => store.close())
    const pair = await place.pairOf(key)
    await vi.waitFor(() => store.intend([key], TOKEN, MINUTE), FAILOVER)
    const session = store.session
    await pair.master.kill()
    await vi.waitFor(async () => {
      const [record = null] = await store.getMany([key])
      expect(stateOf(record, 0)).toBe('intended')
    }, FAILOVER)
    expect(store.session).not.toBe(session)
    // Nobody else has it, so nobody may rely on it any more.
    await expect(store.intend([key], TOKEN, MINUTE)).rejects.toThrow(/only 0 of 1 replicas|no answer within/)
    await store.clear([key], TOKEN, true)
    expect(await store.getMany([key])).toEqual([null])
  }, 60_000)
})
