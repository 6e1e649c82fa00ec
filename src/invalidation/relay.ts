import { relayKey } from '../models/key.ts'
import { type OutboxRow, type TouchedKeys, touchedKeys } from '../models/touched.ts'
import { newToken } from '../stores/store.ts'
import { deleteRows, outboxExists, readBacklog, takeRows } from './outbox-rows.ts'
import { clearTouched, type InvalidationParty } from './party.ts'
import { resolveTouched } from './resolve.ts'

export type RelayStep =
  /** Locks committed rows that nobody else has locked, until the end of the turn. → `OutboxRow[]` */
  | { readonly op: 'take' }
  /** The keys of dependent shapes. → {@link TouchedKeys}, all resolved */
  | { readonly op: 'resolve'; readonly touched: TouchedKeys }
  | { readonly op: 'clear'; readonly touched: TouchedKeys }
  /** Deletes the rows, and ends the turn. */
  | { readonly op: 'delete'; readonly rows: readonly OutboxRow[] }

/** A turn of the relay without I/O. Returns how many rows were applied; a step that fails ends it, and frees the rows. */
export function* relayTurn(): Generator<RelayStep, number, never> {
  const rows: readonly OutboxRow[] = yield { op: 'take' }
  if (rows.length === 0) return 0
  let touched = touchedKeys(rows)
  if (touched.unresolved?.length) touched = yield { op: 'resolve', touched }
  // First the store, then the outbox: a crash in between has the rows applied once more.
  yield { op: 'clear', touched }
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
  /**
   * Never elected: looks at the outbox as often as others try to become the relay, and applies only what is older than
   * that. For a process that is to leave the store alone unless nobody else does the work.
   */
  readonly isStandby: boolean
}

export const RELAY_DEFAULTS: RelaySettings = Object.freeze({
  pollMs: 50,
  graceMs: 100,
  electionMs: 1000,
  batch: 500,
  isStandby: false,
})

const MAX_BACKOFF_MS = 2000
/** How often a process looks whether an outbox has been installed by another one, ms. */
const ABSENT_MS = 10_000

/**
 * Applies committed outbox rows that nobody applied: of a writer that crashed, of another program, of a time when
 * the store could not be reached. Every process has one, and one at a time works: the store elects it, and an
 * advisory lock keeps a second one out where the store forgot. No connection is kept for it: one that idles in use
 * would be missing in a small pool, and its loss is an event that `pg` leaves to whoever has it.
 *
 * A turn takes rows with `FOR UPDATE SKIP LOCKED`, clears their keys, deletes them and commits: at least once, and
 * in any order, for a clear is right whenever it runs after the COMMIT. A cursor over ids would lose rows, as ids
 * are handed out before commits and commit in another order.
 */
export class Relay {
  readonly #party: InvalidationParty
  readonly #settings: RelaySettings
  readonly #candidate = newToken()
  #stopped = false
  #led = false
  #failures = 0
  /** Spares a look what lies before its first row: rows of other namespaces, and deleted ones until a vacuum. */
  #floor = '0'
  #wake: (() => void) | undefined
  #running: Promise<void> | undefined

  constructor(party: InvalidationParty, settings: RelaySettings) {
    this.#party = party
    this.#settings = settings
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
    // Ends its time at once, so that another process need not wait it out.
    if (this.#led)
      await this.#party.store.lead(relayKey(this.#party.namespace), this.#candidate, 1).catch(() => false)
  }

  /**
   * One turn: applies what is there, whoever the relay is.
   *
   * @returns how many outbox rows were applied
   */
  async turn(graceMs: number = this.#settings.graceMs): Promise<number> {
    const { store, namespace, counters, db } = this.#party
    const { ageMs, floor } = await readBacklog(db, namespace, this.#floor)
    this.#floor = floor
    counters.relayLagMs = ageMs ?? 0
    if (ageMs === undefined || ageMs < graceMs) return 0
    // A failure rolls back, and the rows are there for the next turn.
    return db.transaction().execute(async (trx) => {
      const steps = relayTurn()
      let resume = () => steps.next()
      for (;;) {
        const { done, value: step } = resume()
        if (done) return step
        let answer: unknown
        if (step.op === 'take') answer = await takeRows(trx, namespace, this.#settings.batch, graceMs, floor)
        else if (step.op === 'resolve')
          answer = await resolveTouched((query) => trx.executeQuery(query), step.touched)
        else if (step.op === 'clear') await clearTouched(store, step.touched, null, true)
        else {
          await deleteRows(trx, step.rows)
          counters.relayed += step.rows.length
        }
        resume = () => steps.next(answer as never)
      }
    })
  }

  async #run(): Promise<void> {
    const { db, counters } = this.#party
    const { pollMs, electionMs, isStandby } = this.#settings
    while (!this.#stopped) {
      try {
        if (!(await outboxExists((query) => db.executeQuery(query)))) await this.#sleep(ABSENT_MS)
        else if (isStandby) await this.#standBy()
        else if (!(await this.#lead())) await this.#sleep(electionMs)
        this.#failures = 0
      } catch {
        counters.relayErrors++
        await this.#sleep(Math.min(pollMs * 2 ** this.#failures++, MAX_BACKOFF_MS))
      }
    }
  }

  /** Works until half of its time is over; then it has to be elected again. False: another process works. */
  async #lead(): Promise<boolean> {
    const { store, namespace } = this.#party
    const { pollMs, electionMs, batch } = this.#settings
    const until = Date.now() + electionMs / 2
    if (!(await store.lead(relayKey(namespace), this.#candidate, electionMs))) return false
    this.#led = true
    // A server that took over counts from where it was: it may give xids below the floor.
    this.#floor = '0'
    while (!this.#stopped && Date.now() < until) {
      const applied = await this.turn()
      if (applied < batch) await this.#sleep(pollMs)
    }
    return true
  }

  async #standBy(): Promise<void> {
    const { electionMs, batch } = this.#settings
    // A server that took over counts from where it was: it may give xids below the floor.
    this.#floor = '0'
    const applied = await this.turn(electionMs)
    if (applied < batch) await this.#sleep(electionMs)
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
