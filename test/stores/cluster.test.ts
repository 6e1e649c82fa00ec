import { Cluster } from 'ioredis'
import { Cluster as Cluster5 } from 'ioredis-5'
import { afterAll, beforeAll, describe, expect } from 'vitest'
import { ClusterStore } from '../../src/stores/cluster.ts'
import type { ClusterClient } from '../../src/stores/topology.ts'
import { startCluster, type TestCluster } from '../servers/cluster.ts'
import { ClusterView, newNamespace } from '../support/cluster.ts'
import { type StoreUnderTest, storeContract } from './contract.ts'

/** The tests share the machine with others: a step that is slow has not failed. */
const PATIENT = { timeout: '5s' } as const

let cluster: TestCluster
let view: ClusterView

beforeAll(async () => {
  cluster = await startCluster()
  view = new ClusterView(cluster)
})
afterAll(async () => {
  view?.close()
  await cluster?.stop()
})

function openClusterStore(client: ClusterClient, keyPrefix = ''): StoreUnderTest {
  const namespace = newNamespace()
  const store = new ClusterStore(client, { ...PATIENT, marksKey: `${namespace}:~marks` })
  const at = (key: string) =>
    keyPrefix.includes('{') ? keyPrefix + key : ClusterView.placeOf(keyPrefix + key)
  return {
    store,
    prefix: `${namespace}:`,
    async expectTtl(key, ms) {
      const left = await view.client.pttl(at(key))
      expect(left).toBeLessThanOrEqual(ms)
      expect(left).toBeGreaterThan(ms - 5000)
    },
    async outlive(key) {
      await view.client.pexpire(at(key), 0)
    },
    dispose: () => view.forget(namespace),
  }
}

/** Clients as an application has them, which never need to connect. */
const CLIENTS = {
  'ioredis 6': (options: object = {}) => new Cluster([...cluster.nodes], { lazyConnect: true, ...options }),
  'ioredis 5': (options: object = {}) => new Cluster5([...cluster.nodes], { lazyConnect: true, ...options }),
}

describe.each(Object.entries(CLIENTS))('ClusterStore over %s', (_, open) => {
  describe('keeps the contract', () => storeContract(() => openClusterStore(open())))
})

describe('ClusterStore over a client with a keyPrefix', () => {
  storeContract(() => openClusterStore(CLIENTS['ioredis 6']({ keyPrefix: 'app*[x]?:' }), 'app*[x]?:'))
})

describe('ClusterStore over a client whose keyPrefix keeps all keys in one slot', () => {
  storeContract(() => openClusterStore(CLIENTS['ioredis 6']({ keyPrefix: '{app}:' }), '{app}:'))
})

describe('ClusterStore over a client with options that could get in its way', () => {
  storeContract(() =>
    openClusterStore(
      CLIENTS['ioredis 6']({
        enableAutoPipelining: true,
        scaleReads: 'slave',
        redisOptions: { protocol: 2, stringNumbers: true, maxRetriesPerRequest: null, connectionName: 'app' },
      }),
    ),
  )
})
