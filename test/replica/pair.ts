import { Kysely, PostgresDialect } from 'kysely'
import { type Cache, type CacheOptions, createModelCache, withInvalidation } from 'loadstone'
import { Client, Pool, type PoolConfig } from 'pg'
import { vi } from 'vitest'
import { startPostgres, startStandby } from '../servers/postgres.ts'
import type { Server } from '../servers/server.ts'
import { type FaultyProxy, startProxy } from '../support/proxy.ts'

export interface PairTables {
  people: { id: number; name: string; team_id: number; best_friend: number | null }
  teams: { id: number; title: string }
}

/** A connection for anything, past every cache. */
export interface Psql {
  (text: string): Promise<Record<string, unknown>[]>
  end(): Promise<void>
}

/** A primary with a hot standby. */
export interface Pair {
  readonly primary: Server
  readonly standby: Server
  readonly onPrimary: Psql
  readonly onStandby: Psql
  /** The standby replays no more; it goes on receiving. */
  pause(): Promise<void>
  resume(): Promise<void>
  /**
   * Resolves when the standby has replayed all that was in the primary's WAL when it was called. What no commit follows
   * (pages that a reader has tidied up) is sent to standbys only some seconds later.
   */
  caughtUp(): Promise<void>
  close(): Promise<void>
}

/** People 1 to 20 in teams 1 to 4, each of whom is called `name <id>` and has the next one as their best friend. */
export async function openPair(settings: Record<string, string> = {}): Promise<Pair> {
  const primary = await startPostgres({ settings })
  const onPrimary = await psql(primary.url)
  await onPrimary(`
    create table teams (id int primary key, title text not null);
    create table people (id int primary key, name text not null, team_id int not null, best_friend int);
    create index on people (team_id);
    insert into teams select i, 'team ' || i from generate_series(1, 4) i;
    insert into people select i, 'name ' || i, i % 4 + 1, i % 20 + 1 from generate_series(1, 20) i;`)
  const standby = await startStandby(primary)
  const onStandby = await psql(standby.url)
  return {
    primary,
    standby,
    onPrimary,
    onStandby,
    async pause() {
      await onStandby('select pg_wal_replay_pause()')
      await eventually(onStandby, "pg_get_wal_replay_pause_state() = 'paused'")
    },
    async resume() {
      await onStandby('select pg_wal_replay_resume()')
    },
    async caughtUp() {
      const [row] = await onPrimary(FLUSH)
      await eventually(onStandby, `pg_last_wal_replay_lsn() >= '${row?.lsn}'`)
    },
    async close() {
      await Promise.all([onPrimary.end(), onStandby.end()])
      await Promise.all([primary.stop(), standby.stop()])
    },
  }
}

/** Its commit has everything before it flushed, and so sent. */
export const FLUSH = "select pg_logical_emit_message(true, 'test', 'flush')::text as lsn"

/** Resolves when a condition holds on a server. */
export function eventually(ask: Psql, condition: string): Promise<void> {
  const look = async () => {
    const [row] = await ask(`select (${condition}) as holds`)
    if (row?.holds !== true) throw new Error(`not yet: ${condition}`)
  }
  return soon(look)
}

/** Tries until it does not fail. */
export function soon<T>(attempt: () => T | Promise<T>): Promise<T> {
  return vi.waitFor(attempt, { timeout: 15_000, interval: 5 })
}

export async function psql(url: string): Promise<Psql> {
  const client = new Client({ connectionString: url })
  client.on('error', () => {})
  await client.connect()
  const ask = async (text: string) => (await client.query(text)).rows ?? []
  return Object.assign(ask, { end: () => client.end().catch(() => {}) })
}

/** A Kysely by way of a proxy, with a log of the statements that were answered. */
export interface Line {
  readonly db: Kysely<PairTables>
  readonly statements: string[]
  readonly proxy: FaultyProxy
  close(): Promise<void>
}

export async function openLine(
  role: 'primary' | 'replica',
  server: Server,
  config: PoolConfig = {},
): Promise<Line> {
  const proxy = await startProxy(server.port)
  const pool = new Pool({
    host: '127.0.0.1',
    port: proxy.port,
    user: 'postgres',
    database: 'postgres',
    ...config,
  })
  pool.on('error', () => {}).on('connect', (client) => client.on('error', () => {}))
  const statements: string[] = []
  const dialect = new PostgresDialect({ pool })
  const db = new Kysely<PairTables>({
    dialect: role === 'primary' ? withInvalidation(dialect) : dialect,
    log: ({ query }) => void statements.push(query.sql),
  })
  return {
    db,
    statements,
    proxy,
    async close() {
      // What is under way to a server that does not answer would keep the pool from ending.
      const destroyed = db.destroy()
      await proxy.close()
      await destroyed
    },
  }
}

/** How long tests wait for a replica that will catch up: the machine may be busy. */
export const PATIENT = '10s'

/** A cache that reads from a replica; its own process is the only one, so nothing is in Redis. */
export function openCache(
  lines: { readonly primary: Line; readonly replica: Line },
  replica: Partial<CacheOptions<PairTables>['replica']> = {},
  options: Partial<CacheOptions<PairTables>> = {},
) {
  const cache: Cache<PairTables> = createModelCache({
    db: lines.primary.db,
    namespace: 'pair',
    invalidation: 'manual',
    relay: false,
    replica: { db: lines.replica.db, maxWait: PATIENT, ...replica },
    ...options,
  })
  const Team = cache.model('teams', { keyFields: [['id']] })
  const Person = cache.model('people', { keyFields: [['id']], filterFields: [['team_id']] })
  return { cache, Team, Person }
}
