import { OptionError } from '../errors.ts'
import { modelPrefix } from '../models/key.ts'
import { keysNamedBy, shapeOf } from '../models/model.ts'
import type { Shape } from '../models/shape.ts'
import type { OnAbsent } from './lookup.ts'
import { type CacheParts, forgetEverywhere, type Reader } from './reader.ts'

/** A lookup that has not been made yet. All ways to look something up go through it. */
export interface Query<Result> {
  /** Looks up now, in the current scope and its wave. */
  resolveAsync(): Promise<Result>
}

/** `Model.cache`: lookups by the declared shapes. */
export class ModelCache<Key extends object, Filter extends object, Result> {
  readonly #reader: Reader

  /** @internal */
  constructor(reader: Reader) {
    this.#reader = reader
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
    return this.#reader.peek(this.#shapeOf('key', key), key as Record<string, unknown>) as
      | Result
      | null
      | undefined
  }

  /**
   * Forgets what is cached for a key, in the store and in the current scope's memo. Given rows (or one), forgets
   * every key and list they are in as they stand; a row that moved is in two. Writes through a connection with
   * `withInvalidation` need none of this.
   *
   * Rejects StoreUnavailableError when the store could not be told.
   */
  async invalidate(keyOrRows: Key | Filter | Result | readonly (Key | Filter | Result)[]): Promise<void> {
    const bound = await this.#reader.bound()
    const keys = new Set<string>()
    for (const values of Array.isArray(keyOrRows) ? keyOrRows : [keyOrRows]) {
      for (const key of keysNamedBy(bound, values)) keys.add(key)
    }
    await forgetEverywhere(this.#reader.parts, { keys: [...keys], prefixes: [] })
  }

  /** Forgets everything cached for this model, in one round trip, however much it is. Rejects StoreUnavailableError. */
  async clear(): Promise<void> {
    await this.#reader.bound()
    await clearModels(this.#reader.parts, [this.#reader.definition.name])
  }

  #lookup(kind: 'key' | 'filter', given: object, onAbsent: OnAbsent): Promise<unknown> {
    return this.#reader.lookUp(this.#shapeOf(kind, given), given, onAbsent)
  }

  #shapeOf(kind: 'key' | 'filter', given: object): () => Shape {
    return () => shapeOf(this.#reader.definition, kind, given)
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
  await forgetEverywhere(parts, { keys: [], prefixes })
}
