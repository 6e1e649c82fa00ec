import type { Kysely, Selectable } from 'kysely'
import { ModelError, OptionError } from './errors.ts'
import { type CustomCache, type CustomLookup, createCustomCache } from './loaders/custom-cache.ts'
import { within } from './loaders/custom-load.ts'
import type { ModelCache } from './loaders/model-cache.ts'
import type { Reader } from './loaders/reader.ts'
import type { Codec } from './models/codec-layer.ts'
import { type CustomLoad, defineCustom, type Hop } from './models/custom.ts'
import {
  fieldList,
  type InvalidationMode,
  type ModelDefinition,
  withLinks,
  withShape,
} from './models/model.ts'
import type {
  CheckedItem,
  FurtherOf,
  GivenKey,
  NoRelations,
  RELATED,
  RowsOf,
  WithItem,
  WithRelations,
} from './models/relation.ts'
import { defineShape, type Shape } from './models/shape.ts'
import type { FieldName, TableName } from './models/types.ts'
import { checkOptionNames, type Duration, durationMs } from './options.ts'

/** A model of this cache, as the declarations of custom caches take it. */
export interface ModelOf<TB, Result, Declared, Scoped extends string = string> {
  readonly name: TB
  readonly relations: Declared
  readonly scopeBy: Readonly<Record<string, Scoped>>
  /** Not all of it: what takes rows and keys alike does not tell them apart. */
  readonly cache: Pick<ModelCache<never, never, Result>, 'filterAsync'>
}

/** Key fields with the types of their columns. */
export type CustomKey<DB, TB extends TableName<DB>, Fields extends readonly string[]> = {
  readonly [F in Fields[number]]: Selectable<DB[TB]>[F & FieldName<DB, TB>]
}

/** What `load` is given: with the fields that the model is scoped by, as the scope of each lookup says. */
export type LoadKey<
  DB,
  TB extends TableName<DB>,
  Fields extends readonly string[],
  Scoped extends string,
> = CustomKey<DB, TB, readonly (Fields[number] | Scoped)[]>

/** The same, in the order of the fields. */
export type PositionalKey<DB, TB extends TableName<DB>, Fields extends readonly string[]> = {
  -readonly [I in keyof Fields]: Selectable<DB[TB]>[Fields[I] & FieldName<DB, TB>]
}

export interface CustomOptions<
  DB,
  TB extends TableName<DB>,
  Fields extends readonly FieldName<DB, TB>[],
  Result,
  Declared = NoRelations,
  Scoped extends string = string,
> {
  /** Stands in cache keys, errors and metrics; unique within the cache. */
  readonly name: string
  /** Writes to rows of its table, with the key's values before or after, invalidate the key. */
  readonly model: ModelOf<TB, Result, Declared, Scoped>
  readonly keyFields: Fields
  /** Default: that of the model. */
  readonly ttl?: Duration | undefined
  /** How long it is kept that there is nothing. Default: that of the model, at most `ttl`. */
  readonly negativeTtl?: Duration | undefined
  /** What writes do to what is cached. Default: that of the model. */
  readonly invalidation?: InvalidationMode | undefined
  /** For `invalidation: 'mark-stale'`: how long the old answer may be given after a write. */
  readonly staleFor?: Duration | undefined
  /** Raise it when `load` makes something else of the same rows. 0 to 65000, default 0. */
  readonly version?: number | undefined
  /** What encoded values go through on their way to the store. Default: that of the model. */
  readonly codec?: Codec | undefined
  /** False: always loaded, batched and memoised, and never taken from the store. Default: that of the model. */
  readonly enabled?: boolean | undefined
}

/** One of `load` and `loadOne`. What they load has to follow from the rows of the model with the key's values. */
export type CustomLoader<DB, Key, Value> = {
  /** How long `load` may take for the keys of a wave, `loadOne` for one: then their lookups reject LoadError. Default `'10s'`. */
  readonly loadTimeout?: Duration | undefined
} & (
  | {
      /** Takes all keys of a wave. One result for each, in their order; null: nothing; an Error: for that key alone. */
      load(keys: readonly Key[], context: LoadContext<DB>): Promise<readonly (Value | Error | null)[]>
      readonly loadOne?: undefined
    }
  | {
      loadOne(key: Key, context: LoadContext<DB>): Promise<Value | null>
      readonly load?: undefined
    }
)

/** From the rows of the model before to those of this one. */
export interface PathHop {
  readonly model: ModelOf<string, unknown, unknown>
  /** Fields of the model before, each with the field of this one that equals it. */
  readonly on: Readonly<Record<string, string>>
}

/** The model that a path begins at, and what it is related to. */
export interface PathModel<Leads> {
  readonly model: { readonly [RELATED]?: Leads }
}

/** A row of the last model of a path. */
type EndOf<Leads, Path> = Path extends readonly [infer Step, ...infer Rest]
  ? Rest extends readonly []
    ? StepEnd<Leads, Step>
    : EndOf<LeadsOn<Leads, Step>, Rest>
  : never

type StepEnd<Leads, Step> = Step extends { readonly model: ModelOf<string, infer Result, unknown> }
  ? Result
  : Step extends keyof Leads
    ? RowIn<RowsOf<Leads[Step]>>
    : never

type RowIn<Rows> = Rows extends readonly (infer R)[] ? R : NonNullable<Rows>

/** What the model that a step leads to is related to. */
type LeadsOn<Leads, Step> = Step extends { readonly model: { readonly [RELATED]?: infer Further } }
  ? NonNullable<Further>
  : Step extends keyof Leads
    ? FurtherOf<Leads[Step]>
    : NoRelations

/** A path whose names are those of relations of the model before. */
type CheckedPath<Leads, Path extends readonly unknown[]> = Path extends readonly [infer Step, ...infer Rest]
  ? readonly [Step extends string ? keyof Leads & string : Step, ...CheckedPath<LeadsOn<Leads, Step>, Rest>]
  : Path

export interface LoadContext<DB> {
  /** To load through: inside `cache.transaction` it is that transaction. */
  readonly db: Kysely<DB>
}

type Cached<
  DB,
  TB extends TableName<DB>,
  Fields extends readonly FieldName<DB, TB>[],
  Value,
  Declared,
> = CustomCache<GivenKey<DB, CustomKey<DB, TB, Fields>, Declared>, PositionalKey<DB, TB, Fields>, Value>

export interface CustomCaches<DB> {
  /**
   * A cache of one value per key: what `load` makes of it (say, the primary avatar of a user), or the one row with the
   * key. Null, cached as well, where there is none.
   *
   * @throws OptionError, ModelError for a name that is taken
   */
  instance<
    TB extends TableName<DB>,
    const Fields extends readonly FieldName<DB, TB>[],
    Result,
    Value,
    Declared,
    Scoped extends string,
  >(
    options: CustomOptions<DB, TB, Fields, Result, Declared, Scoped> &
      CustomLoader<DB, LoadKey<DB, TB, Fields, Scoped>, Value>,
  ): Cached<DB, TB, Fields, Value | null, Declared>
  /** With relations: each row as a new object that has them, as lookups of the model have it. */
  instance<
    TB extends TableName<DB>,
    const Fields extends readonly FieldName<DB, TB>[],
    Result,
    Declared,
    Leads extends object,
    const Item extends WithItem<Leads>,
  >(
    options: CustomOptions<DB, TB, Fields, Result, Declared> &
      PathModel<Leads> & { readonly with: readonly (Item & CheckedItem<Leads, Item>)[] },
  ): CustomLookup<
    GivenKey<DB, CustomKey<DB, TB, Fields>, Declared>,
    PositionalKey<DB, TB, Fields>,
    WithRelations<Result, Leads, Item> | null
  >
  instance<TB extends TableName<DB>, const Fields extends readonly FieldName<DB, TB>[], Result, Declared>(
    options: CustomOptions<DB, TB, Fields, Result, Declared> & { readonly with?: undefined },
  ): Cached<DB, TB, Fields, Result | null, Declared>

  /**
   * A cache of what `load` makes of the rows with a key (ids, a sum, anything that can be stored), or of these rows, in
   * the model's order. With `single` and no `load`, of the first of them, or null.
   *
   * @throws OptionError, ModelError for a name that is taken
   */
  queryset<
    TB extends TableName<DB>,
    const Fields extends readonly FieldName<DB, TB>[],
    Result,
    Value,
    Declared,
    Scoped extends string,
  >(
    options: CustomOptions<DB, TB, Fields, Result, Declared, Scoped> &
      CustomLoader<DB, LoadKey<DB, TB, Fields, Scoped>, Value>,
  ): Cached<DB, TB, Fields, Value | null, Declared>
  queryset<TB extends TableName<DB>, const Fields extends readonly FieldName<DB, TB>[], Result, Declared>(
    options: CustomOptions<DB, TB, Fields, Result, Declared> & { readonly single: true },
  ): Cached<DB, TB, Fields, Result | null, Declared>
  queryset<TB extends TableName<DB>, const Fields extends readonly FieldName<DB, TB>[], Result, Declared>(
    options: CustomOptions<DB, TB, Fields, Result, Declared> & { readonly single?: false | undefined },
  ): Cached<DB, TB, Fields, readonly Result[], Declared>

  /**
   * A cache of the rows at the end of a path that begins at the rows with a key. Its steps are relations by their names,
   * `['owner', 'team']`, of the model before (those of related models are known of models given to `link`); or hops:
   * `{ model: EventTag, on: { id: 'event_id' } }` leads to the event tags whose `event_id` is the `id`. Each row once, in
   * the order of its model; with `single`, the first of them, or null. The models have to be declared before. Writes to
   * any table on the path invalidate it. Those of the path's last model and of those between cost its writers a
   * statement more, which asks for the keys, unless the path is one hop from the key fields.
   *
   * @throws OptionError; ModelError for a name that is taken, a model that is strict, or a relation that leads to no model
   */
  related<
    TB extends TableName<DB>,
    const Fields extends readonly FieldName<DB, TB>[],
    Result,
    Declared,
    Leads,
    const Path extends readonly (PathHop | string)[],
  >(
    options: CustomOptions<DB, TB, Fields, Result, Declared> &
      PathModel<Leads> & { readonly path: Path & CheckedPath<Leads, Path>; readonly single: true },
  ): Cached<DB, TB, Fields, EndOf<Leads, Path> | null, Declared>
  related<
    TB extends TableName<DB>,
    const Fields extends readonly FieldName<DB, TB>[],
    Result,
    Declared,
    Leads,
    const Path extends readonly (PathHop | string)[],
  >(
    options: CustomOptions<DB, TB, Fields, Result, Declared> &
      PathModel<Leads> & {
        readonly path: Path & CheckedPath<Leads, Path>
        readonly single?: false | undefined
      },
  ): Cached<DB, TB, Fields, readonly EndOf<Leads, Path>[], Declared>

  /** A cache of whether there are rows with a key. @throws OptionError, ModelError for a name that is taken */
  exists<TB extends TableName<DB>, const Fields extends readonly FieldName<DB, TB>[], Result, Declared>(
    options: CustomOptions<DB, TB, Fields, Result, Declared>,
  ): Cached<DB, TB, Fields, boolean, Declared>

  /** A cache of how many rows there are with a key. @throws OptionError, ModelError for a name that is taken */
  count<TB extends TableName<DB>, const Fields extends readonly FieldName<DB, TB>[], Result, Declared>(
    options: CustomOptions<DB, TB, Fields, Result, Declared>,
  ): Cached<DB, TB, Fields, number, Declared>
}

/** Options as they come in, of all kinds. */
interface Given {
  readonly name: string
  readonly model: object
  readonly keyFields: readonly string[]
  readonly ttl?: Duration
  readonly negativeTtl?: Duration
  readonly version?: number
  readonly invalidation?: InvalidationMode
  readonly staleFor?: Duration
  readonly codec?: Codec
  readonly enabled?: boolean
  readonly single?: boolean
  readonly path?: unknown
  readonly with?: unknown
  readonly load?: Load
  readonly loadOne?: (key: never, context: { readonly db: never }) => Promise<unknown>
  readonly loadTimeout?: Duration
}

type Load = Extract<CustomLoad, { kind: 'load' }>['load']

/** How a declared model is looked up, and given one shape more. */
export interface Declared {
  readonly reader: Reader
  extend(extended: (definition: ModelDefinition) => ModelDefinition): void
}

const COMMON = [
  'name',
  'model',
  'keyFields',
  'ttl',
  'negativeTtl',
  'version',
  'invalidation',
  'staleFor',
  'codec',
  'enabled',
]
const LOADING = ['load', 'loadOne', 'loadTimeout']

/** @param declared the models of this cache */
export function createCustomCaches<DB>(declared: ReadonlyMap<object, Declared>): CustomCaches<DB> {
  const names = new Set<string>()

  function declare(given: Given, known: readonly string[], shapeFor: (model: Declared) => Shape): unknown {
    const { name } = given
    if (typeof name !== 'string' || name === '') throw new OptionError('name', 'the name of the cache', name)
    checkOptionNames(name, given, known)
    const model = declaredAs(given, declared)
    if (names.has(name))
      throw new ModelError(model.reader.definition.name, `cache '${name}' is declared twice`)
    const shape = shapeFor(model)
    names.add(name)
    if (!model.reader.definition.shapes.includes(shape)) model.extend((before) => withShape(before, shape))
    const { related } = model.reader
    const wanted = given.with === undefined ? undefined : () => related.wanted(`${name}.with`, given.with)
    return createCustomCache(name, model.reader, shape, wanted)
  }

  const custom = (given: Given, known: readonly string[], load: () => CustomLoad) =>
    declare(given, known, ({ reader }) => defineCustom(reader.definition, given, load()))

  /** Rows are the model's own, so they are shared with its own lookups. */
  const rows = (given: Given, known: readonly string[], kind: 'key' | 'filter') =>
    declare(given, known, ({ reader: { definition } }) => {
      const fields = fieldList(`${given.name}.keyFields`, given.keyFields)
      for (const option of [
        'ttl',
        'negativeTtl',
        'version',
        'invalidation',
        'staleFor',
        'codec',
        'enabled',
      ] as const) {
        if (given[option] !== undefined)
          throw new OptionError(
            `${given.name}.${option}`,
            'left out without load: rows have those of their model',
            given[option],
          )
      }
      const shapes = kind === 'key' ? definition.keyShapes : definition.filterShapes
      const same = (shape: Shape) =>
        shape.asked.length === fields.length && shape.asked.every((field) => fields.includes(field))
      return shapes.find(same) ?? defineShape(kind, fields, definition.dimensions)
    })

  const caches = {
    instance: (given: Given) =>
      loads(given)
        ? custom(given, [...COMMON, ...LOADING], () => loadOf(given))
        : rows(given, [...COMMON, 'with'], 'key'),
    queryset(given: Given) {
      if (loads(given)) return custom(given, [...COMMON, ...LOADING], () => loadOf(given))
      if (given.single) return custom(given, [...COMMON, 'single'], () => ({ kind: 'first' }))
      return rows(given, [...COMMON, 'single'], 'filter')
    },
    related(given: Given) {
      const hops = pathOf(given, declared)
      const owner = declared.get(given.model)?.reader.definition
      for (const { model } of hops) {
        const { name, dimensions } = model.reader.definition
        const lost = dimensions.find((each) => !owner?.dimensions.some((own) => own.name === each.name))
        if (owner && lost)
          throw new ModelError(
            owner.name,
            `cache '${given.name}' leads to rows of '${name}', which is scoped by '${lost.name}', and it is not`,
          )
      }
      const cache = custom(given, [...COMMON, 'path', 'single'], () => ({
        kind: 'related',
        path: hops.map(({ hop }) => hop),
        single: given.single === true,
      }))
      let before = declared.get(given.model) as Declared
      for (const { hop, model } of hops) {
        before.extend((definition) =>
          withLinks(
            definition,
            hop.on.map(([field]) => field),
          ),
        )
        model.extend((definition) =>
          withLinks(
            definition,
            hop.on.map(([, field]) => field),
          ),
        )
        before = model
      }
      return cache
    },
    exists: (given: Given) => custom(given, COMMON, () => ({ kind: 'exists' })),
    count: (given: Given) => custom(given, COMMON, () => ({ kind: 'count' })),
  }
  return caches as unknown as CustomCaches<DB>
}

/** @throws OptionError */
function declaredAs({ name, model }: Given, declared: ReadonlyMap<object, Declared>): Declared {
  const found = declared.get(model)
  if (!found) throw new OptionError(`${name}.model`, 'a model of this cache', model)
  return found
}

/** @throws OptionError, ModelError */
function pathOf(given: Given, declared: ReadonlyMap<object, Declared>) {
  const { name, path } = given
  const at = `${name}.path`
  const wanted = "a list of relations and hops, such as ['owner'] or [{ model: Post, on: { id: 'user_id' } }]"
  if (!Array.isArray(path) || path.length === 0) throw new OptionError(at, wanted, path)
  let before = declaredAs(given, declared)
  const owner = before.reader.definition
  if (owner.consistency === 'strict')
    throw new ModelError(owner.name, `is strict, and a related cache ('${name}') cannot be`)
  const hopOf = (to: Declared, on: Hop['on']) => {
    const { reader } = to
    return { model: to, hop: { model: reader.definition.name, on, definition: () => reader.definition } }
  }
  return path.flatMap((step: string | Partial<PathHop> | null) => {
    const hops = typeof step === 'string' ? hopsOf(step) : [hopFrom(step)]
    before = hops.at(-1)?.model ?? before
    return hops
  })

  function hopFrom(step: Partial<PathHop> | null) {
    const to = declared.get(step?.model ?? {})
    const on = Object.entries(step?.on ?? {})
    const good = to && on.length > 0 && on.every(([, after]) => typeof after === 'string' && after !== '')
    if (!good) throw new OptionError(at, wanted, step)
    return hopOf(to, on)
  }

  /** Those of a relation of the model before: two, when it leads through a table. */
  function hopsOf(relation: string) {
    const { first, second } = before.reader.related.find(at, relation)
    return [first, ...(second ? [second] : [])].map(({ reader, fields }) => {
      const to = [...declared.values()].find((each) => each.reader === reader) as Declared
      return hopOf(to, fields)
    })
  }
}

function loads({ load, loadOne, loadTimeout }: Given): boolean {
  return load !== undefined || loadOne !== undefined || loadTimeout !== undefined
}

function loadOf({ name, load, loadOne, loadTimeout }: Given): CustomLoad {
  const timeoutMs = durationMs(`${name}.loadTimeout`, loadTimeout ?? '10s')
  if ((load === undefined) === (loadOne === undefined) || typeof (load ?? loadOne) !== 'function')
    throw new OptionError(`${name}.load`, 'a function, or loadOne in its place', load)
  if (load) return { kind: 'load', load, timeoutMs }
  const one = async (key: unknown, context: { readonly db: never }) => {
    try {
      return await within(name, timeoutMs, async () => loadOne?.(key as never, context))
    } catch (error) {
      // Only this key's.
      return error
    }
  }
  return {
    kind: 'load',
    load: (keys, context) => Promise.all(keys.map((key) => one(key, context))),
    timeoutMs: undefined,
  }
}
