import type { Selectable } from 'kysely'
import { InvalidKeyError, OptionError } from '../errors.ts'
import { checkOptionNames } from '../options.ts'
import type { FieldName, Flatten, Row, TableName } from './types.ts'

/** Which field of one table holds which field of another: `{ team_id: 'id' }`. */
type Link = Readonly<Record<string, string>>

/**
 * How rows of another table belong to a row. Tables are named, so that models may relate to each other in circles.
 *
 * - `one`: the row of that table whose fields, a key of its model, are those of this row; or null.
 * - `many`: the rows of that table with this row's values in the fields, which its model filters by.
 * - `many` with `through`: by rows of a table in between. `on` leads from this table to that one, `to` onwards.
 */
export type Relation =
  | { readonly one: string; readonly on: Link }
  | {
      readonly many: string
      readonly on: Link
      readonly through?: undefined
      readonly to?: undefined
    }
  | { readonly many: string; readonly through: string; readonly on: Link; readonly to: Link }

export type Relations = Readonly<Record<string, Relation>>

/** Those of a model that declares none. */
export type NoRelations = Readonly<Record<never, never>>

/** From the rows at hand to those of a model: the fields of either side. */
export interface Step {
  readonly table: string
  readonly kind: 'key' | 'filter'
  readonly fields: readonly (readonly [from: string, to: string])[]
}

export interface RelationDefinition {
  readonly name: string
  /** One, or two when it leads through a table. */
  readonly steps: readonly [Step] | readonly [Step, Step]
}

/** A field whose lookup values may be rows: the first of `columns` that a row has is the value meant. */
export interface ForeignField {
  readonly field: string
  readonly columns: readonly string[]
}

/**
 * Checks and freezes the relations of a model.
 *
 * @param carried the columns of its results, undefined for all
 * @throws OptionError naming the option
 */
export function defineRelations(
  option: string,
  given: unknown,
  carried: readonly string[] | undefined,
): ReadonlyMap<string, RelationDefinition> {
  if (!isObject(given))
    throw new OptionError(
      option,
      "an object such as { team: { one: 'teams', on: { team_id: 'id' } } }",
      given,
    )
  const relations = new Map<string, RelationDefinition>()
  for (const [name, relation] of Object.entries(given)) {
    const at = `${option}.${name}`
    if (carried?.includes(name)) throw new OptionError(at, 'named as no column is', name)
    const steps = stepsOf(at, relation)
    const missing = steps[0].fields.find(([from]) => carried?.includes(from) === false)
    if (missing) throw new OptionError(`${at}.on`, `made of fields among columns (${carried})`, missing[0])
    relations.set(name, Object.freeze({ name, steps }))
  }
  return relations
}

function stepsOf(at: string, relation: unknown): RelationDefinition['steps'] {
  if (!isObject(relation))
    throw new OptionError(at, "an object such as { one: 'teams', on: { team_id: 'id' } }", relation)
  const { one, many, through, on, to } = relation
  checkOptionNames(at, relation, ['one', 'many', 'through', 'on', 'to'])
  if ((one === undefined) === (many === undefined))
    throw new OptionError(at, "of one table or of many rows: 'one' or 'many'", relation)
  if (through === undefined) {
    if (to !== undefined) throw new OptionError(`${at}.to`, "left out without 'through'", to)
    return [
      one === undefined ? step(at, 'many', many, 'filter', 'on', on) : step(at, 'one', one, 'key', 'on', on),
    ]
  }
  if (many === undefined) throw new OptionError(`${at}.through`, "left out but for 'many'", through)
  return [step(at, 'through', through, 'filter', 'on', on), step(at, 'many', many, 'key', 'to', to)]
}

function step(
  at: string,
  option: string,
  table: unknown,
  kind: Step['kind'],
  linkOption: string,
  link: unknown,
): Step {
  if (typeof table !== 'string' || table === '')
    throw new OptionError(`${at}.${option}`, 'the name of a table', table)
  const fields = isObject(link) ? Object.entries(link) : []
  const targets = new Set(fields.map(([, to]) => to))
  if (
    fields.length === 0 ||
    targets.size !== fields.length ||
    fields.some(([, to]) => typeof to !== 'string')
  )
    throw new OptionError(`${at}.${linkOption}`, "an object of fields such as { team_id: 'id' }", link)
  return Object.freeze({ table, kind, fields: Object.freeze(fields as [string, string][]) })
}

function isObject(given: unknown): given is Readonly<Record<string, unknown>> {
  return typeof given === 'object' && given !== null && !Array.isArray(given)
}

/** The fields whose values are keys of other models; undefined when there are none, which is found out fastest. */
export function foreignFieldsOf(
  relations: ReadonlyMap<string, RelationDefinition>,
): readonly ForeignField[] | undefined {
  const columns = new Map<string, string[]>()
  for (const { steps } of relations.values()) {
    const [{ kind, fields }] = steps
    if (kind !== 'key') continue
    for (const [from, to] of fields) columns.set(from, [...(columns.get(from) ?? []), to])
  }
  if (columns.size === 0) return undefined
  return [...columns].map(([field, names]) => ({ field, columns: names }))
}

/** Lookup values with the key of each related row in the place of that row. */
export function withKeysOfRows<Values extends object>(
  foreign: readonly ForeignField[] | undefined,
  values: Values,
): Values {
  if (foreign === undefined || typeof values !== 'object' || values === null) return values
  let replaced: Record<string, unknown> | undefined
  for (let i = 0; i < foreign.length; i++) {
    const { field, columns } = foreign[i] as ForeignField
    const given = (values as Record<string, unknown>)[field]
    if (typeof given !== 'object' || given === null) continue
    const column = columns.find((name) => Object.hasOwn(given, name))
    if (column === undefined) continue
    replaced ??= { ...(values as Record<string, unknown>) }
    replaced[field] = (given as Record<string, unknown>)[column]
  }
  return (replaced as Values | undefined) ?? values
}

/**
 * The lookup values that a row leads to; undefined where a NULL in it leads nowhere.
 *
 * @throws InvalidKeyError when the row lacks a field
 */
export function stepValues(
  model: string,
  relation: string,
  { fields }: Step,
  row: Readonly<Record<string, unknown>>,
): Readonly<Record<string, unknown>> | undefined {
  const values: Record<string, unknown> = {}
  let isNull = false
  for (const [from, to] of fields) {
    const value = row[from]
    if (value === undefined)
      throw new InvalidKeyError(model, from, `must not be undefined: relation '${relation}' follows it`)
    if (value === null) isNull = true
    values[to] = value
  }
  return isNull ? undefined : values
}

/**
 * What `relations` may be, as loose about fields as inference needs it: what does not fit here would not be inferred,
 * and so not be refused where it is wrong. {@link CheckedRelations} refuses it.
 */
export type RelationsOf<DB> = Readonly<Record<string, SomeRelation<DB>>>

type SomeRelation<DB> =
  | { readonly one: TableName<DB>; readonly on: Link }
  | { readonly many: TableName<DB>; readonly on: Link }
  | { readonly many: TableName<DB>; readonly through: TableName<DB>; readonly on: Link; readonly to: Link }

/** Relations to tables there are, by columns they have, and named as no column is. */
export type CheckedRelations<DB, TB extends TableName<DB>, Declared> = {
  readonly [N in keyof Declared]: N extends FieldName<DB, TB> ? never : CheckedRelation<DB, TB, Declared[N]>
}

type CheckedRelation<DB, TB extends TableName<DB>, R> = R extends {
  readonly one: infer T extends TableName<DB>
  readonly on: infer On
}
  ? { readonly one: T; readonly on: CheckedLink<DB, TB, T, On> }
  : R extends {
        readonly many: infer T extends TableName<DB>
        readonly through: infer J extends TableName<DB>
        readonly on: infer On
        readonly to: infer To
      }
    ? {
        readonly many: T
        readonly through: J
        readonly on: CheckedLink<DB, TB, J, On>
        readonly to: CheckedLink<DB, J, T, To>
      }
    : R extends { readonly many: infer T extends TableName<DB>; readonly on: infer On }
      ? {
          readonly many: T
          readonly on: CheckedLink<DB, TB, T, On>
          readonly through?: undefined
          readonly to?: undefined
        }
      : SomeRelation<DB>

type CheckedLink<DB, From extends TableName<DB>, To extends TableName<DB>, Given> = {
  readonly [F in FieldName<DB, From>]?: FieldName<DB, To>
} & { readonly [F in Exclude<keyof Given, FieldName<DB, From>>]: never }

/** What a relation comes to, and what the rows there are related to. For the compiler alone. */
export interface Lead<Rows = unknown, Further = unknown> {
  readonly rows: Rows
  readonly further: Further
}

/** Where the type of a model has its leads. */
export declare const RELATED: unique symbol

/** Where each relation leads: to the rows of a table. What these are related to is not known before they are linked. */
export type LeadsOf<DB, Declared> = {
  readonly [N in keyof Declared]: Lead<RowsAt<DB, Declared[N]>, NoRelations>
}

type RowsAt<DB, R> = R extends { readonly one: infer T extends TableName<DB> }
  ? Row<DB, T> | null
  : R extends { readonly many: infer T extends TableName<DB> }
    ? readonly Row<DB, T>[]
    : never

/** The rows that a relation comes to. */
export type RowsOf<L> = L extends Lead<infer Rows> ? Rows : never

/** What these rows are related to. */
export type FurtherOf<L> = L extends Lead<unknown, infer Further> ? Further : never

/** What the models of some tables are related to, and how they declare it. */
export type Graph = { readonly [Table in string]: { readonly leads: object; readonly declared: object } }

/** The relations of a model, on and on, as far as the graph tells. */
export type LinkedLeads<G extends Graph, Leads, Declared> = {
  readonly [N in keyof Leads]: Lead<RowsOf<Leads[N]>, LeadsFrom<G, TableOf<Declared, N>>>
}

type LeadsFrom<G extends Graph, Table> = Table extends keyof G
  ? LinkedLeads<G, G[Table]['leads'], G[Table]['declared']>
  : NoRelations

type TableOf<Declared, N> = N extends keyof Declared
  ? Declared[N] extends { readonly one: infer T } | { readonly many: infer T }
    ? T
    : never
  : never

/** A relation that rows are to come with: its name, or an object that has, by names, the relations of its own rows. */
export type WithItem<Leads> = keyof Leads extends never
  ? never
  : keyof Leads | { readonly [N in keyof Leads]?: readonly WithItem<FurtherOf<Leads[N]>>[] }

/** Refuses what objects name besides relations, which the compiler lets pass where one of the names is right. */
export type CheckedItem<Leads, Item> = [UnknownIn<Leads, Item>] extends [never]
  ? unknown
  : NoSuchRelation<UnknownIn<Leads, Item>>

interface NoSuchRelation<Name> {
  readonly noSuchRelation: Name
}

type UnknownIn<Leads, Item> = Item extends object
  ? {
      [N in keyof Item]-?: N extends keyof Leads
        ? Item[N] extends readonly (infer Inner)[]
          ? UnknownIn<FurtherOf<Leads[N]>, Inner>
          : never
        : N
    }[keyof Item]
  : never

/** A row, and those of its relations that were asked for. */
export type WithRelations<Result, Leads, Item> = Flatten<
  Result & {
    readonly [N in NameIn<Item> & keyof Leads]: RowsWith<
      RowsOf<Leads[N]>,
      FurtherOf<Leads[N]>,
      ItemFor<Item, N>
    >
  }
>

type NameIn<Item> = Item extends object ? keyof Item : Item

type ItemFor<Item, N> = Item extends { readonly [M in N & PropertyKey]: readonly (infer Inner)[] }
  ? Inner
  : never

/** The rows that a relation comes to, with their own relations that were asked for. */
export type RowsWith<Rows, Leads, Item> = [Item] extends [never]
  ? Rows
  : Rows extends readonly (infer R)[]
    ? readonly WithRelations<R, Leads, Item>[]
    : Rows extends null
      ? null
      : WithRelations<Rows, Leads, Item>

/** Lookup values in which the related row may stand for its key. */
export type GivenKey<DB, Key, Declared> = Key extends unknown
  ? {
      [F in keyof Key]: [Key[F]] extends [undefined] ? Key[F] : Key[F] | ForeignRow<DB, Declared, F>
    }
  : never

type ForeignRow<DB, Declared, Field> = {
  [N in keyof Declared]: Declared[N] extends {
    readonly one: infer T extends TableName<DB>
    readonly on: infer On
  }
    ? Field extends keyof On
      ? { readonly [C in On[Field] & FieldName<DB, T>]: NonNullable<Selectable<DB[T]>[C]> }
      : never
    : never
}[keyof Declared]
