import type { TouchedKeys } from '../models/touched.ts'
import type { Source } from '../sources/source.ts'
import type { Dispatcher } from './dispatcher.ts'
import type { Lookup } from './lookup.ts'
import { Memo } from './memo.ts'

/** What one cache keeps for one scope: the lookups that wait for the next wave, and the memo. */
export class ScopeLoader {
  /** Undefined outside any scope: a lookup then joins the tick's wave, but nobody else gets its answer. */
  readonly memo: Memo | undefined
  /** Set when the transaction this is for has ended: its connection serves others now. */
  ended = false
  /** Lookups answered by the memo since the last wave. */
  memoHits = 0
  readonly #dispatcher: Dispatcher
  readonly #usesStore: boolean
  #gathered: Lookup[] = []
  /** Whether lookups of one key may be among those gathered. */
  #twins: boolean

  /** @param usesStore false: waves go past the store */
  constructor(dispatcher: Dispatcher, memo: Memo | undefined, usesStore = true) {
    this.memo = memo
    this.#dispatcher = dispatcher
    this.#usesStore = usesStore
    this.#twins = memo === undefined
  }

  /** Where the rows of its waves come from. */
  get source(): Source {
    return this.#dispatcher.source
  }

  load(lookup: Lookup): Promise<unknown> {
    const promise = lookup.begin()
    // What only the cache was asked for may come to nothing, and must not be what others find.
    if (lookup.isOnlyCache) this.#twins = true
    else this.memo?.add(lookup)
    if (this.#gathered.push(lookup) === 1) afterPromiseJobs(() => this.#dispatch())
    return promise
  }

  /** Takes what was written out of the memo. */
  forget(touched: TouchedKeys): void {
    this.memo?.forget(touched)
    this.#twins = true
  }

  #dispatch(): void {
    const { memo, memoHits } = this
    const lookups = this.#gathered
    const twins = this.#twins
    this.memoHits = 0
    this.#gathered = []
    this.#twins = memo === undefined
    this.#dispatcher.dispatch({ lookups, memoHits, twins, mayUseStore: this.#usesStore })
  }
}

export function newScopeLoader(dispatcher: Dispatcher, usesStore: boolean): ScopeLoader {
  return new ScopeLoader(dispatcher, new Memo(), usesStore)
}

// Made here, outside any scope: what is made in a scope holds on to it.
const settled = Promise.resolve()

/**
 * As DataLoader does it: `fn` runs when the promise jobs that are queued by then are through, so that lookups made
 * after an `await` of something settled still join the wave of this tick.
 */
function afterPromiseJobs(fn: () => void): void {
  void settled.then(() => process.nextTick(fn))
}
