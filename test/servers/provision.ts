import { Redis } from 'ioredis'
import { Client } from 'pg'
import { findPostgres, findRedis } from './find-binary.ts'
import { installServers, type ServerPackage } from './install.ts'
import { type Machine, thisMachine } from './machine.ts'
import { startPostgres } from './postgres.ts'
import { startRedis } from './redis.ts'

export interface Servers {
  redisUrl: string
  databaseUrl: string
  /** Stops those that were started here; servers named by the environment are left alone. */
  stop(): Promise<void>
}

/** The servers named by `REDIS_URL` and `DATABASE_URL`, or else new ones, installed first when they are missing. */
export async function provisionServers(
  env = process.env,
  machine: Machine = thisMachine(),
): Promise<Servers> {
  installServers(missingPackages(env, machine), machine)
  const [redis, postgres] = await Promise.allSettled([
    env.REDIS_URL ? existing('REDIS_URL', env.REDIS_URL, pingRedis) : startRedis(),
    env.DATABASE_URL ? existing('DATABASE_URL', env.DATABASE_URL, pingPostgres) : startPostgres(),
  ])
  const stop = async () => {
    await Promise.all([redis, postgres].map((result) => result.status === 'fulfilled' && result.value.stop()))
  }
  if (redis.status === 'fulfilled' && postgres.status === 'fulfilled') {
    return { redisUrl: redis.value.url, databaseUrl: postgres.value.url, stop }
  }
  await stop()
  throw [redis, postgres].find((result) => result.status === 'rejected')?.reason
}

function missingPackages(env: NodeJS.ProcessEnv, machine: Machine): ServerPackage[] {
  const missing: ServerPackage[] = []
  if (!env.REDIS_URL && !findRedis(machine)) missing.push('redis-server')
  if (!env.DATABASE_URL && !findPostgres(machine)) missing.push('postgresql')
  return missing
}

async function existing(variable: string, url: string, ping: (url: string) => Promise<void>) {
  try {
    await ping(url)
  } catch (cause) {
    throw new Error(`nothing answers at ${variable}=${url}: ${cause}`, { cause })
  }
  return { url, stop: async () => {} }
}

async function pingRedis(url: string): Promise<void> {
  const redis = new Redis(url, { lazyConnect: true, retryStrategy: () => null, connectTimeout: 5_000 })
  let reason: unknown // `connect` itself rejects with no more than 'Connection is closed.'
  redis.on('error', (error) => {
    reason = error
  })
  try {
    await redis.connect()
    await redis.ping()
  } catch (error) {
    throw reason ?? error
  } finally {
    redis.disconnect()
  }
}

async function pingPostgres(url: string): Promise<void> {
  const client = new Client({ connectionString: url, connectionTimeoutMillis: 5_000 })
  try {
    await client.connect()
    await client.query('select 1')
  } finally {
    await client.end()
  }
}
