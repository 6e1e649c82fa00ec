import { CacheClosedError, InvalidKeyError, SourceError, TransactionUseError } from '../errors.ts'
import { type BoundModel, keysAt, type ModelDefinition } from '../models/model.ts'
import type { Address, Shape } from '../models/shape.ts'
import { keysOfStored } from '../models/stored-row.ts'
import type { Answer, Target } from '../models/target.ts'
import type { TouchedKeys } from '../models/touched.ts'
import type { Where } from '../sources/source.ts'
import type { CacheStore } from '../stores/store.ts'
import type { Binder, Binding } from './binder.ts'
import type { Dispatcher } from './dispatcher.ts'
import { newScopeLoader, type ScopeLoader } from './loader.ts'
import { type AnswerMeta, Lookup, type OnAbsent } from './lookup.ts'
import { RelatedModels } from './related.ts'
import { currentScope, type Scope } from './scope.ts'
import { addressIn, inScope } from './scoping.ts'

/** What the models of one cache share, whatever their databases. */
export interface CacheParts {
  readonly namespace: string
  readonly store: CacheStore
  readonly dispatcher: Dispatcher
  readonly counters: CacheCounters
  /** Takes the lookups made outside any scope. */
  readonly ambient: ScopeLoader
  closed: boolean
}

/** What the models on one database share. */
export interface DatabaseParts {
  readonly cache: CacheParts
  /** That of the cache, and for another database than its first one the name of that. */
  readonly namespace: string
  readonly binder: Binder
  /** Of every model, by table. */
  readonly readers: Map<string, Reader>
}

export interface CacheCounters {
  /** Lookups made outside any scope: none was wrapped, or a library lost the async context. */
  outOfScope: number
}

type Values = Readonly<Record<string, unknown>>

/** Rows in one statement and one clear of `invalidateWhere`. */
const WHERE_BATCH = 5000

/** Looks up by the shapes of one model, its own and those of custom caches, in the current scope. */
export class Reader {
  readonly database: DatabaseParts
  readonly parts: CacheParts
  /** The relations of the model. */
  readonly related: RelatedModels
  readonly #binding: Binding

  constructor(database: DatabaseParts, binding: Binding) {
    this.database = database
    this.parts = database.cache
    this.#binding = binding
    this.related = new RelatedModels(this)
  }

  get definition(): ModelDefinition {
    return this.#binding.definition
  }

  /** Rejects CacheClosedError, ModelError, SourceError. */
  async bound(): Promise<BoundModel> {
    if (this.parts.closed) throw new CacheClosedError(this.parts.namespace)
    return this.#binding.bound ?? this.database.binder.bind(this.#binding)
  }

  /** @param shape called at once; what it throws is what is rejected */
  lookUp(shape: () => Shape, values: object, onAbsent: OnAbsent): Promise<unknown> {
    try {
      if (this.parts.closed) throw new CacheClosedError(this.parts.namespace)
      const found = shape()
      const scoped = inScope(this.definition, found, values as Values)
      const { bound } = this.#binding
      if (!bound)
        return this.bound().then((model) => this.#load(model, found, values as Values, scoped, onAbsent))
      return this.#load(bound, found, values as Values, scoped, onAbsent)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /** What the memo of the current scope knows, without any I/O. */
  peek(shape: () => Shape, values: Values): Answer | undefined {
    return this.#memoised(shape, values)?.answered
  }

  /** Of what the memo of the current scope knows. */
  metaOf(shape: () => Shape, values: Values): AnswerMeta | undefined {
    const lookup = this.#memoised(shape, values)
    if (lookup?.answered === undefined) return undefined
    const { source, readAt, isStale } = lookup
    return { source, ageMs: Math.max(0, Date.now() - readAt), stale: isStale }
  }

  #memoised(shape: () => Shape, values: Values): Lookup | undefined {
    const { bound } = this.#binding
    const memo = currentScope()?.part(this.parts, this.#newLoader).memo
    const found = shape()
    const scoped = inScope(this.definition, found, values)
    if (!bound || !memo) return undefined
    const numbered = found.single === undefined ? undefined : memo.find(found, values[found.single])
    if (numbered) return numbered
    const target = bound.targets.get(found) as Target
    return memo.twinOf(new Lookup(target, scoped, addressIn(target, values, scoped), 'null', undefined))
  }

  /**
   * Puts an answer that the application has already into the memo of the current scope, and nowhere else.
   *
   * @returns false when there is no memo, something is in it for the key, or the model is not bound yet
   */
  prime(shape: () => Shape, values: Values, answer: Answer): boolean {
    if (this.parts.closed) throw new CacheClosedError(this.parts.namespace)
    const found = shape()
    const scoped = inScope(this.definition, found, values)
    const { bound } = this.#binding
    const memo = currentScope()?.part(this.parts, this.#newLoader).memo
    if (!bound || !memo) return false
    const target = bound.targets.get(found) as Target
    const address = addressIn(target, values, scoped)
    // Somebody else's: there is nothing to be known of it here.
    if (address.route === 'nowhere' && scoped !== values) return false
    const lookup = new Lookup(target, scoped, address, 'null', memo)
    if (memo.twinOf(lookup)) return false
    void lookup.begin()
    lookup.source = 'primed'
    lookup.answer(answer)
    memo.add(lookup)
    return true
  }

  /** The cache key of a lookup. Rejects InvalidKeyError for one that is never cached. */
  async keyOf(shape: () => Shape, values: Values): Promise<string> {
    const { target, address } = await this.addressed(shape(), values)
    const { key, route } = address
    if (route === 'store') return key
    const problem =
      route === 'source'
        ? 'has a value that only the database can compare, so nothing is cached for it'
        : 'has a value that no row can have, so nothing is cached for it'
    throw new InvalidKeyError(target.name, target.shape.fields.join(', '), problem)
  }

  /**
   * Forgets a key everywhere, then looks it up. What anybody loaded before is refused by the store from then on, so the
   * answer is of a statement that was sent after the call.
   */
  async refresh(shape: () => Shape, values: Values): Promise<unknown> {
    const found = shape()
    const { target, address } = await this.addressed(found, values)
    await forgetEverywhere(this.parts, { keys: keysAt(target.model, found, address), prefixes: [] })
    return this.lookUp(() => found, values, 'null')
  }

  /** Where a lookup in the current scope is looked up. Rejects ScopeDimensionError, InvalidKeyError, as {@link bound}. */
  async addressed(shape: Shape, values: Values): Promise<{ target: Target; address: Address }> {
    const scoped = inScope(this.definition, shape, values)
    const target = (await this.bound()).targets.get(shape) as Target
    return { target, address: addressIn(target, values, scoped) }
  }

  /**
   * Forgets every key of the rows that `where` selects on the primary, or in the transaction this runs in.
   *
   * @returns how many rows they are
   */
  async invalidateWhere(where: Where): Promise<number> {
    const bound = await this.bound()
    const loader = currentScope()?.part(this.parts, this.#newLoader) ?? this.parts.ambient
    let count = 0
    const pages = loader.source.rowsWhere(bound, where, WHERE_BATCH)
    for (;;) {
      if (loader.ended) throw ended('rows were invalidated')
      const page = await pages.next().catch((cause: unknown) => {
        throw new SourceError(this.definition.name, this.definition.primaryKey, cause)
      })
      if (page.done) return count
      await forgetEverywhere(this.parts, { keys: keysOfStored(bound, page.value), prefixes: [] })
      count += page.value.length
    }
  }

  readonly #newLoader = () => newScopeLoader(this.parts.dispatcher, currentScope()?.usesStore ?? true)

  #load(
    bound: BoundModel,
    shape: Shape,
    values: Values,
    scoped: Values,
    onAbsent: OnAbsent,
  ): Promise<unknown> {
    const loader = this.#loader(currentScope())
    const { memo } = loader
    if (loader.ended) throw ended('a lookup was made')
    const found = shape.single === undefined ? undefined : memo?.find(shape, values[shape.single])
    if (found) return this.#known(loader, found, onAbsent)
    const target = bound.targets.get(shape) as Target
    const lookup = new Lookup(target, scoped, addressIn(target, values, scoped), onAbsent, memo)
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

function ended(what: string): TransactionUseError {
  return new TransactionUseError(`${what} in a transaction that has ended; await it inside`)
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
