import { StoreUnavailableError } from '../errors.ts'
import type { Breaker } from './breaker.ts'
import type { Acquired, CacheStore, Fill, Lease, NodeFacts, StoreFacts } from './store.ts'

/** A store that can be asked whether it would answer. */
export interface ProbedStore extends CacheStore {
  /**
   * Resolves when a lookup would be answered in time now, else rejects, after the time of a step at most. A connection
   * that is stuck is made anew. Not to be called again before it has settled.
   */
  probe(): Promise<void>
}

/**
 * A store behind a breaker, which is told how its steps went, and probed in the background while it is open. What a
 * lookup waits for is then refused at once. Writes are never left out: see {@link GuardedStore.clear}.
 */
export class GuardedStore implements CacheStore {
  readonly #inner: ProbedStore
  readonly #breaker: Breaker
  #timer: NodeJS.Timeout | undefined
  #closed = false

  /** @param breaker this store's alone */
  constructor(inner: ProbedStore, breaker: Breaker) {
    this.#inner = inner
    this.#breaker = breaker
  }

  get session(): unknown {
    return this.#inner.session
  }

  async getMany(keys: readonly string[]): Promise<(Buffer | null)[]> {
    // Whoever refuses to read has nothing for lookups, whatever the reason: LOADING, NOAUTH...
    return this.#read(() => this.#inner.getMany(keys), false)
  }

  async acquire(keys: readonly string[], schemas: readonly number[], leaseMs: number): Promise<Acquired> {
    // A server that is full, or lacks its replicas, takes no lease, and is read all the same.
    return this.#read(() => this.#inner.acquire(keys, schemas, leaseMs), true)
  }

  /** Always sent: nobody waits for it, and without it the lease stands until its time is over. */
  async fill(lease: Lease, fills: readonly Fill[]): Promise<number> {
    return this.#inner.fill(lease, fills)
  }

  /** Refused at once while the breaker is open: the transaction has not been committed, and is not kept waiting. */
  async intend(keys: readonly string[], token: string, ttlMs: number): Promise<unknown> {
    this.#requireClosed()
    return this.#counted(this.#inner.intend(keys, token, ttlMs))
  }

  /**
   * Sent even while the breaker is open. A server that only pauses will do it, before any lookup that comes later; but
   * nobody waits for that, so it counts as failed, and is left to the relay too. Only a strict write waits all the same
   * for the clear after its COMMIT: it is what its promise stands on when its intents are gone.
   */
  async clear(keys: readonly string[], token: string | null, committed: boolean): Promise<void> {
    const cleared = this.#counted(this.#inner.clear(keys, token, committed))
    return token !== null && committed ? cleared : this.#unlessOpen(cleared)
  }

  async markStale(keys: ReadonlyMap<string, number>): Promise<void> {
    return this.#unlessOpen(this.#counted(this.#inner.markStale(keys)))
  }

  async clearPrefix(prefix: string): Promise<void> {
    return this.#unlessOpen(this.#counted(this.#inner.clearPrefix(prefix)))
  }

  async *scan(prefix: string): AsyncGenerator<readonly string[]> {
    yield* this.#inner.scan(prefix)
  }

  async facts(): Promise<StoreFacts | readonly NodeFacts[]> {
    const facts = await this.#inner.facts?.()
    if (!facts) throw new StoreUnavailableError('it tells nothing of itself')
    return facts
  }

  async missingRights(keys: readonly string[]): Promise<readonly string[] | undefined> {
    return this.#inner.missingRights?.(keys)
  }

  async lead(name: string, candidate: string, ttlMs: number): Promise<boolean> {
    return this.#read(() => this.#inner.lead(name, candidate, ttlMs), true)
  }

  async close(): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    await this.#inner.close()
  }

  async #read<T>(step: () => Promise<T>, mayRefuse: boolean): Promise<T> {
    this.#requireClosed()
    const began = this.#breaker.opened
    const result = await this.#counted(step(), mayRefuse)
    this.#breaker.succeeded(began)
    return result
  }

  #requireClosed(): void {
    if (this.#breaker.state !== 'closed') throw this.#unavailable()
  }

  #unlessOpen<T>(step: Promise<T>): Promise<T> {
    if (this.#breaker.state === 'closed') return step
    step.catch(() => undefined)
    return Promise.reject(this.#unavailable())
  }

  /** @param mayRefuse whether a refusal tells nothing of whether lookups are answered */
  async #counted<T>(step: Promise<T>, mayRefuse = true): Promise<T> {
    const began = this.#breaker.opened
    try {
      return await step
    } catch (error) {
      const isRefusal = error instanceof StoreUnavailableError && error.refused
      if (!(mayRefuse && isRefusal)) {
        this.#breaker.failed(began, error)
        this.#watch()
      }
      throw error
    }
  }

  #unavailable(): StoreUnavailableError {
    const cause = this.#breaker.lastError
    return new StoreUnavailableError('its breaker is open, as its last steps failed', { cause })
  }

  /** Probes until the breaker is closed again. */
  #watch(): void {
    const waitMs = this.#breaker.probeInMs
    if (waitMs === undefined || this.#timer || this.#closed) return
    this.#timer = setTimeout(async () => {
      this.#timer = undefined
      if (this.#breaker.tryProbe()) await this.#probe()
      this.#watch()
    }, waitMs)
    this.#timer.unref()
  }

  async #probe(): Promise<void> {
    try {
      await this.#inner.probe()
      this.#breaker.probed()
    } catch (error) {
      this.#breaker.probed(error)
    }
  }
}
