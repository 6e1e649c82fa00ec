import DataLoader from 'dataloader'
import type { TouchedKeys } from '../models/touched.ts'
import type { Dispatcher } from './dispatcher.ts'
import type { Lookup } from './lookup.ts'

/** What one cache keeps for one scope: the DataLoader that gathers its lookups, and the memo. */
export class ScopeLoader {
  /** Undefined outside any scope: a lookup then joins the tick's wave, but nobody else gets its answer. */
  readonly memo: Map<string, Lookup> | undefined
  /** Set when the transaction this is for has ended: its connection serves others now. */
  ended = false
  /** Lookups answered by the memo since the last wave. */
  memoHits = 0
  /** Keys in the memo of lookups whose value only the database knows: any write may be to their rows. */
  readonly #uncertain = new Set<string>()
  readonly #batch: DataLoader<Lookup, unknown>

  constructor(dispatcher: Dispatcher, memo: Map<string, Lookup> | undefined) {
    this.memo = memo
    this.#batch = new DataLoader<Lookup, unknown>(
      (lookups) => {
        const { memoHits } = this
        this.memoHits = 0
        return dispatcher.dispatch(lookups, memoHits)
      },
      // The memo is ours: it must be cleared by key, by model, and by writes.
      { cache: false },
    )
  }

  load(lookup: Lookup): Promise<unknown> {
    const { key, route } = lookup.address
    lookup.promise = this.#batch.load(lookup)
    this.memo?.set(key, lookup)
    if (this.memo && route === 'source') this.#uncertain.add(key)
    return lookup.promise
  }

  /** Takes what was written out of the memo. */
  forget({ keys, prefixes }: TouchedKeys): void {
    const { memo } = this
    if (!memo) return
    for (const key of keys) memo.delete(key)
    for (const prefix of prefixes) for (const key of memo.keys()) if (key.startsWith(prefix)) memo.delete(key)
    for (const key of this.#uncertain) memo.delete(key)
    this.#uncertain.clear()
  }
}
