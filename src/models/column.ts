/** What the database says of one column of a model. */
export interface ColumnInfo {
  /** Name in lookups and results: Kysely's, after its plugins. */
  readonly field: string
  /** Name in the database. */
  readonly name: string
  /** Base type (domains resolved), as in `pg_type.typname`: `int4`, `text`, `citext`... */
  readonly type: string
  /** The base type as SQL writes it in a cast, schema-qualified where needed. */
  readonly sqlType: string
  /** The labels of an enum type, else undefined. */
  readonly labels: readonly string[] | undefined
  /** False when the column's collation calls different texts equal, so that text cannot stand for the value. */
  readonly deterministic: boolean
  readonly nullable: boolean
}

/** How the driver turns `date` and `timestamp` into a JS Date: as local wall time, as UTC, or not at all. */
export type DateReading = 'local' | 'utc' | 'none'

/** What the database says of a model's table. */
export interface TableInfo {
  readonly schema: string
  readonly name: string
  /** Every column that results carry, in result order. */
  readonly columns: readonly ColumnInfo[]
  /** The columns of key fields, filter fields and the declared order; a superset may be given. */
  readonly byField: ReadonlyMap<string, ColumnInfo>
  readonly dates: { readonly date: DateReading; readonly timestamp: DateReading }
}
