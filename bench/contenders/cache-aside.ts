import type { Redis } from 'ioredis'
import type { Kysely } from 'kysely'
import type { Row } from '../contender.ts'
import type { Database, TableName } from '../data.ts'

/** What the two floors do alike: the cache-aside that every team writes first, with nothing against races. */
const TTL_SECONDS = 7 * 24 * 3600

export interface Connections {
  readonly redis: Redis
  readonly db: Kysely<Database>
  /** Fills that nobody waits for. */
  readonly filling: Set<Promise<unknown>>
}

export const rowKey = (table: TableName, id: number) => `floor:${table}:${id}`
export const listKey = (org: number) => `floor:users:org:${org}`

export async function selectRows(
  { db }: Connections,
  table: TableName,
  ids: readonly number[],
): Promise<Map<number, Row>> {
  const rows = await db.selectFrom(table).selectAll().where('id', 'in', ids).execute()
  return new Map(rows.map((row) => [row.id, row]))
}

export async function selectLists({ db }: Connections, orgs: readonly number[]): Promise<Map<number, Row[]>> {
  const rows = await db.selectFrom('users').selectAll().where('org_id', 'in', orgs).orderBy('id').execute()
  const lists = new Map<number, Row[]>()
  for (const row of rows) {
    const list = lists.get(row.org_id)
    if (list) list.push(row)
    else lists.set(row.org_id, [row])
  }
  return lists
}

/** One pipeline of `set`, awaited by nobody but {@link filled}. */
export function fill(
  { redis, filling }: Connections,
  entries: readonly (readonly [key: string, value: unknown])[],
): void {
  const pipeline = redis.pipeline()
  for (const [key, value] of entries) pipeline.set(key, JSON.stringify(value), 'EX', TTL_SECONDS)
  const done = pipeline.exec().finally(() => filling.delete(done))
  filling.add(done)
}

export async function filled({ filling }: Connections): Promise<void> {
  await Promise.all(filling)
}

export async function disconnect({ redis, db }: Connections): Promise<void> {
  redis.disconnect()
  await db.destroy()
}
