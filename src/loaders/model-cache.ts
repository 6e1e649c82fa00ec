import type { Expression } from 'kysely'
import { OptionError } from '../errors.ts'
import { modelPrefix } from '../models/key.ts'
import { anyShapeOf, keysNamedBy, shapeOf } from '../models/model.ts'
import {
  type CheckedItem,
  type ForeignField,
  type FurtherOf,
  type RowsOf,
  type RowsWith,
  type WithItem,
  type WithRelations,
  withKeysOfRows,
} from '../models/relation.ts'
import type { Shape } from '../models/shape.ts'
import { checkOptionNames } from '../options.ts'
import { conditionOf } from '../sources/where.ts'
import { answerAsync } from './asking.ts'
import type { AnswerMeta, OnAbsent } from './lookup.ts'
import { createQuery, type Query } from './query.ts'
import { type DatabaseParts, forgetEverywhere, type Reader } from './reader.ts'
import { relatedOf, type Wanted, withRelations } from './related.ts'
import { withDimensions } from './scoping.ts'

/**
 * `Model.cache`: lookups by the declared shapes.
 *
 * `Rows` is the Kysely query that `invalidateWhere` is given.
 */
export class ModelCache<Key extends object, Filter extends object, Result, Rows = unknown> {
  readonly #reader: Reader
  readonly #foreignFields: readonly ForeignField[] | undefined

  /** @internal */
  constructor(reader: Reader) {
    this.#reader = reader
    this.#foreignFields = reader.definition.foreignFields
  }

  /**
   * The row with this key.
   *
   * Rejects NotFoundError when there is none, ShapeNotDeclaredError, InvalidKeyError, NotUniqueError, ModelError, or
   * SourceError when SQL failed; never because the store is unavailable. As all lookups do.
   */
  getAsync(key: Key): Promise<Result> {
    return this.lookUp('key', key, 'not-found') as Promise<Result>
  }

  /** The row with this key, or null. */
  getAsyncOrNone(key: Key): Promise<Result | null> {
    return this.lookUp('key', key, 'null') as Promise<Result | null>
  }

  /** The row with this key; rejects NotFoundHttpError, which HTTP frameworks and GraphQL servers answer with 404. */
  getAsyncOr404(key: Key): Promise<Result> {
    return this.lookUp('key', key, 'not-found-http') as Promise<Result>
  }

  /** The rows that match, in the declared order; null matches NULL. An empty list when there are none. */
  filterAsync(filter: Filter): Promise<readonly Result[]> {
    return this.lookUp('filter', filter, 'null') as Promise<readonly Result[]>
  }

  /** The lookup of `getAsync`, to be made later. */
  getQuery(key: Key): Query<Result, null> {
    return this.query('key', key, 'not-found')
  }

  /** The lookup of `filterAsync`, to be made later. */
  filterQuery(filter: Filter): Query<readonly Result[]> {
    return this.query('filter', filter, 'null')
  }

  /**
   * What is known right now, without any I/O: from the memo of the current scope. Null: known not to exist.
   * Undefined: not known here.
   */
  peek(key: Key): Result | null | undefined {
    const values = this.#valuesOf(key)
    return this.#reader.peek(this.#shapeOf('key', values), values as Record<string, unknown>) as
      | Result
      | null
      | undefined
  }

  /**
   * Where the answer that this scope has for a key or filter came from, and how old it is; without any I/O. Undefined:
   * nothing is known here. Field lists that are declared as both are taken for a key.
   */
  metaOf(values: Key | Filter): AnswerMeta | undefined {
    const given = this.#valuesOf(values)
    return this.#reader.metaOf(this.#anyShapeOf(given), given as Record<string, unknown>)
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
    const { definition } = this.#reader
    const all: readonly unknown[] = Array.isArray(keyOrRows) ? keyOrRows : [keyOrRows]
    const named = all.map((each) => withDimensions(definition, this.#valuesOf(each)))
    const bound = await this.#reader.bound()
    const keys = new Set<string>()
    for (const values of named) for (const key of keysNamedBy(bound, values)) keys.add(key)
    await forgetEverywhere(this.#reader.parts, { keys: [...keys], prefixes: [] })
  }

  /** Forgets everything cached for this model, in one round trip, however much it is. Rejects StoreUnavailableError. */
  async clear(): Promise<void> {
    await this.#reader.bound()
    await clearModels(this.#reader.database, [this.#reader.definition.name])
  }

  /**
   * All lookups, and all queries, of a model.
   *
   * @internal
   */
  protected lookUp(
    kind: 'key' | 'filter',
    given: object,
    onAbsent: OnAbsent,
    options?: WithOptions<unknown>,
  ): Promise<unknown> {
    const values = this.#valuesOf(given)
    const shape = this.#shapeOf(kind, values)
    if (options === undefined) return this.#reader.lookUp(shape, values, onAbsent)
    try {
      const parent = { reader: this.#reader, shape, values, onAbsent }
      return answerAsync(withRelations(parent, wantedOf(this.#reader, options)), onAbsent === 'only-cache')
    } catch (error) {
      return Promise.reject(error)
    }
  }

  /** @internal */
  protected query<Answer, Absent>(
    kind: 'key' | 'filter',
    given: object,
    onAbsent: OnAbsent,
    options?: WithOptions<unknown>,
  ): Query<Answer, Absent> {
    return createQuery((onlyCache) => this.lookUp(kind, given, onlyCache ? 'only-cache' : onAbsent, options))
  }

  /** @internal */
  protected queryRelation(row: object, name: unknown, options?: WithOptions<unknown>): Query<unknown> {
    return createQuery(async (onlyCache) => {
      const relation = this.#reader.related.find('relation', name)
      const wanted = wantedOf(relation.target, options ?? { with: [] })
      return answerAsync(relatedOf(row as Readonly<Record<string, unknown>>, relation, wanted), onlyCache)
    })
  }

  #anyShapeOf(given: object): () => Shape {
    return () => anyShapeOf(this.#reader.definition, given)
  }

  #shapeOf(kind: 'key' | 'filter', given: object): () => Shape {
    return () => shapeOf(this.#reader.definition, kind, given)
  }

  #valuesOf<Values>(given: Values): Values {
    return this.#foreignFields ? withKeysOfRows(this.#foreignFields, given as Values & object) : given
  }
}

/** Which relations a row is to come with: `['team']`, and for those of its own rows `[{ team: ['org'] }, 'avatars']`. */
export interface WithOptions<Item> {
  readonly with: readonly Item[]
}

/** Of a model: relations that it has, to any depth to which its models are linked. */
type WithOf<Leads, Item> = WithOptions<Item & CheckedItem<Leads, Item>>

/**
 * `Model.cache` of a model with relations.
 *
 * `{ with: ['team', 'avatars'] }` resolves to a new object, `{ ...row, team, avatars }`: a relation to one is a row, or
 * null, one to many readonly rows. They are looked up as their own models do it, and share entries, memo and freshness
 * with these lookups: those whose keys the given key tells already, in the same wave as the row; the others, of all rows,
 * in the next one. Where a lookup takes the foreign key of a relation to one, it takes the related row as well.
 *
 * `{ with: [{ team: ['org'] }] }` has the relations of related rows too, to any depth, as new objects likewise: each
 * level is a wave at most, one that leads through a table two, whatever the number of rows and relations. The compiler
 * knows of them when the models were given to `cache.link`.
 *
 * Such lookups reject OptionError for a relation that is not declared, and ModelError when a related model does not have
 * the key fields or filter fields it is looked up by.
 */
export class RelatedModelCache<
  Key extends object,
  Filter extends object,
  Result,
  Leads extends object,
  Rows = unknown,
> extends ModelCache<Key, Filter, Result, Rows> {
  // The short form comes last in each: inference from overloads reads the last one.

  /** As without options; see {@link RelatedModelCache} for `with`. */
  override getAsync<const Item extends WithItem<Leads>>(
    key: Key,
    options: WithOf<Leads, Item>,
  ): Promise<WithRelations<Result, Leads, Item>>
  override getAsync(key: Key): Promise<Result>
  override getAsync(key: Key, options?: WithOptions<unknown>): Promise<Result> {
    return this.lookUp('key', key, 'not-found', options) as Promise<Result>
  }

  /** As without options; see {@link RelatedModelCache} for `with`. */
  override getAsyncOrNone<const Item extends WithItem<Leads>>(
    key: Key,
    options: WithOf<Leads, Item>,
  ): Promise<WithRelations<Result, Leads, Item> | null>
  override getAsyncOrNone(key: Key): Promise<Result | null>
  override getAsyncOrNone(key: Key, options?: WithOptions<unknown>): Promise<Result | null> {
    return this.lookUp('key', key, 'null', options) as Promise<Result | null>
  }

  /** As without options; see {@link RelatedModelCache} for `with`. */
  override getAsyncOr404<const Item extends WithItem<Leads>>(
    key: Key,
    options: WithOf<Leads, Item>,
  ): Promise<WithRelations<Result, Leads, Item>>
  override getAsyncOr404(key: Key): Promise<Result>
  override getAsyncOr404(key: Key, options?: WithOptions<unknown>): Promise<Result> {
    return this.lookUp('key', key, 'not-found-http', options) as Promise<Result>
  }

  /** As without options; see {@link RelatedModelCache} for `with`. */
  override filterAsync<const Item extends WithItem<Leads>>(
    filter: Filter,
    options: WithOf<Leads, Item>,
  ): Promise<readonly WithRelations<Result, Leads, Item>[]>
  override filterAsync(filter: Filter): Promise<readonly Result[]>
  override filterAsync(filter: Filter, options?: WithOptions<unknown>): Promise<readonly Result[]> {
    return this.lookUp('filter', filter, 'null', options) as Promise<readonly Result[]>
  }

  /** The lookup of `getAsync`, to be made later. */
  override getQuery<const Item extends WithItem<Leads>>(
    key: Key,
    options: WithOf<Leads, Item>,
  ): Query<WithRelations<Result, Leads, Item>, null>
  override getQuery(key: Key): Query<Result, null>
  override getQuery(key: Key, options?: WithOptions<unknown>): Query<Result, null> {
    return this.query('key', key, 'not-found', options)
  }

  /** The lookup of `filterAsync`, to be made later. */
  override filterQuery<const Item extends WithItem<Leads>>(
    filter: Filter,
    options: WithOf<Leads, Item>,
  ): Query<readonly WithRelations<Result, Leads, Item>[]>
  override filterQuery(filter: Filter): Query<readonly Result[]>
  override filterQuery(filter: Filter, options?: WithOptions<unknown>): Query<readonly Result[]> {
    return this.query('filter', filter, 'null', options)
  }

  /**
   * A relation of a row that is at hand; with options, its own rows come with theirs. Those of any number of rows, asked
   * for in one tick, are one wave.
   */
  relation<const Name extends keyof Leads, const Item extends WithItem<FurtherOf<Leads[Name]>>>(
    row: Result,
    name: Name,
    options: WithOf<FurtherOf<Leads[Name]>, Item>,
  ): Promise<RowsWith<RowsOf<Leads[Name]>, FurtherOf<Leads[Name]>, Item>>
  relation<const Name extends keyof Leads>(row: Result, name: Name): Promise<RowsOf<Leads[Name]>>
  relation(row: Result, name: PropertyKey, options?: WithOptions<unknown>): Promise<unknown> {
    return this.queryRelation(row as object, name, options).resolveAsync()
  }

  /** The lookup of `relation`, to be made later. */
  relationQuery<const Name extends keyof Leads, const Item extends WithItem<FurtherOf<Leads[Name]>>>(
    row: Result,
    name: Name,
    options: WithOf<FurtherOf<Leads[Name]>, Item>,
  ): Query<RowsWith<RowsOf<Leads[Name]>, FurtherOf<Leads[Name]>, Item>>
  relationQuery<const Name extends keyof Leads>(row: Result, name: Name): Query<RowsOf<Leads[Name]>>
  relationQuery(row: Result, name: PropertyKey, options?: WithOptions<unknown>): Query<unknown> {
    return this.queryRelation(row as object, name, options)
  }
}

/**
 * Adds a model's own methods to its cache.
 *
 * @throws OptionError for what is no function, or has a name that is taken
 */
export function extendModelCache(
  model: string,
  cache: object,
  extend: ((cache: object) => unknown) | undefined,
): void {
  if (extend === undefined) return
  const option = `${model}.extend`
  if (typeof extend !== 'function')
    throw new OptionError(option, 'a function from the cache of the model to methods', extend)
  const methods = extend(cache)
  if (typeof methods !== 'object' || methods === null)
    throw new OptionError(option, 'a function that returns an object of methods', methods)
  for (const [name, method] of Object.entries(methods)) {
    if (typeof method !== 'function') throw new OptionError(`${option}.${name}`, 'a function', method)
    if (name in cache) throw new OptionError(`${option}.${name}`, 'named as no method of the cache is', name)
  }
  Object.assign(cache, methods)
}

/** @throws OptionError, ModelError */
function wantedOf({ related }: Reader, options: WithOptions<unknown>): Wanted {
  if (typeof options !== 'object' || options === null)
    throw new OptionError('options', "an object such as { with: ['team'] }", options)
  checkOptionNames('options', options, ['with'])
  return related.wanted('with', options.with)
}

/**
 * Forgets everything cached for some models of a database, all when none are named.
 *
 * Rejects OptionError for a model that is not declared, StoreUnavailableError.
 */
export async function clearModels(
  { cache, namespace, binder }: DatabaseParts,
  models?: readonly string[],
): Promise<void> {
  const declared = binder.bindings.map(({ definition }) => definition.name)
  const unknown = models?.find((model) => !declared.includes(model))
  if (unknown !== undefined) {
    throw new OptionError('models', `made of declared models (${declared.join(', ')})`, unknown)
  }
  const prefixes = (models ?? declared).map((model) => modelPrefix(namespace, model))
  await forgetEverywhere(cache, { keys: [], prefixes })
}
