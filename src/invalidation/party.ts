import type { OutboxRow, TouchedKeys } from '../models/touched.ts'
import type { Database } from '../sources/database.ts'
import type { CacheStore } from '../stores/store.ts'
import type { CommitParty } from './commit.ts'
import { deleteRows } from './outbox-rows.ts'

/** A cache, as those who write to its database see it. */
export interface InvalidationParty extends CommitParty {
  readonly store: CacheStore
  /** Without plugins. */
  readonly db: Database
  readonly intentTtlMs: number
  /** Counted up. */
  readonly counters: InvalidationCounters
  /** The current scope's memo forgets what was touched. */
  forget(touched: TouchedKeys): void
  /** Deletes outbox rows that were applied, some time soon. */
  deleteSoon(rows: readonly OutboxRow[]): void
}

export interface InvalidationCounters {
  /** Cache keys cleared after commits of this process. */
  cleared: number
  /** Commits whose keys could not be cleared at once; their outbox rows are left to the relay. */
  deferred: number
  /** Outbox rows that the relay of this process applied. */
  relayed: number
  /** Turns of the relay that failed. */
  relayErrors: number
  /** Age of the oldest outbox row that the relay saw in its last turn, ms. */
  relayLagMs: number
}

export const NO_INVALIDATIONS: InvalidationCounters = Object.freeze({
  cleared: 0,
  deferred: 0,
  relayed: 0,
  relayErrors: 0,
  relayLagMs: 0,
})

/** Of several parties together: sums, and the longest lag. */
export function sumOfCounters(all: readonly InvalidationCounters[]): InvalidationCounters {
  const sum = { ...NO_INVALIDATIONS }
  for (const counters of all) {
    for (const name of Object.keys(sum) as (keyof InvalidationCounters)[]) {
      sum[name] = name === 'relayLagMs' ? Math.max(sum[name], counters[name]) : sum[name] + counters[name]
    }
  }
  return sum
}

/** Clears what writes made wrong, whole models included. */
export async function clearTouched(
  store: CacheStore,
  { keys, prefixes, stale }: TouchedKeys,
  token: string | null,
  committed: boolean,
): Promise<void> {
  const steps: (() => Promise<void>)[] = []
  if (keys.length > 0) steps.push(() => store.clear(keys, token, committed))
  if (committed && stale && stale.size > 0) steps.push(() => store.markStale(stale))
  for (const prefix of prefixes) steps.push(() => store.clearPrefix(prefix))
  // Of several servers one may be away: what the others have is cleared all the same.
  const results: PromiseSettledResult<void>[] = []
  for (const step of steps) results.push(...(await Promise.allSettled([step()])))
  for (const result of results) if (result.status === 'rejected') throw result.reason
}

const DELETE_AFTER_MS = 5

/** Deletes applied outbox rows together: one statement for all the commits of a few milliseconds. */
export class OutboxCleaner {
  readonly #db: Database
  #rows: OutboxRow[] = []
  #timer: NodeJS.Timeout | undefined
  #running: Promise<void> = Promise.resolve()

  constructor(db: Database) {
    this.#db = db
  }

  add(rows: readonly OutboxRow[]): void {
    this.#rows.push(...rows)
    this.#timer ??= setTimeout(() => this.flush(), DELETE_AFTER_MS).unref()
  }

  /** Resolves when everything added so far is deleted, or left to the relay, which applies it once more and deletes it. */
  flush(): Promise<void> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#running = this.#running.then(async () => {
      const rows = this.#rows
      this.#rows = []
      if (rows.length > 0) await deleteRows(this.#db, rows).catch(() => undefined)
    })
    return this.#running
  }
}
