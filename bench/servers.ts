import { Redis } from 'ioredis'
import { Client } from 'pg'
import { startPostgres } from '../test/servers/postgres.ts'
import { startRedis } from '../test/servers/redis.ts'
import { COLUMNS, ROW_COUNT, range, rowOf, TABLES } from './data.ts'

const DATABASE = 'bench'

/** Not the contender's work: connecting, being told who the master is, and our own questions. */
const UNCOUNTED = new Set([
  'info',
  'hello',
  'client',
  'auth',
  'select',
  'ping',
  'script',
  'config',
  'command',
  'flushdb',
])

/** What the servers have done since they were started. */
export interface ServerCounts {
  /** By Redis command; those that a script runs are among them. */
  readonly commands: ReadonlyMap<string, number>
  readonly statements: number
}

/** The benchmarks' own Redis and Postgres. */
export class Servers {
  readonly databaseUrl: string
  readonly versions: { readonly redis: string; readonly postgres: string }
  readonly #redisUrl: string
  readonly #redis: Redis
  readonly #postgres: Client
  readonly #stop: () => Promise<unknown>

  private constructor(
    urls: { redis: string; database: string },
    redis: Redis,
    postgres: Client,
    versions: { redis: string; postgres: string },
    stop: () => Promise<unknown>,
  ) {
    this.databaseUrl = urls.database
    this.#redisUrl = urls.redis
    this.#redis = redis
    this.#postgres = postgres
    this.versions = versions
    this.#stop = stop
  }

  static async start(): Promise<Servers> {
    const [redisServer, postgresServer] = await Promise.all([
      startRedis(),
      // Counts statements. It is in every distribution's contrib, and costs no client anything.
      startPostgres({ settings: { shared_preload_libraries: 'pg_stat_statements' } }),
    ])
    const url = new URL(postgresServer.url)
    const postgres = new Client({ connectionString: url.href })
    await postgres.connect()
    await postgres.query('create extension pg_stat_statements')
    await postgres.query(`create database ${DATABASE}`)
    url.pathname = `/${DATABASE}`
    await createTables(url.href)
    const redis = new Redis(redisServer.url)
    const versions = {
      redis: /redis_version:(\S+)/.exec(await redis.info('server'))?.[1] ?? '?',
      postgres: (await postgres.query('show server_version')).rows[0].server_version as string,
    }
    return new Servers({ redis: redisServer.url, database: url.href }, redis, postgres, versions, () =>
      Promise.all([redisServer.stop(), postgresServer.stop()]),
    )
  }

  /** @param index each contender has its own database, so that it may be emptied */
  redisUrl(index: number): string {
    return `${this.#redisUrl}/${index}`
  }

  async emptyRedis(index: number): Promise<void> {
    await this.#redis.select(index)
    await this.#redis.flushdb()
  }

  /** How many values a Redis database holds, and how long they are on average. */
  async storedValues(index: number): Promise<{ count: number; bytes: number }> {
    await this.#redis.select(index)
    const keys = await this.#redis.keys('*')
    const lengths = await Promise.all(keys.map((key) => this.#redis.strlen(key)))
    const sum = lengths.reduce((total, length) => total + length, 0)
    return { count: keys.length, bytes: Math.round(sum / Math.max(keys.length, 1)) }
  }

  async counts(): Promise<ServerCounts> {
    const [info, { rows }] = await Promise.all([
      this.#redis.info('commandstats'),
      this.#postgres.query(
        `select coalesce(sum(calls), 0)::int as calls from pg_stat_statements
           where dbid = (select oid from pg_database where datname = $1)`,
        [DATABASE],
      ),
    ])
    const all = [...info.matchAll(/^cmdstat_([^:|]+)[^:]*:calls=(\d+)/gm)]
    const commands = all.map(([, name = '', calls]) => [name, Number(calls)] as const)
    return { commands: new Map(commands.filter(([name]) => !UNCOUNTED.has(name))), statements: rows[0].calls }
  }

  async stop(): Promise<void> {
    this.#redis.disconnect()
    await this.#postgres.end()
    await this.#stop()
  }
}

async function createTables(databaseUrl: string): Promise<void> {
  const client = new Client({ connectionString: databaseUrl })
  await client.connect()
  try {
    for (const table of TABLES) {
      await client.query(`create table ${table} (${COLUMNS})`)
      await client.query(`create index on ${table} (org_id, role)`)
      const rows = range(ROW_COUNT[table], 1).map((id) => rowOf(table, id))
      await client.query(`insert into ${table} select * from json_populate_recordset(null::${table}, $1)`, [
        JSON.stringify(rows),
      ])
      await client.query(`vacuum analyze ${table}`)
    }
  } finally {
    await client.end()
  }
}
