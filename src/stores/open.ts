import type { Breaker } from './breaker.ts'
import { ClusterStore } from './cluster.ts'
import { GuardedStore } from './guarded.ts'
import { type RedisClient, RedisStore, type RedisStoreOptions } from './redis.ts'
import type { CacheStore } from './store.ts'
import type { ClusterClient } from './topology.ts'

/**
 * The store behind a client of the application.
 *
 * @param breaker for a single server; each master of a cluster is left alone by itself while it is away
 * @throws OptionError
 */
export function openRedisStore(
  client: RedisClient | ClusterClient,
  options: RedisStoreOptions,
  breaker: Breaker,
): CacheStore {
  return isCluster(client)
    ? new ClusterStore(client, options)
    : new GuardedStore(new RedisStore(client, options), breaker)
}

function isCluster(client: RedisClient | ClusterClient): client is ClusterClient {
  return (client as Partial<ClusterClient>).isCluster === true
}
