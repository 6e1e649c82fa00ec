import { ModelError } from '../errors.ts'
import type { ColumnInfo, TableInfo } from '../models/column.ts'
import type { ModelDefinition } from '../models/model.ts'

/** What the triggers of a model record: the columns its keys are made of, and how. See `models/touched.ts`. */
export interface Recording {
  readonly namespace: string
  readonly model: string
  /** The columns of all shapes, each once. */
  readonly columns: readonly RecordedColumn[]
  readonly shapes: readonly RecordedShape[]
  /** A statement that writes more rows is recorded as one that wrote all of them. */
  readonly maxTouchedRows: number
}

/** Names are those in the database. */
export interface RecordedColumn {
  readonly name: string
  /** The base type, as {@link ColumnInfo.type}. */
  readonly type: string
}

export interface RecordedShape {
  readonly name: string
  /** Names of columns. */
  readonly columns: readonly string[]
}

/** What to install: for each model its table, and what to record of it. */
export interface InstallPlan {
  readonly namespace: string
  readonly models: readonly ModelPlan[]
  readonly maxTouchedRows: number
}

export interface ModelPlan extends Pick<Recording, 'model' | 'columns' | 'shapes'> {
  readonly table: { readonly schema: string; readonly name: string }
}

/** @throws ModelError when `table` lacks a declared field */
export function planModel(definition: ModelDefinition, table: TableInfo): ModelPlan {
  const columnOf = (field: string): ColumnInfo => {
    const column = table.byField.get(field)
    if (!column) throw new ModelError(definition.name, `the table has no column for field '${field}'`)
    return column
  }
  const shapes = definition.shapes.map(({ name, fields }) => ({
    name,
    columns: fields.map((field) => columnOf(field).name),
  }))
  const columns = new Map<string, RecordedColumn>()
  for (const field of definition.shapes.flatMap((shape) => shape.fields)) {
    const { name, type } = columnOf(field)
    columns.set(name, { name, type })
  }
  const { schema, name } = table
  return { model: definition.name, table: { schema, name }, columns: [...columns.values()], shapes }
}

/** Whether everything that `wanted` records is recorded by `installed` too, to the same keys. */
export function covers(installed: Recording, wanted: Recording): boolean {
  const typeOf = new Map(installed.columns.map(({ name, type }) => [name, type]))
  const columnsOf = new Map(installed.shapes.map(({ name, columns }) => [name, columns]))
  return (
    wanted.columns.every(({ name, type }) => typeOf.get(name) === type) &&
    wanted.shapes.every(({ name, columns }) => columnsOf.get(name)?.join('\0') === columns.join('\0'))
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
  const columns = new Map(wanted.columns.map((column) => [column.name, column]))
  for (const name of kept.flatMap((shape) => shape.columns)) {
    if (!columns.has(name)) columns.set(name, { name, type: live.get(name) as string })
  }
  return { ...wanted, columns: [...columns.values()], shapes: [...wanted.shapes, ...kept] }
}
