import { randomBytes } from 'node:crypto'
import { type Cache, createModelCache } from 'loadstone'
import { openDatabase, openRedis, type ShopDatabase } from './connections.ts'
import { declareModels } from './models.ts'
import type { Database } from './schema.ts'

export type { Models } from './models.ts'

export interface ShopCache {
  readonly cache: Cache<Database>
  readonly models: ReturnType<typeof declareModels>
  /** Forgets what was cached, and disconnects. */
  close(): Promise<void>
}

export interface Shop extends ShopCache {
  readonly database: ShopDatabase
}

export interface ShopUrls {
  /** Default `REDIS_URL` of the environment. Empty: the cache is inside this process. */
  readonly redisUrl?: string | undefined
  /** Default `DATABASE_URL` of the environment. Empty: the database is inside this process. */
  readonly databaseUrl?: string | undefined
}

/** A shop with rows in its tables and nothing in its cache, which is told of every write. */
export async function openShop({ redisUrl, databaseUrl }: ShopUrls = {}): Promise<Shop> {
  const database = await openDatabase(databaseUrl)
  const shopCache = openCache(database, { redisUrl, invalidation: 'triggers' })
  await shopCache.cache.install()
  return {
    ...shopCache,
    database,
    async close() {
      await shopCache.cache.uninstall()
      await shopCache.close()
      await database.close()
    },
  }
}

/** A new and empty cache over the database. */
export function openCache(
  { db }: ShopDatabase,
  {
    redisUrl,
    invalidation = 'manual',
  }: { redisUrl?: string | undefined; invalidation?: 'triggers' | 'manual' } = {},
): ShopCache {
  const redis = openRedis(redisUrl)
  const cache = createModelCache({
    db,
    redis,
    invalidation,
    // An application writes its name here. The examples share servers with others, and want to begin cold.
    namespace: `loadstone-demo-${randomBytes(4).toString('hex')}`,
    ttl: '10m',
    // 50 ms, the default, keeps requests fast when Redis is slow. The examples tell counts instead, which must not
    // change because the machine is busy.
    storeTimeout: '10s',
  })
  const models = declareModels(cache)
  return {
    cache,
    models,
    async close() {
      // What cannot be cleared, because the store is gone, ends with its ttl.
      await Promise.allSettled(Object.values(models).map((model) => model.cache.clear()))
      await cache.close()
      redis?.disconnect()
    },
  }
}
