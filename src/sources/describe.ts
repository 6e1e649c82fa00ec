import { type OperationNode, sql } from 'kysely'
import { ModelError, SourceError } from '../errors.ts'
import type { ColumnInfo, DateReading, TableInfo } from '../models/column.ts'
import type { ModelDefinition } from '../models/model.ts'
import type { Database } from './database.ts'

interface CatalogTable {
  readonly schema: string
  readonly name: string
  readonly columns: readonly {
    readonly name: string
    readonly type: string
    readonly sqlType: string
    readonly labels: readonly string[] | null
    readonly deterministic: boolean
    readonly nullable: boolean
  }[]
}

/**
 * What the database says of a model's table: three small statements, once per model and process.
 *
 * Kysely's plugins may rename everything, so nothing is guessed: the names in the database are read off the
 * statement the plugins made, the names in results off a row of NULLs that went through them.
 *
 * @throws ModelError when the table or a declared column is not there, SourceError when the database cannot be asked
 */
export async function describeTable(db: Database, model: ModelDefinition): Promise<TableInfo> {
  const fields = [
    ...new Set([
      ...model.shapes.flatMap((shape) => shape.fields),
      ...model.linkFields,
      ...model.orderBy.map((o) => o.field),
    ]),
  ]
  const names = physicalNames(db, model, fields)
  try {
    const catalog = await readCatalog(db, names.table)
    if (!catalog) throw new ModelError(model.name, `the database has no table ${names.table}`)
    const byName = new Map(catalog.columns.map((column) => [column.name, column]))
    const infoOf = (field: string, name: string): ColumnInfo => {
      const column = byName.get(name)
      if (!column) {
        const known = catalog.columns.map((each) => each.name).join(', ') || 'none'
        throw new ModelError(model.name, `table ${names.table} has no column '${name}'; it has ${known}`)
      }
      return { ...column, field, labels: column.labels ?? undefined }
    }
    const byField = new Map(fields.map((field, i) => [field, infoOf(field, names.columns[i] as string)]))
    const columns = await resultColumns(db, model, catalog, infoOf)
    return {
      schema: catalog.schema,
      name: catalog.name,
      columns,
      byField,
      dates: await readDates(db, byField),
    }
  } catch (error) {
    throw error instanceof ModelError ? error : new SourceError(model.name, ['*'], error)
  }
}

/** The names the plugins turn a model's table and fields into. */
function physicalNames(db: Database, model: ModelDefinition, fields: readonly string[]) {
  const node = db
    .selectFrom(model.name)
    .select([...fields])
    .toOperationNode()
  const table = node.from?.froms[0]
  if (table?.kind !== 'TableNode') throw new ModelError(model.name, 'is no table of this Kysely instance')
  const { schema, identifier } = (table as unknown as TableNodeParts).table
  if (isTrimmed(model.name))
    throw new ModelError(model.name, 'cannot be the name of a table in Kysely: blanks around it are cut off')
  const quoted = [schema?.name, identifier.name].filter((part) => part !== undefined).map(quote)
  const columns = (node.selections ?? []).map(({ selection }, i) => {
    const { kind, column, table: owner } = selection as unknown as ReferenceNodeParts
    // Kysely takes 'a.b' for b of a table a, 'a as b' for an alias, and where it does, cuts off blanks.
    if (kind === 'ReferenceNode' && owner === undefined && !isTrimmed(fields[i] as string))
      return column.column.name
    throw new ModelError(model.name, `'${fields[i]}' cannot be the name of a column in Kysely`)
  })
  return { table: quoted.join('.'), columns }
}

interface TableNodeParts extends OperationNode {
  readonly table: {
    readonly schema?: { readonly name: string }
    readonly identifier: { readonly name: string }
  }
}

interface ReferenceNodeParts extends OperationNode {
  readonly table?: OperationNode
  readonly column: { readonly column: { readonly name: string } }
}

/** One JSON text, so that nobody's type parsers and plugins have a say in it. */
async function readCatalog(db: Database, table: string): Promise<CatalogTable | undefined> {
  const { rows } = await sql<{ info: string }>`
    with recursive base(id, oid, basetype, typname, typtype) as (
      select oid, oid, typbasetype, typname, typtype from pg_type
        where oid in (select atttypid from pg_attribute where attrelid = to_regclass(${table}))
      union all
      select base.id, t.oid, t.typbasetype, t.typname, t.typtype
        from base join pg_type t on t.oid = base.basetype where base.basetype <> 0
    )
    select json_build_object(
      'schema', n.nspname, 'name', c.relname,
      'columns', (
        select coalesce(json_agg(json_build_object(
          'name', a.attname, 'type', base.typname, 'sqlType', format_type(base.oid, -1),
          'nullable', not a.attnotnull, 'deterministic', case when base.typname = 'citext'
            -- Where i is not the small I, or its operators are not on the search path, it is not what we take it for.
            then lower('I') = 'i' and exists (select from pg_operator o where o.oprname = '='
              and o.oprleft = base.oid and o.oprright = base.oid and pg_operator_is_visible(o.oid))
            else coalesce(co.collisdeterministic, true) end,
          'labels', (select json_agg(e.enumlabel order by e.enumsortorder) from pg_enum e where e.enumtypid = base.oid)
        ) order by a.attnum), '[]')
        from pg_attribute a
        join base on base.id = a.atttypid and base.basetype = 0
        left join pg_collation co on co.oid = a.attcollation
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      )
    )::text as info
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.oid = to_regclass(${table})`.execute(db.withoutPlugins())
  return rows[0] ? (JSON.parse(rows[0].info) as CatalogTable) : undefined
}

/** The columns as results name them, which need not be how they are declared. */
async function resultColumns(
  db: Database,
  model: ModelDefinition,
  catalog: CatalogTable,
  infoOf: (field: string, name: string) => ColumnInfo,
): Promise<ColumnInfo[]> {
  const names = model.columns
    ? physicalNames(db, model, model.columns).columns
    : catalog.columns.map(({ name }) => name)
  // A column that is not there is told as that, not as the error of the statement below.
  for (const name of names) infoOf(name, name)
  const from = db
    .selectFrom(sql`(select 1)`.as('loadstonekey'))
    .leftJoin(`${model.name} as loadstonerow`, (join) => join.on(sql<boolean>`false`))
  const query = model.columns
    ? from.select(model.columns.map((field) => `loadstonerow.${field}`))
    : from.selectAll('loadstonerow')
  const fields = Object.keys(await query.executeTakeFirstOrThrow())
  if (fields.length !== names.length) {
    throw new ModelError(
      model.name,
      `a row of it has the fields ${fields.join(', ')}, which are not one per column; declare columns`,
    )
  }
  return fields.map((field, i) => infoOf(field, names[i] as string))
}

/** What the driver's type parsers make of dates: found out, as every driver and parser does it in its own way. */
async function readDates(
  db: Database,
  byField: ReadonlyMap<string, ColumnInfo>,
): Promise<TableInfo['dates']> {
  if (![...byField.values()].some(({ type }) => type === 'date' || type === 'timestamp')) {
    return { date: 'none', timestamp: 'none' }
  }
  const { rows } = await sql<{ day: unknown; moment: unknown }>`
    select date '2000-06-02' as day, timestamp '2000-06-02 03:04:05' as moment`.execute(db.withoutPlugins())
  const reading = (
    value: unknown,
    ...parts: [number, number, number, number, number, number]
  ): DateReading => {
    if (!(value instanceof Date)) return 'none'
    if (value.getTime() === new Date(...parts).getTime()) return 'local'
    return value.getTime() === Date.UTC(...parts) ? 'utc' : 'none'
  }
  return {
    date: reading(rows[0]?.day, 2000, 5, 2, 0, 0, 0),
    timestamp: reading(rows[0]?.moment, 2000, 5, 2, 3, 4, 5),
  }
}

function isTrimmed(name: string): boolean {
  return name !== name.trim()
}

function quote(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
