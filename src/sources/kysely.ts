import { expressionBuilder, type RawBuilder, type SelectQueryBuilder, sql } from 'kysely'
import type { ColumnInfo, TableInfo } from '../models/column.ts'
import type { Hop } from '../models/custom.ts'
import type { BoundModel, ModelDefinition } from '../models/model.ts'
import type { Dimension, Shape } from '../models/shape.ts'
import { recordedFields, type StoredRow } from '../models/stored-row.ts'
import type { Database, Tables } from './database.ts'
import { describeTable } from './describe.ts'
import type { Catalog, KeyTexts, ResultRow, Source, Where } from './source.ts'

/** The aliases of the model's table and of the keys it is joined to. No table of a schema is called like this. */
const ROW = 'loadstonerow'
const KEY = 'loadstonekey'
/** The result column that tells which key a row belongs to. Without an underscore: naming plugins leave it alone. */
const ORDINAL = 'loadstoneord'
const COUNT = 'loadstonecount'
const TEXTS = 'loadstonetexts'

/** For parts of statements: plugins would transform a part by itself, and then once more as a part of the whole. */
const WITHOUT_PLUGINS = expressionBuilder<Tables>()

type Builder = Pick<typeof WITHOUT_PLUGINS, 'selectFrom'>
type From = SelectQueryBuilder<Tables, string, Record<string, unknown>>

/** Rows from Postgres (`pg`, PGlite) through Kysely, its plugins and type parsers included. */
export class KyselySource implements Source, Catalog {
  readonly #db: Database

  constructor(db: Database) {
    this.#db = db
  }

  dbOf(): Database {
    return this.#db
  }

  describe(model: ModelDefinition): Promise<TableInfo> {
    return describeTable(this.#db, model)
  }

  async select(model: BoundModel, shape: Shape, keys: readonly KeyTexts[]): Promise<ResultRow[][]> {
    const query = this.#results(this.#matches(this.#db, model, shape, keys), model.definition, shape.kind)
    return byKey(await query.execute(), keys.length)
  }

  async related(
    model: BoundModel,
    shape: Shape,
    path: readonly Hop[],
    last: ModelDefinition,
    keys: readonly KeyTexts[],
  ): Promise<ResultRow[][]> {
    let from = this.#matches(WITHOUT_PLUGINS, model, shape, keys)
    let before = ROW
    /** Pairs that are equal: what links the rows of a hop, and what they are scoped by as the key is. */
    const equalAt = ({ on, definition }: Hop) => [
      ...on.map(([a, b]) => [`${before}.${a}`, b] as const),
      ...definition().dimensions.map(({ name, field }) => {
        const own = model.definition.dimensions.find((each) => each.name === name) as Dimension
        return [`${ROW}.${own.field}`, field] as const
      }),
    ]
    for (const [i, hop] of path.slice(0, -1).entries()) {
      const here = `loadstonehop${letter(i)}`
      const equal = equalAt(hop)
      from = from.innerJoin(`${hop.model} as ${here}`, (join) =>
        equal.reduce((joined, [left, b]) => joined.on(isEqual(left, `${here}.${b}`)), join),
      ) as unknown as From
      before = here
    }
    const on = equalAt(path.at(-1) as Hop)
    const link = (i: number) => `loadstonelink${letter(i)}`
    // Each of them once: the rows that they lead to are then told apart by them.
    const links = from
      .select([ordinal(), ...on.map(([left], i) => sql`${sql.ref(left)}`.as(link(i)))])
      .distinct()
    const query = this.#db
      .selectFrom(links.as(KEY))
      .innerJoin(`${last.name} as ${ROW}`, (join) =>
        on.reduce((joined, [, b], i) => joined.on(isEqual(`${KEY}.${link(i)}`, `${ROW}.${b}`)), join),
      )
    return byKey(await this.#results(query as unknown as From, last, 'filter').execute(), keys.length)
  }

  async count(model: BoundModel, shape: Shape, keys: readonly KeyTexts[]): Promise<number[]> {
    const rows = await this.#matches(this.#db, model, shape, keys)
      .select([ordinal(), sql<number>`count(*)::int4`.as(COUNT)])
      .groupBy(sql.raw(`${KEY}.${ORDINAL}`))
      .execute()
    const counts = new Array<number>(keys.length).fill(0)
    for (const row of rows) counts[Number(row[ORDINAL]) - 1] = Number(row[COUNT])
    return counts
  }

  async *rowsWhere(
    model: BoundModel,
    where: Where,
    limit: number,
  ): AsyncGenerator<readonly StoredRow[], void> {
    const { name, primaryKey } = model.definition
    const columnOf = (field: string) => sql.ref(`${name}.${field}`)
    const fields = recordedFields(model)
    const texts = fields.map((field) => printed(model, field, columnOf(field)))
    // In parentheses: whatever it is, the rest is said besides. As one column, which no plugin renames.
    const selected = this.#db
      .selectFrom(name)
      .select(sql<string>`json_build_array(${sql.join(texts)})::text`.as(TEXTS))
      .where(sql<boolean>`(${where.condition})`)
    const rowsOf = async (query: typeof selected) =>
      (await query.execute()).map((row) => storedRow(model, fields, row[TEXTS]))

    const order = sql.join(primaryKey.map(columnOf))
    const nullable = primaryKey.filter((field) => model.table.byField.get(field)?.nullable)
    const isNull = nullable.map((field) => sql`${columnOf(field)} is null`)
    const numbered = primaryKey
      .reduce((query, field) => query.orderBy(columnOf(field)), selected)
      .limit(limit)
    const first =
      isNull.length === 0 ? numbered : numbered.where(sql<boolean>`not (${sql.join(isNull, sql` or `)})`)
    for (let query = first; ; ) {
      const rows = await rowsOf(query)
      const last = rows.at(-1)
      if (last) yield rows
      if (!last || rows.length < limit) break
      const from = primaryKey.map((field) => {
        const { sqlType } = model.table.byField.get(field) as ColumnInfo
        return sql`${last[field]}::text::${sql.raw(sqlType)}`
      })
      query = first.where(sql<boolean>`(${order}) > (${sql.join(from)})`)
    }
    // No order tells these apart. A primary key has none of them; what else is declared as one has few.
    if (isNull.length > 0) {
      const rows = await rowsOf(selected.where(sql<boolean>`(${sql.join(isNull, sql` or `)})`))
      if (rows.length > 0) yield rows
    }
  }

  /** The keys, each joined to its rows. */
  #matches(db: Builder, model: BoundModel, shape: Shape, keys: readonly KeyTexts[]): From {
    const masks = nullMasks(keys)
    return masks.length === 1 && masks[0] === 0
      ? this.#equal(db, model, shape, keys)
      : this.#withNulls(db, model, shape, keys, masks)
  }

  /** The usual statement: one index lookup per key, and the same text whatever the number of keys. */
  #equal(db: Builder, model: BoundModel, shape: Shape, keys: readonly KeyTexts[]): From {
    const query = db
      .selectFrom(keyTable(shape, keys))
      .innerJoin(`${model.definition.name} as ${ROW}`, (join) =>
        shape.fields.reduce(
          (on, field, i) => on.on(sql<boolean>`${sql.ref(`${ROW}.${field}`)} = ${keyValue(model, field, i)}`),
          join,
        ),
      )
    return query as unknown as From
  }

  /**
   * With NULLs among the keys, a branch per set of NULL columns: `=` and `IS NULL` each use an index, where
   * `IS NOT DISTINCT FROM` uses none.
   */
  #withNulls(
    db: Builder,
    model: BoundModel,
    shape: Shape,
    keys: readonly KeyTexts[],
    masks: readonly number[],
  ): From {
    const { selectFrom } = WITHOUT_PLUGINS
    const branch = (mask: number) =>
      shape.fields.reduce(
        (query, field, i) =>
          (mask >> i) & 1
            ? query.where(
                sql<boolean>`${keyText(i)} is null and ${sql.ref(`loadstonetable.${field}`)} is null`,
              )
            : query.where(sql<boolean>`${sql.ref(`loadstonetable.${field}`)} = ${keyValue(model, field, i)}`),
        selectFrom(`${model.definition.name} as loadstonetable`).selectAll('loadstonetable'),
      )
    const [first, ...rest] = masks.map(branch) as [ReturnType<typeof branch>, ...ReturnType<typeof branch>[]]
    const union = rest.reduce((query, other) => query.unionAll(other), first)
    const query = db
      .selectFrom(keyTable(shape, keys))
      .innerJoinLateral(union.as(ROW), (join) => join.onTrue())
    return query as unknown as From
  }

  #results(from: From, { columns, orderBy }: ModelDefinition, kind: Shape['kind']) {
    const query = columns ? from.select(columns.map((field) => `${ROW}.${field}`)) : from.selectAll(ROW)
    const numbered = query.select(ordinal())
    if (kind === 'key') return numbered
    return orderBy.reduce(
      // As a plain text, a name with a blank in it would be taken apart into a name and a direction.
      (ordered, { field, direction }) => ordered.orderBy(sql.ref(`${ROW}.${field}`), direction),
      numbered.orderBy(sql.raw(ORDINAL)),
    )
  }
}

/**
 * `unnest($1::text[], ...) with ordinality`: an array per field, so there is no limit of bind parameters. As text,
 * since drivers differ in what they make of an array of anything else, and `unnest` would take apart a value that is
 * an array or a composite itself.
 */
function keyTable(shape: Shape, keys: readonly KeyTexts[]) {
  const arrays = shape.fields.map((_, i) => sql`${keys.map((key) => key[i])}::text[]`)
  const names = sql.raw([...shape.fields.map((_, i) => `c${i}`), ORDINAL].join(', '))
  return sql<Record<string, unknown>>`unnest(${sql.join(arrays)}) with ordinality`.as<typeof KEY>(
    sql`${sql.raw(KEY)}(${names})`,
  )
}

/** Names without digits and underscores, which naming plugins leave alone. */
function letter(i: number): string {
  return String.fromCharCode(97 + i)
}

function isEqual(a: string, b: string) {
  return sql<boolean>`${sql.ref(a)} = ${sql.ref(b)}`
}

function ordinal() {
  return sql<number>`${sql.raw(KEY)}.${sql.raw(ORDINAL)}::int4`.as(ORDINAL)
}

/** A key's text for a field, as a value of the column's type. */
function keyValue(model: BoundModel, field: string, index: number) {
  const { sqlType } = model.table.byField.get(field) as ColumnInfo
  return sql`${keyText(index)}::${sql.raw(sqlType)}`
}

function keyText(index: number) {
  return sql.raw(`${KEY}.c${index}`)
}

/**
 * A column as text. Unlike a cast alone, it says the same whatever the settings of the session are, and unlike what the
 * driver makes of it, nothing is missing: a JS Date has no microseconds.
 */
function printed(model: BoundModel, field: string, column: RawBuilder<unknown>): RawBuilder<string> {
  switch (model.table.byField.get(field)?.type) {
    case 'timestamptz':
      return sql`to_json(${column} at time zone 'UTC') #>> '{}'`
    case 'timestamp':
    case 'date':
      return sql`to_json(${column}) #>> '{}'`
    case 'bytea':
      return sql`'\\x' || encode(${column}, 'hex')`
    default:
      return sql`${column}::text`
  }
}

/** @param texts what `rowsWhere` selects; a plugin may have parsed it */
function storedRow(model: BoundModel, fields: readonly string[], texts: unknown): StoredRow {
  const list = (typeof texts === 'string' ? JSON.parse(texts) : texts) as readonly (string | null)[]
  return Object.fromEntries(
    fields.map((field, i) => {
      const text = list[i] as string | null
      const isMoment = model.table.byField.get(field)?.type === 'timestamptz'
      // 'infinity' has no zone.
      return [field, isMoment ? (text?.replace(/^\d[^ ]*/, '$&+00') ?? null) : text]
    }),
  )
}

/** For each distinct set of NULL columns among the keys, a number with their bits. */
function nullMasks(keys: readonly KeyTexts[]): number[] {
  const masks = new Set<number>()
  for (const key of keys) {
    let mask = 0
    for (let i = 0; i < key.length; i++) if (key[i] === null) mask |= 1 << i
    masks.add(mask)
  }
  return [...masks].sort((a, b) => a - b)
}

/** Deals rows to the keys they carry the number of, and takes the number out of them. */
function byKey(rows: readonly Record<string, unknown>[], count: number): ResultRow[][] {
  const lists: ResultRow[][] = Array.from({ length: count }, () => [])
  const [first] = rows
  if (!first) return lists
  const fields = Object.keys(first).filter((field) => field !== ORDINAL)
  const resultOf = fields.includes('__proto__') ? defined : assigned
  for (const row of rows) lists[Number(row[ORDINAL]) - 1]?.push(resultOf(row, fields))
  return lists
}

function assigned(row: Readonly<Record<string, unknown>>, fields: readonly string[]): ResultRow {
  const result: Record<string, unknown> = {}
  for (const field of fields) result[field] = row[field]
  return result
}

/** Slower, and right for a column called `__proto__`: to assign it would give the row another prototype. */
function defined(row: Readonly<Record<string, unknown>>, fields: readonly string[]): ResultRow {
  return Object.fromEntries(fields.map((field) => [field, row[field]]))
}
