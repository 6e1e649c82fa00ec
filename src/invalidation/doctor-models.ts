import { sql } from 'kysely'
import type { BoundModel } from '../models/model.ts'
import type { Shape } from '../models/shape.ts'
import type { Database } from '../sources/database.ts'
import { type Finding, ok, warn } from './findings.ts'
import { INTERNAL } from './outbox-rows.ts'
import { quoteName } from './sql-text.ts'

interface IndexFacts {
  /** `pg_class.relkind` of the table. */
  readonly kind: string
  readonly indexes: readonly {
    readonly unique: boolean
    /** In order; null for an expression. */
    readonly columns: readonly (string | null)[]
  }[]
}

/** Whether what models declare is what their tables can do: key fields that are unique, and lookups with an index. */
export async function diagnoseIndexes(db: Database, models: readonly BoundModel[]): Promise<Finding[]> {
  const facts = await readIndexes(db, models)
  return models.flatMap((model, i) => {
    const { kind, indexes } = facts[i] ?? { kind: '', indexes: [] }
    // Views and the like have no indexes of their own.
    if (kind !== 'r' && kind !== 'p') return []
    const problems = model.definition.shapes.flatMap((shape) => {
      const problem = problemOf(model, shape, indexes)
      if (!problem) return []
      const index = `${problem.unique ? 'unique index' : 'index'}${kind === 'p' ? '' : ' concurrently'}`
      const { schema, name } = model.table
      const columns = columnsOf(model, shape).map(quoteName).join(', ')
      return warn(
        'models',
        `${model.definition.name}: ${problem.text}`,
        `create ${index} on ${quoteName(schema)}.${quoteName(name)} (${columns})`,
      )
    })
    const fine = `${model.definition.name}: every key is unique, every lookup has an index`
    return problems.length > 0 ? problems : [ok('models', fine)]
  })
}

function problemOf(model: BoundModel, shape: Shape, indexes: IndexFacts['indexes']) {
  const columns = columnsOf(model, shape)
  const fields = `[${shape.fields.map((field) => `'${field}'`).join(', ')}]`
  const isOurs = (column: string | null | undefined) => typeof column === 'string' && columns.includes(column)
  if (shape.kind === 'key' && !indexes.some((index) => index.unique && index.columns.every(isOurs))) {
    const text = `keyFields ${fields} have no unique index: a second such row makes their lookups fail`
    return { text, unique: true }
  }
  if (indexes.some(({ columns: [first] }) => isOurs(first))) return undefined
  const text = `${shape.kind}Fields ${fields} have no index: every miss reads the whole table`
  return { text, unique: shape.kind === 'key' }
}

function columnsOf({ table }: BoundModel, { fields }: Shape): string[] {
  return fields.map((field) => table.byField.get(field)?.name ?? field)
}

/** Valid indexes of whole tables: a partial one serves no lookup of any row. */
async function readIndexes(db: Database, models: readonly BoundModel[]): Promise<IndexFacts[]> {
  const { rows } = await sql<{ facts: string | null }>`${sql.raw(INTERNAL)}
    select json_agg(json_build_object(
      'kind', c.relkind,
      'indexes', (
        select coalesce(json_agg(json_build_object('unique', i.indisunique, 'columns', (
          select json_agg(a.attname order by k.position)
          from unnest(i.indkey::int2[]) with ordinality k(number, position)
          left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number and k.number > 0
          where k.position <= i.indnkeyatts
        ))), '[]')
        from pg_index i join pg_class ic on ic.oid = i.indexrelid join pg_am am on am.oid = ic.relam
        where i.indrelid = c.oid and i.indisvalid and i.indpred is null and am.amname in ('btree', 'hash')
      )
    ) order by wanted.position)::text as facts
    from unnest(${models.map(({ table }) => table.schema)}::text[], ${models.map(({ table }) => table.name)}::text[])
      with ordinality wanted(schema, name, position)
    left join pg_namespace n on n.nspname = wanted.schema
    left join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name`.execute(db)
  return JSON.parse(rows[0]?.facts ?? '[]') as IndexFacts[]
}
