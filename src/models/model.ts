import { InvalidKeyError, ModelError, OptionError, ShapeNotDeclaredError } from '../errors.ts'
import { booleanOption, checkOptionNames, type Duration, durationMs, integerOption } from '../options.ts'
import { canonicalizerOf, canonicalPrint } from './canonical.ts'
import { createRowCodec, type RowCodec, type ValueType } from './codec.ts'
import { type Codec, checkCodec, throughCodec } from './codec-layer.ts'
import type { ColumnInfo, TableInfo } from './column.ts'
import type { CustomDefinition } from './custom.ts'
import { keyOf, modelPrefix } from './key.ts'
import {
  defineRelations,
  type ForeignField,
  foreignFieldsOf,
  type RelationDefinition,
  type Relations,
} from './relation.ts'
import { type Address, createAddressOf, type Dimension, defineShape, type Shape } from './shape.ts'
import {
  CustomTarget,
  entryKeys,
  RowsTarget,
  RowTarget,
  type Target,
  type TargetParts,
  VALUE,
} from './target.ts'

/** How a table is cached. Checked once, by `cache.model()`. */
export interface ModelMeta<
  Field extends string = string,
  Values extends { readonly [F in Field]: unknown } = { readonly [F in Field]: never },
> {
  /** Field lists that each identify one row at most. The first one is the primary key. */
  readonly keyFields: readonly (readonly Field[])[]
  /** Field lists that select a list of rows. Default none. */
  readonly filterFields?: readonly (readonly Field[])[] | undefined
  /** The columns that results carry. Default: all the table has. */
  readonly columns?: readonly Field[] | undefined
  /** How long the store keeps a value. Default `'7d'`. Shortened by up to a tenth at random, so that values filled together do not end together. */
  readonly ttl?: Duration | undefined
  /** How long the store keeps the knowledge that there is no row. Default: `ttl`, at most `'1h'`. */
  readonly negativeTtl?: Duration | undefined
  /** Raise it to forget everything cached for this model when the database hands out no schema numbers. 0 to 65000, default 0. */
  readonly version?: number | undefined
  /** The order of lists; the primary key settles what it leaves open. Default: the primary key. */
  readonly orderBy?: readonly (Field | readonly [Field, 'asc' | 'desc'])[] | undefined
  /** Applied to a lookup value before it becomes a key; never to what the database holds. Not called for null. */
  readonly normalize?: { readonly [F in Field]?: (value: NonNullable<Values[F]>) => unknown } | undefined
  /**
   * Rows of other tables that belong to a row, for `with` and `relation`. Default none. Their models, of the same cache
   * and without `columns`, are found at the first use.
   */
  readonly relations?: Relations | undefined
  /**
   * Whose rows these are: `{ tenant: 'org_id' }`. Every lookup then takes place in a scope that says which tenant it is
   * for, `runInLoop(fn, { scopeBy: { tenant } })`, and finds rows with that `org_id` alone; without one it rejects
   * ScopeDimensionError. Custom caches of the model are scoped as it is. Default: whoever asks gets the same answer.
   */
  readonly scopeBy?: Readonly<Record<string, Field>> | undefined
  /** A longer list is answered, but not cached. Default 10,000. */
  readonly maxListRows?: number | undefined
  /**
   * `'default'`: a read that starts after a write through Loadstone returned sees it. `'strict'`: and nobody ever
   * sees the new value and then the old one; writes cost one more trip to the store, before COMMIT, and fail when it
   * cannot be made. See the table of guarantees in the README.
   */
  readonly consistency?: 'default' | 'strict' | undefined
  /**
   * What a write to a strict model does when the store cannot be reached before COMMIT. `'abort'` (the default): it
   * is rolled back with StrictWriteError. `'proceed'`: it goes on with the promises of `'default'`.
   */
  readonly onRedisDown?: 'abort' | 'proceed' | undefined
  /** What encoded rows go through on their way to the store, such as `compressed()`. Default: they are stored as they are. */
  readonly codec?: Codec | undefined
  /**
   * False: lookups are answered by SQL, batched and memoised as always, and never by the store. Writes invalidate what
   * other processes have there. Default true.
   */
  readonly enabled?: boolean | undefined
  /** What writes do to what is cached. See {@link InvalidationMeta}. Default `'delete'`. */
  readonly invalidation?: InvalidationMode | undefined
  /** For `invalidation: 'mark-stale'`: how long the old answer may be given after a write. */
  readonly staleFor?: Duration | undefined
}

/**
 * `'delete'`: what was written is loaded anew. `'mark-stale'`: for `staleFor` after a write, lookups are answered at once with
 * what was there before it, and one of them loads anew; read-your-writes is given up, for nobody waits. `'off'`: nothing is
 * recorded, and an entry is what it is until its ttl.
 */
export type InvalidationMode = 'delete' | 'off' | 'mark-stale'

export interface InvalidationMeta {
  readonly invalidation?: InvalidationMode | undefined
  readonly staleFor?: Duration | undefined
}

/** What a write does to the entries of a shape. */
export interface Invalidation {
  readonly mode: InvalidationMode
  /** 0, unless entries are marked stale. */
  readonly staleForMs: number
}

/** A model as declared: nothing the database has to be asked for. */
export interface ModelDefinition {
  readonly name: string
  readonly keyShapes: readonly Shape[]
  readonly filterShapes: readonly Shape[]
  /** Those of custom caches. */
  readonly customShapes: readonly Shape[]
  readonly shapes: readonly Shape[]
  /** Fields that link its rows to those of other models on the path of a related cache. */
  readonly linkFields: readonly string[]
  readonly primaryKey: readonly string[]
  /** Of all its shapes. */
  readonly dimensions: readonly Dimension[]
  readonly columns: readonly string[] | undefined
  readonly orderBy: readonly { readonly field: string; readonly direction: 'asc' | 'desc' }[]
  readonly normalize: Readonly<Record<string, ((value: never) => unknown) | undefined>>
  readonly relations: ReadonlyMap<string, RelationDefinition>
  /** Undefined: none. */
  readonly foreignFields: readonly ForeignField[] | undefined
  readonly ttlMs: number
  readonly negativeTtlMs: number
  readonly version: number
  readonly maxListRows: number
  readonly consistency: 'default' | 'strict'
  /** What a write does without the store; undefined for a model that is not strict. */
  readonly strictness: 'abort' | 'proceed' | undefined
  /** Of its rows. */
  readonly invalidation: Invalidation
  readonly codec: Codec | undefined
  /** False: lookups go past the store. */
  readonly enabled: boolean
}

const META_NAMES = [
  'keyFields',
  'filterFields',
  'columns',
  'ttl',
  'negativeTtl',
  'version',
  'orderBy',
  'normalize',
  'relations',
  'extend',
  'scopeBy',
  'maxListRows',
  'consistency',
  'onRedisDown',
  'invalidation',
  'staleFor',
  'codec',
  'enabled',
]

/** Room above it is left for "every value that is there is older", see stores/entry.ts. */
export const MAX_VERSION = 65_000

/**
 * Checks and freezes what a team declares for a table.
 *
 * @throws OptionError naming the option, ModelError for a shape declared twice
 */
export function defineModel(name: string, meta: ModelMeta): ModelDefinition {
  const at = (option: string) => `${name}.${option}`
  if (typeof name !== 'string' || name === '') throw new OptionError('table', 'the name of a table', name)
  if (typeof meta !== 'object' || meta === null) throw new OptionError(name, 'an object with keyFields', meta)
  checkOptionNames(name, meta, META_NAMES)
  const keyFields = fieldLists(at('keyFields'), meta.keyFields)
  const [primaryKey] = keyFields
  if (!primaryKey)
    throw new OptionError(at('keyFields'), "at least one field list, such as [['id']]", meta.keyFields)
  const dimensions = dimensionsOf(at('scopeBy'), meta.scopeBy ?? {})
  const keyShapes = keyFields.map((fields) => defineShape('key', fields, dimensions))
  const filterShapes = fieldLists(at('filterFields'), meta.filterFields ?? []).map((fields) =>
    defineShape('filter', fields, dimensions),
  )
  const shapes = [...keyShapes, ...filterShapes]
  refuseTwins(name, keyShapes)
  refuseTwins(name, filterShapes)
  const columns = meta.columns === undefined ? undefined : fieldList(at('columns'), meta.columns)
  const ttlMs = durationMs(at('ttl'), meta.ttl ?? '7d')
  const relations = defineRelations(at('relations'), meta.relations ?? {}, columns)
  return Object.freeze({
    name,
    keyShapes,
    filterShapes,
    customShapes: [],
    shapes,
    linkFields: [],
    primaryKey,
    dimensions,
    columns,
    orderBy: orderOf(at('orderBy'), meta.orderBy ?? [], primaryKey),
    normalize: normalizersOf(at('normalize'), meta.normalize ?? {}, shapes),
    relations,
    foreignFields: foreignFieldsOf(relations),
    ttlMs,
    negativeTtlMs: durationMs(at('negativeTtl'), meta.negativeTtl ?? Math.min(ttlMs, 3_600_000)),
    version: integerOption(at('version'), meta.version ?? 0, 0, MAX_VERSION),
    maxListRows: integerOption(at('maxListRows'), meta.maxListRows ?? 10_000, 0),
    ...strictnessOf(at, meta),
    invalidation: invalidationOf(at, meta, { mode: 'delete', staleForMs: 0 }, meta.consistency === 'strict'),
    codec: meta.codec === undefined ? undefined : checkCodec(at('codec'), meta.codec),
    enabled: booleanOption(at('enabled'), meta.enabled ?? true),
  })
}

/**
 * Checks the invalidation of a model or a custom cache.
 *
 * @param otherwise what counts when nothing is said
 * @throws OptionError
 */
export function invalidationOf(
  at: (option: string) => string,
  { invalidation, staleFor }: InvalidationMeta,
  otherwise: Invalidation,
  isStrict: boolean,
): Invalidation {
  const wanted = isStrict ? "'delete' for a strict model" : "'delete', 'off' or 'mark-stale'"
  const known = isStrict ? ['delete'] : ['delete', 'off', 'mark-stale']
  if (invalidation !== undefined && !known.includes(invalidation))
    throw new OptionError(at('invalidation'), wanted, invalidation)
  const mode = invalidation ?? otherwise.mode
  if (mode !== 'mark-stale') {
    if (staleFor !== undefined)
      throw new OptionError(at('staleFor'), "left out without invalidation: 'mark-stale'", staleFor)
    return { mode, staleForMs: 0 }
  }
  if (staleFor === undefined && invalidation === undefined) return otherwise
  return { mode, staleForMs: durationMs(at('staleFor'), staleFor) }
}

/** What a write does to the entries of one of a model's shapes. */
export function invalidationOfShape({ invalidation }: ModelDefinition, { custom }: Shape): Invalidation {
  return custom ? custom.invalidation : invalidation
}

/** The model with one shape more. */
export function withShape(model: ModelDefinition, shape: Shape): ModelDefinition {
  const list = ({ key: 'keyShapes', filter: 'filterShapes', custom: 'customShapes' } as const)[shape.kind]
  return Object.freeze({
    ...model,
    [list]: [...model[list], shape],
    shapes: [...model.shapes, shape],
  })
}

/** The model, whose table is also asked for these fields. */
export function withLinks(model: ModelDefinition, fields: readonly string[]): ModelDefinition {
  return Object.freeze({ ...model, linkFields: [...new Set([...model.linkFields, ...fields])] })
}

function strictnessOf(
  at: (option: string) => string,
  { consistency = 'default', onRedisDown = 'abort' }: ModelMeta,
): Pick<ModelDefinition, 'consistency' | 'strictness'> {
  if (consistency !== 'default' && consistency !== 'strict') {
    throw new OptionError(at('consistency'), "'default' or 'strict'", consistency)
  }
  if (onRedisDown !== 'abort' && onRedisDown !== 'proceed') {
    throw new OptionError(at('onRedisDown'), "'abort' or 'proceed'", onRedisDown)
  }
  return { consistency, strictness: consistency === 'strict' ? onRedisDown : undefined }
}

function fieldLists(option: string, given: unknown): readonly (readonly string[])[] {
  if (!Array.isArray(given))
    throw new OptionError(option, "a list of field lists, such as [['id'], ['email']]", given)
  return given.map((fields) => fieldList(option, fields))
}

/** @throws OptionError for what is no list of distinct names */
export function fieldList(option: string, given: unknown): readonly string[] {
  const good =
    Array.isArray(given) &&
    given.length > 0 &&
    given.every((field) => typeof field === 'string' && field !== '') &&
    new Set(given).size === given.length
  if (!good) throw new OptionError(option, "lists of distinct field names, such as ['org_id', 'role']", given)
  return Object.freeze([...(given as string[])])
}

function dimensionsOf(option: string, given: unknown): readonly Dimension[] {
  const wanted = "an object of fields by dimension, such as { tenant: 'org_id' }"
  if (typeof given !== 'object' || given === null || Array.isArray(given))
    throw new OptionError(option, wanted, given)
  const dimensions = Object.entries(given).map(([name, field]) => ({ name, field }))
  const good = dimensions.every(({ name, field }) => name !== '' && typeof field === 'string' && field !== '')
  if (!good || new Set(dimensions.map(({ field }) => field)).size !== dimensions.length)
    throw new OptionError(option, `${wanted}, each another one`, given)
  return Object.freeze(dimensions)
}

function refuseTwins(model: string, shapes: readonly Shape[]): void {
  const seen = new Set<string>()
  for (const { fields, kind } of shapes) {
    const set = JSON.stringify([...fields].sort())
    if (seen.has(set)) throw new ModelError(model, `${kind}Fields [${fields.join(', ')}] are declared twice`)
    seen.add(set)
  }
}

function orderOf(option: string, given: unknown, primaryKey: readonly string[]): ModelDefinition['orderBy'] {
  if (!Array.isArray(given))
    throw new OptionError(option, "a list such as [['created_at', 'desc'], 'id']", given)
  const order = given.map((entry: unknown) => {
    const [field, direction] = Array.isArray(entry) ? entry : [entry, 'asc']
    if (typeof field !== 'string' || (direction !== 'asc' && direction !== 'desc')) {
      throw new OptionError(option, "made of fields and [field, 'asc' | 'desc'] pairs", entry)
    }
    return { field, direction } as const
  })
  const rest = primaryKey.filter((field) => !order.some((entry) => entry.field === field))
  return Object.freeze([...order, ...rest.map((field) => ({ field, direction: 'asc' as const }))])
}

function normalizersOf(
  option: string,
  given: object,
  shapes: readonly Shape[],
): ModelDefinition['normalize'] {
  if (typeof given !== 'object' || Array.isArray(given))
    throw new OptionError(option, 'an object of functions, one per field', given)
  for (const [field, normalize] of Object.entries(given)) {
    if (typeof normalize !== 'function') throw new OptionError(`${option}.${field}`, 'a function', normalize)
    if (!shapes.some((shape) => shape.fields.includes(field))) {
      throw new OptionError(`${option}.${field}`, 'for a field of keyFields or filterFields', normalize)
    }
  }
  // Without a prototype: a field may be called `constructor`.
  return Object.freeze(Object.assign(Object.create(null), given))
}

/**
 * The shape whose fields are exactly those of `values`.
 *
 * @throws ShapeNotDeclaredError when none is declared, InvalidKeyError when `values` is no object or has `undefined` in it
 */
export function shapeOf(model: ModelDefinition, kind: 'key' | 'filter', values: unknown): Shape {
  const only = onlyField(values)
  if (only !== undefined) {
    const shapes = kind === 'key' ? model.keyShapes : model.filterShapes
    for (const shape of shapes)
      if (shape.single === only && Object.hasOwn(values as object, only)) return shape
  }
  return searchShape(model, kind, values)
}

/** The name of the only field in `values`; undefined when there are more, or none. */
function onlyField(values: unknown): string | undefined {
  let only: string | undefined
  for (const field in values as object) {
    if (only !== undefined) return undefined
    only = field
  }
  return only
}

/**
 * As {@link shapeOf}, of either kind: a key where the fields are declared as both.
 *
 * @throws ShapeNotDeclaredError, InvalidKeyError
 */
export function anyShapeOf(model: ModelDefinition, values: unknown): Shape {
  return searchShape(model, 'any', values)
}

function searchShape(model: ModelDefinition, kind: 'key' | 'filter' | 'any', values: unknown): Shape {
  const shapes =
    kind === 'any'
      ? [...model.keyShapes, ...model.filterShapes]
      : kind === 'key'
        ? model.keyShapes
        : model.filterShapes
  if (typeof values !== 'object' || values === null) {
    const example = shapes[0] ? `{ ${shapes[0].asked.join(', ')} }` : 'an object'
    throw new InvalidKeyError(model.name, '', `is missing: a lookup takes an object such as ${example}`)
  }
  const given = Object.keys(values)
  next: for (const shape of shapes) {
    if (shape.asked.length !== given.length) continue
    for (const field of shape.asked) if (!given.includes(field)) continue next
    return shape
  }
  const undefinedField = given.find((field) => (values as Record<string, unknown>)[field] === undefined)
  if (undefinedField !== undefined)
    throw new InvalidKeyError(model.name, undefinedField, 'must not be undefined')
  throw new ShapeNotDeclaredError(
    model.name,
    given,
    kind === 'filter' ? 'filterFields' : 'keyFields',
    shapes.map((shape) => shape.asked),
  )
}

/** A model together with what its database said: everything a wave needs, and no I/O. */
export interface BoundModel {
  /** Tells its database apart from others. */
  readonly namespace: string
  readonly definition: ModelDefinition
  readonly table: TableInfo
  readonly codec: RowCodec
  /** The number in stored values: entries with a lower one were stored by older code, with a higher one by newer. */
  readonly schema: number
  /** All cache keys of the model begin with it. */
  readonly prefix: string
  readonly targets: ReadonlyMap<Shape, Target>
}

/**
 * @param schemas the numbers of its custom shapes
 * @throws ModelError when a declared field is no column of the table
 */
export function bindModel(
  namespace: string,
  definition: ModelDefinition,
  table: TableInfo,
  schema: number,
  valueTypes: readonly ValueType[],
  schemas: ReadonlyMap<Shape, number> = new Map(),
): BoundModel {
  const prefix = modelPrefix(namespace, definition.name)
  const columnOf = (field: string): ColumnInfo => {
    const column = table.byField.get(field)
    if (!column) throw new ModelError(definition.name, `the table has no column for field '${field}'`)
    return column
  }
  const codec = throughCodec(
    createRowCodec(
      table.columns.map((column) => column.field),
      // A column that keeps its name and changes its type is another stored form.
      { salt: storedForm(definition, table), valueTypes },
    ),
    definition.codec,
  )
  const targets = new Map<Shape, Target>()
  const model: BoundModel = Object.freeze({ namespace, definition, table, codec, schema, prefix, targets })
  for (const shape of definition.shapes) {
    const columns = shape.fields.map(columnOf)
    const canonicalizers = columns.map((column) => canonicalizerOf(column, table.dates))
    const normalizers = shape.fields.map((field) => definition.normalize[field])
    const create = (normalize: typeof normalizers) =>
      createAddressOf(definition.name, shape, shapePrefix(prefix, shape), canonicalizers, normalize)
    const parts = {
      model,
      shape,
      isInteger: isInteger(columns) && normalizers[0] === undefined,
      addressOf: create(normalizers),
      addressOfStored: create([]),
    }
    targets.set(shape, targetOf(parts, schemas.get(shape), valueTypes))
  }
  return model
}

/** @param schema of a custom shape */
function targetOf(
  rows: Omit<TargetParts, 'schema' | 'codec'>,
  schema: number | undefined,
  valueTypes: readonly ValueType[],
): Target {
  const { model, shape } = rows
  const { custom, kind, fields } = shape
  if (!custom) {
    const Rows = kind === 'key' ? RowTarget : RowsTarget
    return new Rows({ ...rows, schema: model.schema, codec: model.codec }, model.definition)
  }
  const codec = throughCodec(
    createRowCodec([VALUE], { salt: customForm(fields, custom), valueTypes }),
    custom.codec,
  )
  return new CustomTarget({ ...rows, schema: schema ?? custom.version, codec }, custom)
}

function shapePrefix(prefix: string, shape: Shape): string {
  return `${prefix}${shape.name}:`
}

/**
 * The cache keys that an object of column values names, of every shape whose fields it has: as a lookup would ask for
 * them, and as a row holds them.
 *
 * @throws ShapeNotDeclaredError when it has the fields of no shape; InvalidKeyError when it is no object, or its values
 * can be no key of the only shape it can mean
 */
export function keysNamedBy(model: BoundModel, values: unknown): string[] {
  const { definition } = model
  if (typeof values !== 'object' || values === null) {
    throw new InvalidKeyError(
      definition.name,
      '',
      'is missing: invalidate takes keys, filters or rows, as objects',
    )
  }
  const given = values as Readonly<Record<string, unknown>>
  const isGiven = (field: string) => Object.hasOwn(given, field) && given[field] !== undefined
  const shapes = definition.shapes.filter(({ fields }) => fields.every(isGiven))
  if (shapes.length === 0) {
    throw new ShapeNotDeclaredError(
      definition.name,
      Object.keys(values),
      'keyFields',
      definition.shapes.map(({ asked }) => asked),
    )
  }
  const keys = new Set<string>()
  for (const shape of shapes) {
    const target = model.targets.get(shape) as Target
    for (const addressOf of [target.addressOf, target.addressOfStored]) {
      try {
        for (const key of keysAt(model, shape, addressOf(given))) keys.add(key)
      } catch (error) {
        // A row may well hold what no key can be, such as NaN.
        if (shapes.length === 1) throw error
      }
    }
  }
  return [...keys]
}

/** The keys to clear for a lookup: one, or none where nothing is ever cached. */
export function keysAt(model: BoundModel, shape: Shape, { key, route, texts }: Address): readonly string[] {
  const target = model.targets.get(shape) as Target
  if (route === 'store') return entryKeys(target, key)
  if (route === 'nowhere') return []
  // No lookup by this very text is cached, but one by another text of the same value may be.
  return entryKeys(target, keyOf(shapePrefix(model.prefix, shape), printedTexts(model, shape, texts)))
}

function printedTexts(
  model: BoundModel,
  { fields }: Shape,
  texts: readonly (string | null)[],
): (string | null)[] {
  return texts.map((text, i) => {
    const type = model.table.byField.get(fields[i] as string)?.type ?? ''
    return text === null ? null : canonicalPrint(type, text)
  })
}

function isInteger([column, ...others]: readonly ColumnInfo[]): boolean {
  return others.length === 0 && column !== undefined && ['int2', 'int4', 'int8'].includes(column.type)
}

/**
 * What of a custom cache decides the meaning of its stored bytes, as a text to compare.
 *
 * @param rows the stored form of the rows it consists of, if it does
 */
export function customForm(
  fields: readonly string[],
  { name, version, load, codec }: CustomDefinition,
  rows = '',
): string {
  const path = load.kind === 'related' ? [load.path, load.single] : []
  return JSON.stringify(['custom', name, fields, version, load.kind, ...path, rows, ...nameOf(codec)])
}

/** What of a model decides the meaning of its stored bytes, as a text to compare. */
export function storedForm(definition: ModelDefinition, table: TableInfo): string {
  return JSON.stringify([
    definition.version,
    table.columns.map(({ field, name, type }) => [field, name, type]),
    ...nameOf(definition.codec),
  ])
}

/** Nothing without a codec, so that the forms of those who use none stay what they were. */
function nameOf(codec: Codec | undefined): readonly string[] {
  return codec ? [codec.name] : []
}
