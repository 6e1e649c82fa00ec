import type { BoundModel } from '../models/model.ts'
import type { Source } from '../sources/source.ts'
import { channels } from '../telemetry.ts'
import { type AsyncDriver, NO_TRIPS, type Trips } from './driver.ts'
import type { Flights, QueuedLoads } from './flight.ts'
import type { Lookup } from './lookup.ts'
import { NO_COUNTS, type WaveCounts, type WaveSettings, wave } from './wave.ts'

/** What is published on `loadstone:wave`. */
export interface WaveMessage extends WaveCounts {
  readonly namespace: string
  /** How many scopes its lookups are of: those that were due in one tick are one wave. */
  readonly scopes: number
  /** Lookups that the memos of these scopes answered since their last waves. */
  readonly memoHits: number
  readonly trips: Readonly<Trips>
  /** From dispatch until the last caller was answered or, if later, the fills were through, ms. */
  readonly durationMs: number
}

export interface Totals extends WaveCounts {
  waves: number
  memoHits: number
  trips: Trips
}

export interface DispatcherParts {
  readonly namespace: string
  readonly driver: AsyncDriver
  readonly settings: WaveSettings
  /** False for a transaction, and for a cache that is not enabled: see WaveEnvironment. */
  readonly useStore: boolean
  /** Whether the store's breaker is open. */
  isAway(): boolean
  readonly flights: Flights
  readonly queued: QueuedLoads
  /** Counted up. */
  readonly totals: Totals
  tableChanged(model: BoundModel): void
}

export function newTotals(): Totals {
  return { ...NO_COUNTS, waves: 0, memoHits: 0, trips: { ...NO_TRIPS } }
}

/** What one scope has gathered in a tick. */
export interface Gathered {
  readonly lookups: readonly Lookup[]
  readonly memoHits: number
  /** Whether several of the lookups may be of one key. */
  readonly twins: boolean
  /** False: past the store, whatever it is for others. */
  readonly mayUseStore: boolean
}

/**
 * What a wave takes at most of several scopes together. One with more lookups than that has a wave of its own, which
 * those of the others do not wait for.
 */
const SHARED_LOOKUPS = 1000

/** Turns what a tick has gathered into waves, runs them, and counts. */
export class Dispatcher {
  readonly #parts: DispatcherParts
  #due: Gathered[] = []
  #running = 0
  /** Those who wait for `#running` to be 0. */
  readonly #idle: (() => void)[] = []

  constructor(parts: DispatcherParts) {
    this.#parts = parts
  }

  get totals(): Totals {
    return this.#parts.totals
  }

  /** Where rows come from. */
  get source(): Source {
    return this.#parts.driver.source
  }

  /** One for the lookups inside a transaction: from SQL alone, through its connection. Counts together with this one. */
  forTransaction(source: Source): Dispatcher {
    const driver = this.#parts.driver.forTransaction(source)
    return new Dispatcher({ ...this.#parts, driver, useStore: false })
  }

  /** Has the lookups answered, or failed, by a wave with those of all scopes that are due in this tick. */
  dispatch(gathered: Gathered): void {
    if (this.#due.push(gathered) === 1) process.nextTick(this.#flush)
  }

  readonly #flush = () => {
    const due = this.#due
    this.#due = []
    if (due.length === 1) return this.#run(due)
    for (const shared of sharedOf(due.filter(({ mayUseStore }) => mayUseStore))) this.#run(shared)
    for (const shared of sharedOf(due.filter(({ mayUseStore }) => !mayUseStore))) this.#run(shared)
  }

  #run(all: readonly Gathered[]): void {
    const [first] = all as readonly [Gathered, ...Gathered[]]
    const isOne = all.length === 1
    const lookups = isOne ? first.lookups : all.flatMap(({ lookups: of }) => of)
    const { settings, flights, queued, totals, driver } = this.#parts
    totals.waves++
    // Counted apart only if somebody wants to be told.
    const told = channels.wave.hasSubscribers
    const counts = told ? { ...NO_COUNTS } : totals
    const trips = told ? { ...NO_TRIPS } : totals.trips
    const began = told ? performance.now() : 0
    const steps = wave(lookups, {
      settings,
      flights,
      queued,
      useStore: first.mayUseStore && this.#parts.useStore,
      isAway: this.#parts.isAway(),
      twins: first.twins || !isOne,
      counts,
      tableChanged: this.#tableChanged,
    })
    this.#running++
    driver.run(steps, trips).then(
      () => this.#end(told && { counts, trips, all, began }),
      (error: unknown) => {
        // Nothing a store or a source does ends here, so this is a fault of ours: told to those it concerns.
        const fault = error instanceof Error ? error : new Error(String(error))
        for (const lookup of lookups) if (lookup.pending) lookup.fail(fault)
        this.#end(told && { counts, trips, all, began })
      },
    )
  }

  readonly #tableChanged = (model: BoundModel) => this.#parts.tableChanged(model)

  /** Resolves when no wave is under way, fills included. */
  async idle(): Promise<void> {
    // What was looked up in this tick becomes a wave at its end.
    await new Promise((resolve) => setImmediate(resolve))
    while (this.#running > 0) await new Promise<void>((resolve) => this.#idle.push(resolve))
  }

  #end(told: false | { counts: WaveCounts; trips: Trips; all: readonly Gathered[]; began: number }): void {
    this.#running--
    if (this.#running === 0) for (const resolve of this.#idle.splice(0)) resolve()
    if (!told) return
    const { counts, trips, all, began } = told
    const { totals, namespace } = this.#parts
    for (const name of Object.keys(counts) as (keyof WaveCounts)[]) totals[name] += counts[name]
    for (const name of Object.keys(trips) as (keyof Trips)[]) totals.trips[name] += trips[name]
    const message: WaveMessage = {
      ...counts,
      namespace,
      scopes: all.length,
      memoHits: all.reduce((sum, { memoHits }) => sum + memoHits, 0),
      trips,
      durationMs: performance.now() - began,
    }
    channels.wave.publish(message)
  }
}

/** In which waves these are: the small ones together, then each of the large ones. */
function sharedOf(due: readonly Gathered[]): Gathered[][] {
  const waves: Gathered[][] = []
  const large: Gathered[][] = []
  let count = Number.POSITIVE_INFINITY
  for (const gathered of due) {
    const { length } = gathered.lookups
    if (length > SHARED_LOOKUPS) large.push([gathered])
    else if (count + length > SHARED_LOOKUPS) {
      waves.push([gathered])
      count = length
    } else {
      waves.at(-1)?.push(gathered)
      count += length
    }
  }
  return [...waves, ...large]
}
