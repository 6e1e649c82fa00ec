import { AsyncLocalStorage } from 'node:async_hooks'
import { OverloadedError } from '../errors.ts'
import type { BoundModel } from '../models/model.ts'

export interface BulkheadSettings {
  /** So many tasks run at once. */
  readonly concurrency: number
  /** So many more may wait. */
  readonly queue: number
  /** How long one may wait, ms. */
  readonly timeoutMs: number
}

/** Caps how many tasks run at once; the rest waits in order, within limits. */
export class Bulkhead {
  readonly #settings: BulkheadSettings
  #running = 0
  readonly #waiting = new Set<() => void>()
  #beginsSoon = false

  constructor(settings: BulkheadSettings) {
    this.#settings = settings
  }

  /**
   * Runs a task when it is its turn, and at the end of this turn of the event loop at the earliest: whoever else comes
   * with the same until then can be told to join it.
   *
   * Rejects OverloadedError, and does not run it, when too many wait already or it has waited for too long.
   */
  async run<T>(task: () => Promise<T>): Promise<T> {
    await this.#enter()
    try {
      return await task()
    } finally {
      this.#running--
      this.#begin()
    }
  }

  #enter(): Promise<void> {
    const { concurrency, queue, timeoutMs } = this.#settings
    if (this.#running + this.#waiting.size >= concurrency + queue) {
      throw new OverloadedError(`${concurrency} loads are running and ${queue} are waiting`)
    }
    return new Promise((resolve, reject) => {
      const begin = () => {
        clearTimeout(timer)
        resolve()
      }
      const timer = setTimeout(() => {
        this.#waiting.delete(begin)
        reject(new OverloadedError(`a load has waited for ${timeoutMs} ms`))
      }, timeoutMs)
      this.#waiting.add(begin)
      if (this.#beginsSoon || this.#running >= concurrency) return
      this.#beginsSoon = true
      setImmediate(() => {
        this.#beginsSoon = false
        this.#begin()
      })
    })
  }

  #begin(): void {
    for (const begin of this.#waiting) {
      if (this.#running >= this.#settings.concurrency) return
      this.#waiting.delete(begin)
      this.#running++
      begin()
    }
  }
}

const insideLoad = new AsyncLocalStorage<true>()

/** The bulkheads of a cache's databases. */
export class Fallbacks {
  readonly #settings: BulkheadSettings
  readonly #byNamespace = new Map<string, Fallback>()

  constructor(settings: BulkheadSettings) {
    this.#settings = settings
  }

  /** That of a model's database. */
  of({ namespace }: BoundModel): Fallback {
    let fallback = this.#byNamespace.get(namespace)
    if (!fallback) {
      fallback = new Fallback(this.#settings)
      this.#byNamespace.set(namespace, fallback)
    }
    return fallback
  }
}

/** The bulkhead of a database: what keeps loads without the store from being more than it can take. */
export class Fallback {
  readonly #statements: Bulkhead
  /**
   * The `load` functions of custom caches are counted apart: they may look up in turn, and would otherwise hold all
   * places while they wait for one.
   */
  readonly #loads: Bulkhead

  constructor(settings: BulkheadSettings) {
    this.#statements = new Bulkhead(settings)
    this.#loads = new Bulkhead(settings)
  }

  /** Rejects OverloadedError. */
  statement<T>(run: () => Promise<T>): Promise<T> {
    return this.#statements.run(run)
  }

  /** For a function of the application; one that another one waits for has its place. Rejects OverloadedError. */
  load<T>(run: () => Promise<T>): Promise<T> {
    if (insideLoad.getStore()) return run()
    return this.#loads.run(() => insideLoad.run(true, run))
  }
}
