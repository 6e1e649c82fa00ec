import { randomBytes } from 'node:crypto'
import { Redis, type RedisOptions } from 'ioredis'
import { inject } from 'vitest'

export interface TestRedis {
  redis: Redis
  /** Unique to this call. The server is shared by all test files, so each keeps to its own keys; never FLUSHALL. */
  namespace: string
}

export interface TestRedisOptions extends Omit<RedisOptions, 'replyMapping'> {
  /** Default: the run's Redis. */
  url?: string
}

const clients = new Set<Redis>()

/** A client and a namespace of its own. Close all of a file's clients with {@link closeRedis}. */
export function testRedis({ url = inject('redisUrl'), ...options }: TestRedisOptions = {}): TestRedis {
  const redis = new Redis(url, options)
  clients.add(redis)
  return { redis, namespace: `test-${randomBytes(6).toString('hex')}` }
}

/** For `afterAll`: closes every client that {@link testRedis} gave out in this test file. */
export async function closeRedis(): Promise<void> {
  for (const redis of clients) redis.disconnect()
  clients.clear()
}
