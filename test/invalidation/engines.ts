import { PGlite } from '@electric-sql/pglite'
import { citext } from '@electric-sql/pglite/contrib/citext'
import { Kysely, PGliteDialect, PostgresDialect, sql } from 'kysely'
import type { Connection, Submittable } from 'pg'
import { type InstallPlan, planModels } from '../../src/invalidation/recording.ts'
import { defineModel, type ModelMeta } from '../../src/models/model.ts'
import type { Touched } from '../../src/models/touched.ts'
import type { Database } from '../../src/sources/database.ts'
import { describeTable } from '../../src/sources/describe.ts'
import { createTestDatabase } from '../support/database.ts'

/** An empty database of its own, on one of the servers that Loadstone runs on. */
export interface TestEngine {
  readonly db: Database
  /** Statements without parameters, all in one session, as psql would send them. */
  run(text: string): Promise<void>
  /** COPY from the client. Only where it is a server of its own. */
  copy?(statement: string, data: string): Promise<void>
  /** Only where it is a server of its own. */
  readonly url?: string
  /** As it was when it was opened. */
  reset(): Promise<void>
  close(): Promise<void>
}

export const ENGINES = { Postgres: openPostgres, PGlite: openPGlite }

async function openPostgres(): Promise<TestEngine> {
  const { pool, url, drop } = await createTestDatabase()
  const db: Database = new Kysely({ dialect: new PostgresDialect({ pool }) })
  const session = await pool.connect()
  return {
    db,
    run: async (text) => void (await session.query(text)),
    copy: (statement, data) =>
      new Promise((resolve, reject) => void session.query(new CopyFrom(statement, data, resolve, reject))),
    url,
    reset: () => reset(db),
    async close() {
      session.release()
      await drop()
    },
  }
}

/** What `pg` needs for a COPY, without a package for it. */
class CopyFrom implements Submittable {
  constructor(
    readonly statement: string,
    readonly data: string,
    readonly handleReadyForQuery: () => void,
    readonly handleError: (error: Error) => void,
  ) {}

  submit(connection: Connection): void {
    connection.query(this.statement)
  }

  handleCopyInResponse(connection: { sendCopyFromChunk(data: Buffer): void; endCopyFrom(): void }): void {
    connection.sendCopyFromChunk(Buffer.from(this.data))
    connection.endCopyFrom()
  }

  handleCommandComplete(): void {}
}

async function openPGlite(): Promise<TestEngine> {
  const pglite = await PGlite.create({ extensions: { citext } })
  const db: Database = new Kysely({ dialect: new PGliteDialect({ pglite }) })
  const run = async (text: string) => void (await pglite.exec(text))
  return { db, run, reset: () => reset(db), close: () => db.destroy() }
}

async function reset(db: Database): Promise<void> {
  await sql`drop schema if exists loadstone cascade`.execute(db)
  await sql`drop schema public cascade`.execute(db)
  await sql`create schema public`.execute(db)
}

/** What an application that declares these models would install. */
export async function planOf(
  db: Database,
  models: Readonly<Record<string, ModelMeta>>,
  { namespace = 'shop', maxTouchedRows = 10_000 } = {},
): Promise<InstallPlan> {
  const described = []
  for (const [name, meta] of Object.entries(models)) {
    const definition = defineModel(name, meta)
    described.push({ definition, table: await describeTable(db, definition) })
  }
  return { namespace, models: planModels(described), maxTouchedRows }
}

export interface Recorded {
  readonly namespace: string
  readonly model: string
  readonly touched: Touched | null
}

/** Takes what is in the outbox, oldest first. */
export async function takeRecorded(db: Database): Promise<Recorded[]> {
  const { rows } = await sql<{ recorded: string | null }>`
    with taken as (delete from loadstone.outbox returning *)
    select json_agg(json_build_object('namespace', namespace, 'model', model, 'touched', touched) order by xid, id)::text as recorded
    from taken`.execute(db)
  return JSON.parse(rows[0]?.recorded ?? '[]') as Recorded[]
}

/** The recorded tuples of each outbox row, in an order that can be compared; 'all' for a whole model. */
export async function takeTuples(db: Database): Promise<('all' | (string | null)[][])[]> {
  const recorded = await takeRecorded(db)
  return recorded.map(({ touched }) =>
    touched
      ? touched.rows.map((row) => [...row]).sort((a, b) => (a.join('\0') < b.join('\0') ? -1 : 1))
      : 'all',
  )
}
