import type { BoundModel } from '../models/model.ts'
import type { Source } from '../sources/source.ts'
import { channels } from '../telemetry.ts'
import { type AsyncDriver, NO_TRIPS, type Trips } from './driver.ts'
import type { Flights } from './flight.ts'
import type { Lookup } from './lookup.ts'
import { NO_COUNTS, type WaveCounts, type WaveSettings, wave } from './wave.ts'

/** What is published on `loadstone:wave`. */
export interface WaveMessage extends WaveCounts {
  readonly namespace: string
  /** Lookups the scope's memo answered since its last wave. */
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
  /** False for a transaction: see WaveEnvironment. */
  readonly useStore: boolean
  readonly flights: Flights
  /** Counted up. */
  readonly totals: Totals
  tableChanged(model: BoundModel): void
}

export function newTotals(): Totals {
  return { ...NO_COUNTS, waves: 0, memoHits: 0, trips: { ...NO_TRIPS } }
}

/** Turns what a tick has gathered into waves, runs them, and counts. */
export class Dispatcher {
  readonly #parts: DispatcherParts
  readonly #running = new Set<Promise<void>>()

  constructor(parts: DispatcherParts) {
    this.#parts = parts
  }

  get totals(): Totals {
    return this.#parts.totals
  }

  /** One for the lookups inside a transaction: from SQL alone, through its connection. Counts together with this one. */
  forTransaction(source: Source): Dispatcher {
    return new Dispatcher({ ...this.#parts, driver: this.#parts.driver.withSource(source), useStore: false })
  }

  /** One wave. Resolves, as soon as the store has answered, to an answer, an Error or a promise for each lookup. */
  dispatch(lookups: readonly Lookup[], memoHits: number): Promise<unknown[]> {
    const counts = { ...NO_COUNTS }
    const trips = { ...NO_TRIPS }
    const began = channels.wave.hasSubscribers ? performance.now() : 0
    const { settings, flights, useStore } = this.#parts
    const tableChanged = (model: BoundModel) => this.#parts.tableChanged(model)
    const steps = wave(lookups, { settings, flights, useStore, counts, tableChanged })
    return new Promise((resolve) => {
      let told = false
      const results = () => {
        if (!told) resolve(lookups.map(resultOf))
        told = true
      }
      const run = this.#parts.driver.run(steps, trips, results).then(undefined, (error: unknown) => {
        // Nothing a store or a source does ends here, so this is a fault of ours: told to those it concerns.
        const fault = error instanceof Error ? error : new Error(String(error))
        for (const lookup of lookups) if (lookup.pending) lookup.fail(fault)
      })
      const ended = run.then(() => {
        this.#running.delete(ended)
        results()
        this.#count(counts, trips, memoHits, began)
      })
      this.#running.add(ended)
    })
  }

  /** Resolves when no wave is under way, fills included. */
  async idle(): Promise<void> {
    // What was looked up in this tick becomes a wave at its end.
    await new Promise((resolve) => setImmediate(resolve))
    while (this.#running.size > 0) await Promise.all(this.#running)
  }

  #count(counts: WaveCounts, trips: Trips, memoHits: number, began: number): void {
    const { totals, namespace } = this.#parts
    totals.waves++
    for (const name of Object.keys(counts) as (keyof WaveCounts)[]) totals[name] += counts[name]
    for (const name of Object.keys(trips) as (keyof Trips)[]) totals.trips[name] += trips[name]
    if (!channels.wave.hasSubscribers) return
    const message: WaveMessage = {
      ...counts,
      namespace,
      memoHits,
      trips,
      durationMs: began === 0 ? 0 : performance.now() - began,
    }
    channels.wave.publish(message)
  }
}

function resultOf(lookup: Lookup): unknown {
  return lookup.result()
}
