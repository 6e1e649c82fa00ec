import { sql } from 'kysely'
import { type OutboxRow, type TouchedKeys, touchedKeys } from '../models/touched.ts'
import type { Database } from '../sources/database.ts'
import { deleteRows, INTERNAL, outboxExists, takeRows } from './outbox-rows.ts'
import { clearTouched, type InvalidationParty } from './party.ts'

export type RelayStep =
  /** Locks committed rows that nobody else has locked, until the end of the turn. → `OutboxRow[]` */
  | { readonly op: 'take' }
  | { readonly op: 'clear'; readonly touched: TouchedKeys }
  /** Deletes the rows, and ends the turn. */
  | { readonly op: 'delete'; readonly rows: readonly OutboxRow[] }

/** A turn of the relay without I/O. Returns how many rows were applied; a step that fails ends it, and frees the rows. */
export function* relayTurn(): Generator<RelayStep, number, never> {
  const rows: readonly OutboxRow[] = yield { op: 'take' }
  if (rows.length === 0) return 0
  // First the store, then the outbox: a crash in between has the rows applied once more.
  yield { op: 'clear', touched: touchedKeys(rows) }
  yield { op: 'delete', rows }
  return rows.length
}

export interface RelaySettings {
  /** How often the outbox is looked at, ms. */
  readonly pollMs: number
  /** Younger rows are left to the process that wrote them, ms: it applies and deletes them itself. */
  readonly graceMs: number
  /** How often a process that is not the relay tries to become it, ms: how long the outbox may wait after a crash. */
  readonly electionMs: number
  /** Most rows in one turn. */
  readonly batch: number
}

export const RELAY_DEFAULTS: RelaySettings = Object.freeze({
  pollMs: 50,
  graceMs: 100,
  electionMs: 1000,
  batch: 500,
})

const MAX_BACKOFF_MS = 2000
/** How often a process looks whether an outbox has been installed by another one, ms. */
const ABSENT_MS = 10_000

/**
 * Applies committed outbox rows that nobody applied: of a writer that crashed, of another program, of a time when
 * the store could not be reached. Every process has one, and one at a time works: the holder of an advisory lock,
 * on a connection it keeps for itself.
 *
 * A turn takes rows with `FOR UPDATE SKIP LOCKED`, clears their keys, deletes them and commits: at least once, and
 * in any order, for a clear is right whenever it runs after the COMMIT. A cursor over ids would lose rows, as ids
 * are handed out before commits and commit in another order.
 */
export class Relay {
  readonly #party: InvalidationParty
  readonly #settings: RelaySettings
  readonly #shared: boolean
  #stopped = false
  #failures = 0
  #wake: (() => void) | undefined
  #running: Promise<void> | undefined

  /** @param shared whether other processes may be on this database, and there are connections to keep one of */
  constructor(party: InvalidationParty, settings: RelaySettings, shared: boolean) {
    this.#party = party
    this.#settings = settings
    this.#shared = shared
  }

  start(): void {
    this.#running ??= this.#run()
  }

  /** Looks at once instead of after its pause. */
  wake(): void {
    this.#wake?.()
  }

  async stop(): Promise<void> {
    this.#stopped = true
    this.#wake?.()
    await this.#running
  }

  /**
   * One turn: applies what is there, whoever the relay is.
   *
   * @returns how many outbox rows were applied
   */
  async turn(db: Database = this.#party.db, graceMs: number = this.#settings.graceMs): Promise<number> {
    const { store, namespace, counters } = this.#party
    // A failure rolls back, and the rows are there for the next turn.
    return db.transaction().execute(async (trx) => {
      const steps = relayTurn()
      let resume = () => steps.next()
      for (;;) {
        const { done, value: step } = resume()
        if (done) return step
        let answer: unknown
        if (step.op === 'take') {
          const { rows, lagMs } = await takeRows(trx, namespace, this.#settings.batch, graceMs)
          counters.relayLagMs = lagMs
          answer = rows
        } else if (step.op === 'clear') {
          await clearTouched(store, step.touched, null, true)
        } else {
          await deleteRows(trx, step.rows)
          counters.relayed += step.rows.length
        }
        resume = () => steps.next(answer as never)
      }
    })
  }

  async #run(): Promise<void> {
    const { db, counters } = this.#party
    const { pollMs, electionMs } = this.#settings
    while (!this.#stopped) {
      try {
        const found = await outboxExists((query) => db.executeQuery(query))
        if (found && this.#shared) await db.connection().execute((connection) => this.#lead(connection))
        else if (found) await this.#work(db)
        this.#failures = 0
        await this.#sleep(found ? electionMs : ABSENT_MS)
      } catch {
        counters.relayErrors++
        await this.#sleep(Math.min(pollMs * 2 ** this.#failures++, MAX_BACKOFF_MS))
      }
    }
  }

  /** Works for as long as this connection holds the lock. The server frees the lock when the connection ends. */
  async #lead(db: Database): Promise<void> {
    const lock = sql`hashtextextended(${`loadstone relay ${this.#party.namespace}`}, 0)`
    const { rows } = await sql<{ leads: string }>`${sql.raw(INTERNAL)}
      select pg_try_advisory_lock(${lock})::text as leads`.execute(db)
    if (rows[0]?.leads !== 'true') return
    try {
      await this.#work(db)
    } finally {
      await sql`${sql.raw(INTERNAL)} select pg_advisory_unlock(${lock})`.execute(db).catch(() => undefined)
    }
  }

  async #work(db: Database): Promise<void> {
    while (!this.#stopped) {
      const applied = await this.turn(db)
      this.#failures = 0
      if (applied < this.#settings.batch) await this.#sleep(this.#settings.pollMs)
    }
  }

  #sleep(ms: number): Promise<void> {
    if (this.#stopped) return Promise.resolve()
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms)
      timer.unref()
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
  }
}
