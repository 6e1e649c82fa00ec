import { CacheClosedError, OptionError, TransactionUseError } from '../errors.ts'
import { modelPrefix } from '../models/key.ts'
import { type BoundModel, keysNamedBy, shapeOf } from '../models/model.ts'
import type { AddressOf, Shape, ShapeKind } from '../models/shape.ts'
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
}

export interface CacheCounters {
  /** Lookups made outside any scope: none was wrapped, or a library lost the async context. */
  outOfScope: number
}

/** A lookup that has not been made yet. All ways to look something up go through it. */
export interface Query<Result> {
  /** Looks up now, in the current scope and its wave. */
  resolveAsync(): Promise<Result>
}

/** `Model.cache`: lookups by the declared shapes. */
export class ModelCache<Key extends object, Filter extends object, Result> {
  readonly #parts: CacheParts
  readonly #binding: Binding

  /** @internal */
  constructor(parts: CacheParts, binding: Binding) {
    this.#parts = parts
    this.#binding = binding
  }

  /**
   * The row with this key.
   *
   * Rejects NotFoundError when there is none, ShapeNotDeclaredError, InvalidKeyError, NotUniqueError, ModelError, or
   * SourceError when SQL failed; never because the store is unavailable. As all lookups do.
   */
  getAsync(key: Key): Promise<Result> {
    return this.#lookup('key', key, 'not-found') as Promise<Result>
  }

  /** The row with this key, or null. */
  getAsyncOrNone(key: Key): Promise<Result | null> {
    return this.#lookup('key', key, 'null') as Promise<Result | null>
  }

  /** The row with this key; rejects NotFoundHttpError, which HTTP frameworks and GraphQL servers answer with 404. */
  getAsyncOr404(key: Key): Promise<Result> {
    return this.#lookup('key', key, 'not-found-http') as Promise<Result>
  }

  /** The rows that match, in the declared order; null matches NULL. An empty list when there are none. */
  filterAsync(filter: Filter): Promise<readonly Result[]> {
    return this.#lookup('filter', filter, 'null') as Promise<readonly Result[]>
  }

  /** The lookup of `getAsync`, to be made later. */
  getQuery(key: Key): Query<Result> {
    return { resolveAsync: () => this.getAsync(key) }
  }

  /** The lookup of `filterAsync`, to be made later. */
  filterQuery(filter: Filter): Query<readonly Result[]> {
    return { resolveAsync: () => this.filterAsync(filter) }
  }

  /**
   * What is known right now, without any I/O: from the memo of the current scope. Null: known not to exist.
   * Undefined: not known here.
   */
  peek(key: Key): Result | null | undefined {
    const { bound, definition } = this.#binding
    const memo = currentScope()?.part(this.#parts, this.#newLoader).memo
    if (!bound || !memo) return undefined
    const shape = shapeOf(definition, 'key', key)
    const values = key as Record<string, unknown>
    const known =
      (shape.single === undefined ? undefined : memo.find(shape, values[shape.single])) ??
      memo.twinOf(new Lookup(bound, shape, values, addressOf(bound, shape, key), 'null', undefined))
    return known?.answered as Result | null | undefined
  }

  /**
   * Forgets what is cached for a key, in the store and in the current scope's memo. Given rows (or one), forgets
   * every key and list they are in as they stand; a row that moved is in two. Writes through a connection with
   * `withInvalidation` need none of this.
   *
   * Rejects StoreUnavailableError when the store could not be told.
   */
  async invalidate(keyOrRows: Key | Filter | Result | readonly (Key | Filter | Result)[]): Promise<void> {
    const bound = await this.#bound()
    const keys = new Set<string>()
    for (const values of Array.isArray(keyOrRows) ? keyOrRows : [keyOrRows]) {
      for (const key of keysNamedBy(bound, values)) keys.add(key)
    }
    const touched = { keys: [...keys], prefixes: [] }
    forgetTouched(this.#parts, touched)
    await this.#parts.store.clear(touched.keys, null, true)
    // Again: a lookup made meanwhile may have seen the entry that was about to go.
    forgetTouched(this.#parts, touched)
  }

  /** Forgets everything cached for this model, in one round trip, however much it is. Rejects StoreUnavailableError. */
  async clear(): Promise<void> {
    await this.#bound()
    await clearModels(this.#parts, [this.#binding.definition.name])
  }

  readonly #newLoader = () => newScopeLoader(this.#parts.dispatcher)

  #lookup(kind: ShapeKind, given: object, onAbsent: OnAbsent): Promise<unknown> {
    try {
      if (this.#parts.closed) throw new CacheClosedError(this.#parts.namespace)
      const { definition, bound } = this.#binding
      const shape = shapeOf(definition, kind, given)
      const values = given as Readonly<Record<string, unknown>>
      if (!bound) return this.#bound().then((model) => this.#load(model, shape, values, onAbsent))
      return this.#load(bound, shape, values, onAbsent)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  #load(
    bound: BoundModel,
    shape: Shape,
    values: Readonly<Record<string, unknown>>,
    onAbsent: OnAbsent,
  ): Promise<unknown> {
    const loader = this.#loader(currentScope())
    const { memo } = loader
    if (loader.ended)
      throw new TransactionUseError('a lookup was made in a transaction that has ended; await it inside')
    const found = shape.single === undefined ? undefined : memo?.find(shape, values[shape.single])
    if (found) return this.#known(loader, found, onAbsent)
    const address = (bound.addressOf.get(shape) as AddressOf)(values)
    const lookup = new Lookup(bound, shape, values, address, onAbsent, memo)
    const twin = memo?.twinOf(lookup)
    return twin ? this.#known(loader, twin, onAbsent) : loader.load(lookup)
  }

  #known(loader: ScopeLoader, lookup: Lookup, onAbsent: OnAbsent): Promise<unknown> {
    loader.memoHits++
    this.#parts.dispatcher.totals.memoHits++
    return lookup.promiseAs(onAbsent)
  }

  #loader(scope: Scope | undefined): ScopeLoader {
    if (scope) return scope.part(this.#parts, this.#newLoader)
    this.#parts.counters.outOfScope++
    return this.#parts.ambient
  }

  async #bound(): Promise<BoundModel> {
    if (this.#parts.closed) throw new CacheClosedError(this.#parts.namespace)
    return this.#binding.bound ?? this.#parts.binder.bind(this.#binding)
  }
}

/**
 * Forgets everything cached for some models, all when none are named.
 *
 * Rejects OptionError for a model that is not declared, StoreUnavailableError.
 */
export async function clearModels(parts: CacheParts, models?: readonly string[]): Promise<void> {
  const declared = parts.binder.bindings.map(({ definition }) => definition.name)
  const unknown = models?.find((model) => !declared.includes(model))
  if (unknown !== undefined) {
    throw new OptionError('models', `made of declared models (${declared.join(', ')})`, unknown)
  }
  const prefixes = (models ?? declared).map((model) => modelPrefix(parts.namespace, model))
  const touched = { keys: [], prefixes }
  forgetTouched(parts, touched)
  for (const prefix of prefixes) await parts.store.clearPrefix(prefix)
  // Again: a lookup made meanwhile may have seen an entry that was about to go.
  forgetTouched(parts, touched)
}

/** The memos of the current scope, and of those it is a part of, forget what was written. */
export function forgetTouched(parts: CacheParts, touched: TouchedKeys): void {
  for (let scope = currentScope(); scope; scope = scope.parent) scope.own<ScopeLoader>(parts)?.forget(touched)
}

function addressOf(bound: BoundModel, shape: Shape, values: object) {
  return (bound.addressOf.get(shape) as AddressOf)(values as Record<string, unknown>)
}
