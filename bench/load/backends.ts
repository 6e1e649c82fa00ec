import { Redis } from 'ioredis'
import { Client } from 'pg'
import { startPostgres } from '../../test/servers/postgres.ts'
import { startRedis } from '../../test/servers/redis.ts'
import type { Server } from '../../test/servers/server.ts'
import { type FaultyProxy, startProxy } from '../../test/support/proxy.ts'

/** Commands of connections, and ours. */
const UNCOUNTED = /^(?:info|hello|client|auth|select|ping|script|config|command)$/

export interface Counts {
  readonly commands: number
  readonly statements: number
}

/** A Redis behind a proxy, and a Postgres, which count what they are asked. */
export interface Backends {
  readonly databaseUrl: string
  /** Of the proxy. */
  readonly redisUrl: string
  readonly redis: Server
  readonly proxy: FaultyProxy
  /** Since they were started; null for Redis while it is away. */
  counts(): Promise<Counts>
  stop(): Promise<void>
}

export async function startBackends(): Promise<Backends> {
  const [redis, postgres] = await Promise.all([
    startRedis(),
    startPostgres({ settings: { shared_preload_libraries: 'pg_stat_statements' } }),
  ])
  const proxy = await startProxy(redis.port)
  const client = new Client({ connectionString: postgres.url })
  await client.connect()
  await client.query('create extension pg_stat_statements')
  return {
    databaseUrl: postgres.url,
    redisUrl: `redis://127.0.0.1:${proxy.port}`,
    redis,
    proxy,
    async counts() {
      const asking = new Redis(redis.url)
      const info = await asking.info('commandstats')
      asking.disconnect()
      const all = [...info.matchAll(/^cmdstat_([^:|]+)[^:]*:calls=(\d+)/gm)]
      const commands = all.reduce(
        (sum, [, name = '', calls]) => (UNCOUNTED.test(name) ? sum : sum + Number(calls)),
        0,
      )
      const { rows } = await client.query(
        `select coalesce(sum(calls), 0)::int as calls from pg_stat_statements where query not ilike '%pg_stat_statements%'`,
      )
      return { commands, statements: rows[0].calls }
    },
    async stop() {
      await client.end()
      await proxy.close()
      await Promise.all([redis.stop(), postgres.stop()])
    },
  }
}
