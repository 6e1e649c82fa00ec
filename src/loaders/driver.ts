import type { Source } from '../sources/source.ts'
import type { CacheStore } from '../stores/store.ts'
import type { Fallbacks } from './bulkhead.ts'
import { runLoad } from './custom-load.ts'
import { runApart } from './scope.ts'
import type { Step, Wave } from './wave.ts'

/** How many round trips of each kind were made. Commands that a store sends side by side are one trip. */
export interface Trips {
  mget: number
  acquire: number
  fill: number
  select: number
  /** Of custom caches; each may be any number of statements. */
  load: number
}

export const NO_TRIPS: Trips = Object.freeze({ mget: 0, acquire: 0, fill: 0, select: 0, load: 0 })

/** A step with a round trip or a wait in it. */
export type Trip = Exclude<Step, { op: 'tasks' }>

/** Decides when a step is taken, and what comes of it: for tests that hold a wave at a step. */
export type Gate = (step: Trip, take: () => Promise<unknown>) => Promise<unknown>

/** Drives waves: asks the store and the source for what a wave yields, its tasks side by side. */
export class AsyncDriver {
  /** For tests; shared with the drivers of transactions. */
  readonly hook: { gate: Gate | undefined }
  readonly #store: CacheStore
  readonly source: Source
  readonly #fallbacks: Fallbacks
  readonly #isInTransaction: boolean

  constructor(
    store: CacheStore,
    source: Source,
    fallbacks: Fallbacks,
    hook: AsyncDriver['hook'] = { gate: undefined },
    isInTransaction = false,
  ) {
    this.#store = store
    this.#isInTransaction = isInTransaction
    this.source = source
    this.#fallbacks = fallbacks
    this.hook = hook
  }

  /** A driver that reads rows through a transaction. */
  forTransaction(source: Source): AsyncDriver {
    return new AsyncDriver(this.#store, source, this.#fallbacks, this.hook, true)
  }

  /**
   * Runs a wave to its end, fills included.
   *
   * @param trips counted up
   */
  async run(wave: Wave, trips: Trips): Promise<void> {
    const running = new Map<Wave, Promise<void>>()
    let { done, value: step } = wave.next()
    while (!done) {
      let answer: never
      try {
        answer = (await this.#perform(step as Step, trips, running)) as never
      } catch (error) {
        ;({ done, value: step } = wave.throw(error))
        continue
      }
      ;({ done, value: step } = wave.next(answer))
    }
  }

  #perform(step: Step, trips: Trips, running: Map<Wave, Promise<void>>): Promise<unknown> {
    if (step.op === 'tasks') return this.#tasks(step.tasks, step.patienceMs, trips, running)
    const { gate } = this.hook
    return gate ? gate(step, () => this.#take(step, trips)) : this.#take(step, trips)
  }

  #take(step: Trip, trips: Trips): Promise<unknown> {
    switch (step.op) {
      case 'getMany':
        trips.mget++
        return this.#store.getMany(step.keys)
      case 'acquire':
        trips.acquire++
        return this.#store.acquire(step.keys, step.schemas, step.leaseMs)
      case 'fill':
        trips.fill++
        return this.#store.fill(step.lease, step.fills)
      case 'select':
      case 'load':
        return this.#load(step, trips)
      case 'sleep':
        return new Promise((resolve) => setTimeout(resolve, step.ms))
      case 'join':
        return step.flight.result
    }
  }

  #load(step: Extract<Step, { op: 'select' | 'load' }>, trips: Trips): Promise<unknown> {
    const { fallback } = step
    const { model, shape } = step.op === 'select' ? step : step.target
    const isFunction = shape.custom?.load.kind === 'load'
    const run = (): Promise<unknown> => {
      fallback?.begins()
      trips[step.op]++
      if (step.op === 'select') return this.source.select(model, shape, step.keys)
      const load = () => runLoad(this.source, step.target, step.keys, step.values)
      // What a function looks up in a transaction, it must see like everything else.
      return isFunction && !this.#isInTransaction ? runApart(load) : load()
    }
    if (!fallback) return run()
    const of = this.#fallbacks.of(model)
    return isFunction ? of.load(run) : of.statement(run)
  }

  /** True when all tasks are done, false when `patienceMs` have passed since a task ended and others still run. */
  async #tasks(
    tasks: readonly Wave[],
    patienceMs: number,
    trips: Trips,
    running: Map<Wave, Promise<void>>,
  ): Promise<boolean> {
    let firstEnded: (() => void) | undefined
    const one = new Promise<void>((resolve) => {
      firstEnded = resolve
    })
    const all = tasks.map((task) => {
      let run = running.get(task)
      if (!run) {
        run = this.run(task, trips)
        running.set(task, run)
      }
      return run.finally(firstEnded)
    })
    const finished = Promise.all(all).then(() => true)
    if (patienceMs === Number.POSITIVE_INFINITY || tasks.length < 2) return finished
    // A rejection comes through `finished` as well, and must not go unhandled while the timer runs.
    await Promise.race([one, finished])
    let timer: NodeJS.Timeout | undefined
    const impatient = new Promise<boolean>((resolve) => {
      timer = setTimeout(resolve, patienceMs, false)
    })
    return Promise.race([finished, impatient]).finally(() => clearTimeout(timer))
  }
}
