import DataLoader from 'dataloader'
import { Redis } from 'ioredis'
import type { Prepare, Row } from '../contender.ts'
import { TABLES, type TableName } from '../data.ts'
import {
  type Connections,
  disconnect,
  fill,
  filled,
  listKey,
  rowKey,
  selectLists,
  selectRows,
} from './cache-aside.ts'
import { openDatabase } from './database.ts'

/** What a careful team writes by hand: new DataLoaders for each request, one per model, over `mget` and `where in`. */
export const prepare: Prepare = async ({ redisUrl, databaseUrl }) => {
  const connections: Connections = {
    redis: new Redis(redisUrl),
    db: openDatabase(databaseUrl),
    filling: new Set(),
  }
  const rowLoader = (table: TableName) =>
    new DataLoader<number, Row | null>((ids) =>
      readThrough(
        connections,
        ids,
        (id) => rowKey(table, id),
        (missing) => selectRows(connections, table, missing),
        null,
      ),
    )
  const listLoader = () =>
    new DataLoader<number, readonly Row[]>((orgs) =>
      readThrough<readonly Row[]>(
        connections,
        orgs,
        listKey,
        (missing) => selectLists(connections, missing),
        [],
      ),
    )

  return {
    rows(ids) {
      const users = rowLoader('users')
      return Promise.all(ids.map((id) => users.load(id)))
    },
    mixed(ids) {
      const loaders = TABLES.map(rowLoader)
      return Promise.all(loaders.flatMap((loader) => ids.map((id) => loader.load(id))))
    },
    lists(orgs) {
      const byOrg = listLoader()
      return Promise.all(orgs.map((org) => byOrg.load(org)))
    },
    async known(ids) {
      const users = rowLoader('users')
      await Promise.all(ids.map((id) => users.load(id)))
      return { load: (wanted) => Promise.all(wanted.map((id) => users.load(id))) }
    },
    idle: () => filled(connections),
    close: () => disconnect(connections),
  }
}

/** A batch function: what Redis has, and the rest from SQL. */
async function readThrough<Value>(
  connections: Connections,
  ids: readonly number[],
  keyOf: (id: number) => string,
  select: (ids: readonly number[]) => Promise<ReadonlyMap<number, Value>>,
  absent: Value,
): Promise<Value[]> {
  const texts = await connections.redis.mget(ids.map(keyOf))
  const missing = ids.filter((_, i) => texts[i] === null)
  if (missing.length === 0) return texts.map((text) => JSON.parse(text as string))
  const found = await select(missing)
  fill(
    connections,
    [...found].map(([id, value]) => [keyOf(id), value] as const),
  )
  return texts.map((text, i) => (text === null ? (found.get(ids[i] as number) ?? absent) : JSON.parse(text)))
}
