import { ModelError } from '../errors.ts'
import type { ColumnInfo, TableInfo } from '../models/column.ts'
import type { CustomDefinition, Hop } from '../models/custom.ts'
import { type Invalidation, invalidationOfShape, type ModelDefinition } from '../models/model.ts'
import type { Shape } from '../models/shape.ts'
import type { BackStep, Dependent } from '../models/touched.ts'
import { quoteTable } from './sql-text.ts'

/** What the triggers of a model record: the columns its keys are made of, and how. See `models/touched.ts`. */
export interface Recording {
  readonly namespace: string
  readonly model: string
  /** The columns of all shapes, each once. */
  readonly columns: readonly RecordedColumn[]
  readonly shapes: readonly RecordedShape[]
  /** Shapes of other models that are made of its rows too. Their `values` are names of columns. */
  readonly dependents: readonly RecordedDependent[]
  /** A statement that writes more rows is recorded as one that wrote all of them. */
  readonly maxTouchedRows: number
}

/** Names are those in the database. */
export interface RecordedColumn {
  readonly name: string
  /** The base type, as {@link ColumnInfo.type}. */
  readonly type: string
}

export interface RecordedDependent extends Omit<Dependent, 'values'> {
  readonly values: readonly string[]
}

export interface RecordedShape {
  readonly name: string
  /** Names of columns. */
  readonly columns: readonly string[]
  /** If its entries are marked stale: how long they may be answered, ms. */
  readonly staleForMs?: number
}

/** What to install: for each model its table, and what to record of it. */
export interface InstallPlan {
  readonly namespace: string
  readonly models: readonly ModelPlan[]
  readonly maxTouchedRows: number
}

export interface ModelPlan extends Pick<Recording, 'model' | 'columns' | 'shapes' | 'dependents'> {
  readonly table: { readonly schema: string; readonly name: string }
}

/** What a plan is made of. */
export interface Described {
  readonly definition: ModelDefinition
  readonly table: TableInfo
}

/**
 * What to record of all the models of a cache.
 *
 * @throws ModelError when a table lacks a declared field, or a related cache cannot be told of writes
 */
export function planModels(all: readonly Described[]): ModelPlan[] {
  const byName = new Map(all.map((each) => [each.definition.name, each]))
  const dependents = new Map<string, RecordedDependent[]>()
  for (const owner of all) {
    for (const shape of owner.definition.customShapes) {
      const load = shape.custom?.load
      if (load?.kind !== 'related' || shape.custom?.invalidation.mode === 'off') continue
      const tables = [owner, ...load.path.map(({ model }) => byName.get(model) as Described)]
      load.path.forEach(({ model }, i) => {
        const list = dependents.get(model) ?? []
        dependents.set(model, [...list, dependentOf(shape, load.path.slice(0, i + 1), tables)])
      })
    }
  }
  return (
    all
      .map((each) => planModel(each, dependents.get(each.definition.name) ?? []))
      // Of a model that is not to be invalidated, there is nothing to record.
      .filter(({ shapes, dependents: others }) => shapes.length + others.length > 0)
  )
}

function planModel({ definition, table }: Described, dependents: readonly RecordedDependent[]): ModelPlan {
  const recorded = definition.shapes.filter((shape) => invalidationOfShape(definition, shape).mode !== 'off')
  const shapes = recorded.map((shape) => ({
    name: shape.name,
    columns: shape.fields.map((field) => columnOf({ definition, table }, field).name),
    ...staleness(invalidationOfShape(definition, shape)),
  }))
  const columns = new Map<string, RecordedColumn>()
  const linking = [...table.byField.values()].filter(({ name }) =>
    dependents.some(({ values }) => values.includes(name)),
  )
  for (const { name, type } of [
    ...recorded.flatMap(({ fields }) => fields.map((field) => columnOf({ definition, table }, field))),
    ...linking,
  ]) {
    columns.set(name, { name, type })
  }
  const { schema, name } = table
  return {
    model: definition.name,
    table: { schema, name },
    columns: [...columns.values()],
    shapes,
    dependents,
  }
}

function staleness({ staleForMs }: Invalidation): { staleForMs?: number } {
  return staleForMs > 0 ? { staleForMs } : {}
}

/**
 * The types of exact keys whose text depends on what a session has set. Nothing is cached under keys of other such types.
 * A trigger sets it for itself; the way back of a related cache is asked outside of it.
 */
export const PRINTED_BY_SETTINGS: ReadonlySet<string> = new Set([
  'date',
  'timestamp',
  'timestamptz',
  'interval',
  'float4',
  'float8',
  'bytea',
])

/**
 * What a write to the last model of `path` has to know of a related cache.
 *
 * @param tables the model of the cache, then those of the path
 */
function dependentOf(shape: Shape, path: readonly Hop[], tables: readonly Described[]): RecordedDependent {
  const owner = tables[0] as Described
  const keys = shape.fields.map((field) => columnOf(owner, field))
  const odd = keys.find(({ type }) => PRINTED_BY_SETTINGS.has(type))
  if (odd) {
    throw new ModelError(
      owner.definition.name,
      `'${odd.field}' is a ${odd.type}, which cannot be a key field of the related cache '${shape.custom?.name}'`,
    )
  }
  const written = tables[path.length] as Described
  const last = path.at(-1) as Hop
  const links = last.on.map(([before, after]) => ({
    before: columnOf(tables[path.length - 1] as Described, before),
    after: columnOf(written, after),
  }))
  const common = {
    model: owner.definition.name,
    shape: shape.name,
    key: keys.map(({ name, type }) => [name, type] as const),
    ...staleness((shape.custom as CustomDefinition).invalidation),
  }
  // The linking values are the key itself.
  if (path.length === 1) {
    const byKey = keys.map(({ name }) => links.find(({ before }) => before.name === name))
    if (keys.length === links.length && byKey.every((link) => link && link.before.type === link.after.type))
      return { ...common, values: byKey.map((link) => link?.after.name as string), steps: [] }
  }
  const steps: BackStep[] = []
  for (let i = path.length - 1; i >= 0; i--) {
    const on = (path[i] as Hop).on
    const [here, next] = [tables[i] as Described, tables[i + 1] as Described]
    steps.push({
      table: quoteTable(here.table),
      on: on.map(([before, after]) => {
        const column = columnOf(here, before)
        return [column.name, i === path.length - 1 ? column.sqlType : columnOf(next, after).name]
      }),
    })
  }
  return { ...common, values: links.map(({ after }) => after.name), steps }
}

function columnOf({ definition, table }: Described, field: string): ColumnInfo {
  const column = table.byField.get(field)
  if (!column) throw new ModelError(definition.name, `the table has no column for field '${field}'`)
  return column
}

/** Whether everything that `wanted` records is recorded by `installed` too, to the same keys. */
export function covers(installed: Recording, wanted: Recording): boolean {
  const typeOf = new Map(installed.columns.map(({ name, type }) => [name, type]))
  const formOf = ({ columns, staleForMs }: RecordedShape) => JSON.stringify([columns, staleForMs])
  const formsOf = new Map(installed.shapes.map((shape) => [shape.name, formOf(shape)]))
  return (
    wanted.columns.every(({ name, type }) => typeOf.get(name) === type) &&
    wanted.shapes.every((shape) => formsOf.get(shape.name) === formOf(shape)) &&
    wanted.dependents.every((dependent) => installed.dependents.some(isSame(dependent)))
  )
}

/**
 * `wanted`, and what `installed` records besides: processes of an older version of the application still look it up.
 *
 * @param live the columns the table has now, name to base type; what was recorded of others is given up
 */
export function merge(wanted: Recording, installed: Recording, live: ReadonlyMap<string, string>): Recording {
  const known = new Set(wanted.shapes.map(({ name }) => name))
  const kept = installed.shapes.filter(
    ({ name, columns }) => !known.has(name) && columns.every((column) => live.has(column)),
  )
  const dependents = installed.dependents.filter(
    (dependent) =>
      !wanted.dependents.some(isSame(dependent)) && dependent.values.every((column) => live.has(column)),
  )
  const columns = new Map(wanted.columns.map((column) => [column.name, column]))
  for (const name of [
    ...kept.flatMap((shape) => shape.columns),
    ...dependents.flatMap(({ values }) => values),
  ]) {
    if (!columns.has(name)) columns.set(name, { name, type: live.get(name) as string })
  }
  return {
    ...wanted,
    columns: [...columns.values()],
    shapes: [...wanted.shapes, ...kept],
    dependents: [...wanted.dependents, ...dependents],
  }
}

function isSame(dependent: RecordedDependent) {
  const text = JSON.stringify(dependent)
  return (other: RecordedDependent) => JSON.stringify(other) === text
}
