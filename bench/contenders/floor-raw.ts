import { AsyncLocalStorage } from 'node:async_hooks'
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

/** The least that reading rows from Redis can cost: all keys in one `mget`, `JSON.parse`, no promise per key. */
export const prepare: Prepare = async ({ redisUrl, databaseUrl }) => {
  const connections: Connections = {
    redis: new Redis(redisUrl),
    db: openDatabase(databaseUrl),
    filling: new Set(),
  }
  const { redis } = connections
  const scopes = new AsyncLocalStorage<object>()

  async function read(tables: readonly TableName[], ids: readonly number[]): Promise<(Row | null)[]> {
    const keys: string[] = []
    for (const table of tables) for (const id of ids) keys.push(rowKey(table, id))
    const texts = await redis.mget(keys)
    const rows: (Row | null)[] = []
    let misses = 0
    for (const text of texts) {
      if (text === null) misses++
      rows.push(text === null ? null : JSON.parse(text))
    }
    if (misses > 0) {
      await Promise.all(tables.map((table, i) => load(table, ids, rows, i * ids.length)))
    }
    return rows
  }

  /** Loads what is missing of a table's rows, which begin at `from`. */
  async function load(
    table: TableName,
    ids: readonly number[],
    rows: (Row | null)[],
    from: number,
  ): Promise<void> {
    const missing = ids.filter((_, i) => rows[from + i] === null)
    if (missing.length === 0) return
    const found = await selectRows(connections, table, missing)
    for (const [i, id] of ids.entries()) rows[from + i] ??= found.get(id) ?? null
    fill(
      connections,
      [...found].map(([id, row]) => [rowKey(table, id), row] as const),
    )
  }

  return {
    rows: (ids) => read(['users'], ids),
    mixed: (ids) => read(TABLES, ids),
    async lists(orgs) {
      const texts = await redis.mget(orgs.map(listKey))
      const lists: Row[][] = []
      const missing: number[] = []
      for (const [i, text] of texts.entries()) {
        if (text === null) missing.push(i)
        lists.push(text === null ? [] : JSON.parse(text))
      }
      if (missing.length > 0) {
        const found = await selectLists(
          connections,
          missing.map((i) => orgs[i] as number),
        )
        for (const i of missing) lists[i] = found.get(orgs[i] as number) ?? []
        fill(
          connections,
          missing.map((i) => [listKey(orgs[i] as number), lists[i]] as const),
        )
      }
      return lists
    },
    async known(ids) {
      const rows = await read(['users'], ids)
      const memo = new Map(ids.map((id, i) => [id, rows[i] as Row | null]))
      const promises = new Map(ids.map((id, i) => [id, Promise.resolve(rows[i] as Row | null)]))
      return {
        load: (wanted) => Promise.all(wanted.map((id) => promises.get(id) as Promise<Row | null>)),
        peek: (wanted) => wanted.map((id) => memo.get(id)),
      }
    },
    emptyRequests(count) {
      for (let i = 0; i < count; i++) scopes.run({}, nothing)
      // Left on, it would make every promise of this process dearer.
      scopes.disable()
    },
    idle: () => filled(connections),
    close: () => disconnect(connections),
  }
}

function nothing(): void {}
