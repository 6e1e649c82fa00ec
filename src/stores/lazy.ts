import { StoreUnavailableError } from '../errors.ts'
import type { Acquired, CacheStore, Fill, Lease, NodeFacts, StoreFacts } from './store.ts'

/** A store that is opened by the first step that needs it: for who may well need none. */
export class LazyStore implements CacheStore {
  readonly #open: () => CacheStore
  #opened: CacheStore | undefined
  #closed = false

  constructor(open: () => CacheStore) {
    this.#open = open
  }

  get session(): unknown {
    return this.#opened?.session
  }

  async getMany(keys: readonly string[]): Promise<(Buffer | null)[]> {
    return this.#store.getMany(keys)
  }

  async acquire(keys: readonly string[], schemas: readonly number[], leaseMs: number): Promise<Acquired> {
    return this.#store.acquire(keys, schemas, leaseMs)
  }

  async fill(lease: Lease, fills: readonly Fill[]): Promise<number> {
    return this.#store.fill(lease, fills)
  }

  async intend(keys: readonly string[], token: string, ttlMs: number): Promise<unknown> {
    return this.#store.intend(keys, token, ttlMs)
  }

  async clear(keys: readonly string[], token: string | null, committed: boolean): Promise<void> {
    await this.#store.clear(keys, token, committed)
  }

  async markStale(keys: ReadonlyMap<string, number>): Promise<void> {
    await this.#store.markStale(keys)
  }

  async clearPrefix(prefix: string): Promise<void> {
    await this.#store.clearPrefix(prefix)
  }

  async *scan(prefix: string): AsyncGenerator<readonly string[]> {
    yield* this.#store.scan(prefix)
  }

  async facts(): Promise<StoreFacts | readonly NodeFacts[]> {
    const facts = await this.#store.facts?.()
    if (!facts) throw new StoreUnavailableError('it tells nothing of itself')
    return facts
  }

  async missingRights(keys: readonly string[]): Promise<readonly string[] | undefined> {
    return this.#store.missingRights?.(keys)
  }

  async lead(name: string, candidate: string, ttlMs: number): Promise<boolean> {
    return this.#store.lead(name, candidate, ttlMs)
  }

  async close(): Promise<void> {
    this.#closed = true
    await this.#opened?.close()
  }

  get #store(): CacheStore {
    if (this.#closed && !this.#opened) throw new StoreUnavailableError('it is closed')
    this.#opened ??= this.#open()
    return this.#opened
  }
}
