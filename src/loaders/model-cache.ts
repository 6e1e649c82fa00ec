import type { Expression } from 'kysely'
import { OptionError } from '../errors.ts'
import { modelPrefix } from '../models/key.ts'
import { anyShapeOf, keysNamedBy, shapeOf } from '../models/model.ts'
import type { Shape } from '../models/shape.ts'
import { conditionOf } from '../sources/where.ts'
import type { OnAbsent } from './lookup.ts'
import { type CacheParts, forgetEverywhere, type Reader } from './reader.ts'

/** A lookup that has not been made yet. All ways to look something up go through it. */
export interface Query<Result> {
  /** Looks up now, in the current scope and its wave. */
  resolveAsync(): Promise<Result>
}

/**
 * `Model.cache`: lookups by the declared shapes.
 *
 * `Rows` is the Kysely query that `invalidateWhere` is given.
 */
export class ModelCache<Key extends object, Filter extends object, Result, Rows = unknown> {
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
   * Has the current scope know a row, or a list, that the application has already: from now on lookups in the scope
   * get this very object, until a write in the scope touches it. What the scope knows already, or is looking up, stays.
   *
   * Nothing is put into the store. A row that somebody holds may be older than a write that has invalidated it since,
   * and would then stay for its whole ttl: only who has the lease may fill, with what was read after. To have the store
   * know a row that is new, use {@link refresh}.
   *
   * @param row null: it does not exist
   * @returns false when nothing was put: the scope knows the key, there is no scope, the code runs in a transaction of
   * the cache, or nothing was looked up in the model yet
   * @throws ShapeNotDeclaredError, InvalidKeyError, CacheClosedError; OptionError for what is no row
   */
  prime(key: Key, row: Result | null): boolean
  prime(filter: Filter, rows: readonly Result[]): boolean
  prime(values: Key | Filter, answer: Result | null | readonly Result[]): boolean {
    const kind = Array.isArray(answer) ? 'filter' : 'key'
    if (typeof answer !== 'object')
      throw new OptionError(`${this.#reader.definition.name}.prime`, 'a row, null or a list of rows', answer)
    return this.#reader.prime(this.#shapeOf(kind, values), values as Record<string, unknown>, answer)
  }

  /**
   * Forgets a key or filter, in the store and in the current scope's memo, then looks it up: the answer is of SQL that
   * was sent after the call, and what other lookups get from then on is as fresh. In a transaction of the cache, the
   * answer is the transaction's own. Field lists that are declared as both are taken for a key.
   *
   * Rejects as `getAsync`, but for NotFoundError; and StoreUnavailableError when the store could not be told.
   *
   * @returns for a key the row, or null; for a filter the rows
   */
  refresh(key: Key): Promise<Result | null>
  refresh(filter: Filter): Promise<readonly Result[]>
  refresh(values: Key | Filter): Promise<Result | null | readonly Result[]> {
    return this.#reader.refresh(this.#anyShapeOf(values), values as Record<string, unknown>) as Promise<
      Result | null | readonly Result[]
    >
  }

  /**
   * The cache key of a lookup, as it stands in the store (behind the client's own `keyPrefix`): for logs, and for
   * looking it up by hand. Field lists that are declared as both are taken for a key.
   *
   * Rejects ShapeNotDeclaredError, ModelError, SourceError when the table cannot be asked about; InvalidKeyError also
   * for values under which nothing is ever cached.
   */
  keyOf(values: Key | Filter): Promise<string> {
    return this.#reader.keyOf(this.#anyShapeOf(values), values as Record<string, unknown>)
  }

  /**
   * Forgets what is cached for the rows that a condition selects: every key and list they are in, those of custom caches
   * included, as the rows stand in the database. For writes that no trigger saw.
   *
   * ```ts
   * await User.cache.invalidateWhere((users) => users.where('org_id', '=', 7))
   * ```
   *
   * Rows are read in portions of 5000, by primary key, on the primary; inside `cache.transaction`, through it, and then
   * they are forgotten at once and not at COMMIT. What fails midway has forgotten the portions before, and may be repeated.
   *
   * Rejects OptionError for a query with anything but a `where`, SourceError, ModelError, StoreUnavailableError,
   * TransactionUseError.
   *
   * @returns how many rows were selected
   */
  async invalidateWhere(where: (rows: Rows) => Expression<unknown>): Promise<number> {
    const { name } = this.#reader.definition
    return this.#reader.invalidateWhere(conditionOf(name, where as (rows: unknown) => Expression<unknown>))
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

  #anyShapeOf(given: object): () => Shape {
    return () => anyShapeOf(this.#reader.definition, given)
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
