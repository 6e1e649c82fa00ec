import { randomBytes } from 'node:crypto'
import { Redis } from 'ioredis'
import { type Dialect, Kysely, PGliteDialect, PostgresDialect } from 'kysely'
import { withInvalidation } from 'loadstone'
import { createTables, type Database } from './schema.ts'
import { seed } from './seed.ts'

export interface ShopDatabase {
  readonly db: Kysely<Database>
  /** What it runs on, for people. */
  readonly kind: string
  readonly rowCount: number
  /** SQL statements executed through `db` so far. */
  statementCount(): number
  /** Drops what was created, and disconnects. */
  close(): Promise<void>
}

/** The shop's tables and rows: on the Postgres at `DATABASE_URL`, else on PGlite, a Postgres inside this process. */
export async function openDatabase(url = process.env.DATABASE_URL): Promise<ShopDatabase> {
  let count = 0
  const root = new Kysely<Database>({
    dialect: withInvalidation(url ? await serverDialect(url) : await embeddedDialect()),
    log: (event) => {
      if (event.level === 'query') count++
    },
  })
  // A schema of its own, whose name nobody else has: nothing that is there can be in the way, or come to harm.
  const schema = `loadstone_demo_${randomBytes(4).toString('hex')}`
  const close = async () => {
    await root.schema.dropSchema(schema).ifExists().cascade().execute()
    await root.destroy()
  }
  try {
    await root.schema.createSchema(schema).execute()
    const db = root.withSchema(schema)
    await createTables(db)
    const rowCount = await seed(db)
    return { db, kind: url ? 'Postgres' : 'PGlite', rowCount, statementCount: () => count, close }
  } catch (error) {
    await close().catch(() => {})
    throw error
  }
}

async function serverDialect(url: string): Promise<Dialect> {
  const { Pool } = await import('pg')
  const pool = new Pool({ connectionString: url })
  pool.on('error', () => {}) // an idle connection was lost; the pool makes a new one
  return new PostgresDialect({ pool })
}

async function embeddedDialect(): Promise<Dialect> {
  const { PGlite } = await import('@electric-sql/pglite')
  return new PGliteDialect({ pglite: new PGlite() })
}

/** A client of the Redis at `REDIS_URL`, else undefined: the cache then keeps its entries inside this process. */
export function openRedis(url = process.env.REDIS_URL): Redis | undefined {
  // Loadstone makes a connection of its own from it, so this one need not be opened.
  return url ? new Redis(url, { lazyConnect: true }) : undefined
}
