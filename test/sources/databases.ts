import { PGlite } from '@electric-sql/pglite'
import { citext } from '@electric-sql/pglite/contrib/citext'
import { hstore } from '@electric-sql/pglite/contrib/hstore'
import {
  type Dialect,
  Kysely,
  type KyselyPlugin,
  type LogEvent,
  PGliteDialect,
  PostgresDialect,
} from 'kysely'
import { Pool, type PoolConfig } from 'pg'
import type { Tables } from '../../src/sources/database.ts'
import { createTestDatabase } from '../support/database.ts'

/** A statement as the driver was given it. */
export interface Statement {
  readonly sql: string
  readonly parameters: readonly unknown[]
}

export interface KyselyOptions {
  readonly plugins?: KyselyPlugin[]
  /** For `pg` alone: time zone, type parsers and the like. */
  readonly pool?: PoolConfig
}

/** A new, empty database, whatever runs it. */
export interface SourceDatabase {
  /** Runs a script of any number of statements. */
  run(script: string): Promise<void>
  /** The rows of one statement, read by the driver and by nobody else. */
  query(text: string, parameters?: readonly unknown[]): Promise<Record<string, unknown>[]>
  /** Another Kysely over it. `statements` grows with every statement that it sends. */
  kysely<DB = Tables>(options?: KyselyOptions): { db: Kysely<DB>; statements: Statement[] }
  close(): Promise<void>
}

/** Whatever is said to hold for a source holds for each of these. */
export const DATABASES: readonly (readonly [name: string, open: () => Promise<SourceDatabase>])[] = [
  ['Postgres', openPostgres],
  ['PGlite', openPGlite],
]

export async function openPostgres(): Promise<SourceDatabase> {
  const { pool, url, drop } = await createTestDatabase()
  quiet(pool)
  const pools: Pool[] = []
  return {
    async run(script) {
      await pool.query(script)
    },
    async query(text, parameters = []) {
      return (await pool.query(text, [...parameters])).rows
    },
    kysely({ plugins, pool: config } = {}) {
      const own = quiet(new Pool({ connectionString: url, ...config }))
      pools.push(own)
      return logged(new PostgresDialect({ pool: own }), plugins)
    },
    async close() {
      await Promise.all(pools.map((each) => each.end()))
      await drop()
    },
  }
}

/** A pool has ended before its connections have, so dropping the database may cut one off. */
function quiet(pool: Pool): Pool {
  return pool.on('error', () => {}).on('connect', (client) => client.on('error', () => {}))
}

export async function openPGlite(): Promise<SourceDatabase> {
  const pglite = await PGlite.create({ extensions: { citext, hstore } })
  return {
    async run(script) {
      await pglite.exec(script)
    },
    async query(text, parameters = []) {
      return (await pglite.query<Record<string, unknown>>(text, [...parameters])).rows
    },
    kysely: ({ plugins } = {}) => logged(new PGliteDialect({ pglite }), plugins),
    close: () => pglite.close(),
  }
}

function logged<DB>(dialect: Dialect, plugins?: KyselyPlugin[]) {
  const statements: Statement[] = []
  const log = ({ query: { sql, parameters } }: LogEvent): void => {
    statements.push({ sql, parameters })
  }
  return { db: new Kysely<DB>({ dialect, log, ...(plugins && { plugins }) }), statements }
}
