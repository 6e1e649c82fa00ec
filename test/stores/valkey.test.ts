import { Cluster, Redis } from 'ioredis'
import { afterAll, beforeAll, describe, test } from 'vitest'
import { Breaker } from '../../src/stores/breaker.ts'
import { openRedisStore } from '../../src/stores/open.ts'
import type { RedisClient } from '../../src/stores/redis.ts'
import type { ClusterClient } from '../../src/stores/topology.ts'
import { startCluster } from '../servers/cluster.ts'
import { findValkey } from '../servers/find-binary.ts'
import { startRedis } from '../servers/redis.ts'
import { ClusterView, newNamespace } from '../support/cluster.ts'
import { type StoreUnderTest, storeContract } from './contract.ts'

const program = findValkey()

if (!program) test.todo('nothing is run on Valkey: there is no valkey-server on this machine')
else {
  describe('the store on one Valkey', () => {
    let server: Awaited<ReturnType<typeof startRedis>>
    beforeAll(async () => {
      server = await startRedis({ program })
    })
    afterAll(() => server?.stop())
    storeContract(() => {
      const redis = new Redis(server.url)
      return openStore(new Redis(server.url, { lazyConnect: true }), redis, (key) => key)
    })
  })

  describe('the store on a cluster of Valkeys', () => {
    let cluster: Awaited<ReturnType<typeof startCluster>>
    beforeAll(async () => {
      cluster = await startCluster({ program })
    })
    afterAll(() => cluster?.stop())
    storeContract(() => {
      const nodes = [...cluster.nodes]
      const placeOf = (key: string) => ClusterView.placeOf(key)
      return openStore(new Cluster(nodes, { lazyConnect: true }), new Cluster(nodes), placeOf)
    })
  })
}

function openStore(
  client: RedisClient | ClusterClient,
  redis: Redis | Cluster,
  placeOf: (key: string) => string,
): StoreUnderTest {
  const prefix = `${newNamespace()}:`
  const store = openRedisStore(
    client,
    { timeout: '5s', marksKey: `${prefix}~marks` },
    new Breaker({ failures: 5, pauseMs: 100 }, () => performance.now()),
  )
  return {
    store,
    prefix,
    async expectTtl(key, ms) {
      const left = await redis.pttl(placeOf(key))
      if (left > ms || left <= ms - 5000) throw new Error(`${left} ms are left of ${ms}`)
    },
    async outlive(key) {
      await redis.pexpire(placeOf(key), 0)
    },
    async dispose() {
      redis.disconnect()
    },
  }
}
