import { CacheClosedError, TransactionUseError } from '../errors.ts'
import type { BoundModel, ModelDefinition } from '../models/model.ts'
import type { Shape } from '../models/shape.ts'
import type { Answer, Target } from '../models/target.ts'
import type { TouchedKeys } from '../models/touched.ts'
import type { CacheStore } from '../stores/store.ts'
import type { Binder, Binding } from './binder.ts'
import type { Dispatcher } from './dispatcher.ts'
import { newScopeLoader, type ScopeLoader } from './loader.ts'
import { Lookup, type OnAbsent } from './lookup.ts'
import { currentScope, type Scope } from './scope.ts'

/** What the models of one cache share. */
export interface CacheParts {
  readonly namespace: string
  readonly store: CacheStore
  readonly binder: Binder
  readonly dispatcher: Dispatcher
  readonly counters: CacheCounters
  /** Takes the lookups made outside any scope. */
  readonly ambient: ScopeLoader
  closed: boolean
  /** Of every model, by table. */
  readonly readers: Map<string, Reader>
}

export interface CacheCounters {
  /** Lookups made outside any scope: none was wrapped, or a library lost the async context. */
  outOfScope: number
}

type Values = Readonly<Record<string, unknown>>

/** Looks up by the shapes of one model, its own and those of custom caches, in the current scope. */
export class Reader {
  readonly parts: CacheParts
  readonly #binding: Binding

  constructor(parts: CacheParts, binding: Binding) {
    this.parts = parts
    this.#binding = binding
  }

  get definition(): ModelDefinition {
    return this.#binding.definition
  }

  /** Rejects CacheClosedError, ModelError, SourceError. */
  async bound(): Promise<BoundModel> {
    if (this.parts.closed) throw new CacheClosedError(this.parts.namespace)
    return this.#binding.bound ?? this.parts.binder.bind(this.#binding)
  }

  /** @param shape called at once; what it throws is what is rejected */
  lookUp(shape: () => Shape, values: object, onAbsent: OnAbsent): Promise<unknown> {
    try {
      if (this.parts.closed) throw new CacheClosedError(this.parts.namespace)
      const found = shape()
      const { bound } = this.#binding
      if (!bound) return this.bound().then((model) => this.#load(model, found, values as Values, onAbsent))
      return this.#load(bound, found, values as Values, onAbsent)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /** What the memo of the current scope knows, without any I/O. */
  peek(shape: () => Shape, values: Values): Answer | undefined {
    const { bound } = this.#binding
    const memo = currentScope()?.part(this.parts, this.#newLoader).memo
    if (!bound || !memo) return undefined
    const found = shape()
    const numbered = found.single === undefined ? undefined : memo.find(found, values[found.single])
    if (numbered) return numbered.answered
    const target = bound.targets.get(found) as Target
    return memo.twinOf(new Lookup(target, values, target.addressOf(values), 'null', undefined))?.answered
  }

  readonly #newLoader = () => newScopeLoader(this.parts.dispatcher)

  #load(bound: BoundModel, shape: Shape, values: Values, onAbsent: OnAbsent): Promise<unknown> {
    const loader = this.#loader(currentScope())
    const { memo } = loader
    if (loader.ended)
      throw new TransactionUseError('a lookup was made in a transaction that has ended; await it inside')
    const found = shape.single === undefined ? undefined : memo?.find(shape, values[shape.single])
    if (found) return this.#known(loader, found, onAbsent)
    const target = bound.targets.get(shape) as Target
    const lookup = new Lookup(target, values, target.addressOf(values), onAbsent, memo)
    const twin = memo?.twinOf(lookup)
    return twin ? this.#known(loader, twin, onAbsent) : loader.load(lookup)
  }

  #known(loader: ScopeLoader, lookup: Lookup, onAbsent: OnAbsent): Promise<unknown> {
    loader.memoHits++
    this.parts.dispatcher.totals.memoHits++
    return lookup.promiseAs(onAbsent)
  }

  #loader(scope: Scope | undefined): ScopeLoader {
    if (scope) return scope.part(this.parts, this.#newLoader)
    this.parts.counters.outOfScope++
    return this.parts.ambient
  }
}

/** Forgets keys and whole models, in the store and in the current scope's memo. Rejects StoreUnavailableError. */
export async function forgetEverywhere(parts: CacheParts, touched: TouchedKeys): Promise<void> {
  forgetTouched(parts, touched)
  if (touched.keys.length > 0) await parts.store.clear(touched.keys, null, true)
  for (const prefix of touched.prefixes) await parts.store.clearPrefix(prefix)
  // Again: a lookup made meanwhile may have seen an entry that was about to go.
  forgetTouched(parts, touched)
}

/** The memos of the current scope, and of those it is a part of, forget what was written. */
export function forgetTouched(parts: CacheParts, touched: TouchedKeys): void {
  for (let scope = currentScope(); scope; scope = scope.parent) scope.own<ScopeLoader>(parts)?.forget(touched)
}
