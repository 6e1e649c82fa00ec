import type { Selectable } from 'kysely'

/** The tables of a Kysely `Database`, by name. */
export type TableName<DB> = keyof DB & string

/** The columns of a table, as Kysely names them. */
export type FieldName<DB, TB extends TableName<DB>> = keyof Selectable<DB[TB]> & string

/** What a lookup resolves to: the row as `selectFrom(table)` would return it, or the declared `columns` of it. */
export type Row<DB, TB extends TableName<DB>, Columns extends string = FieldName<DB, TB>> = Flatten<
  Readonly<Fields<DB, TB, Columns>>
>

/**
 * The union of the objects that the declared field lists allow. Naming the fields of two lists at once is no
 * member, so it does not compile.
 */
export type LookupKey<DB, TB extends TableName<DB>, Shapes extends readonly (readonly string[])[]> = {
  [I in keyof Shapes]: ExactKey<DB, TB, Shapes[I][number], Shapes[number][number]>
}[number]

type ExactKey<DB, TB extends TableName<DB>, Names extends string, All extends string> = Flatten<
  Fields<DB, TB, Names> & { [F in keyof Fields<DB, TB, Exclude<All, Names>>]?: never }
>

/** Columns as they are selected, and in the order in which the table declares them. */
type Fields<DB, TB extends TableName<DB>, Names extends string> =
  string extends FieldName<DB, TB>
    ? { [F in Names]: Selectable<DB[TB]>[F & FieldName<DB, TB>] }
    : { [F in keyof DB[TB] as F extends Names ? F : never]-?: Selectable<DB[TB]>[F & FieldName<DB, TB>] }

/** Shown by editors as the object it is, not as the types it was made of. */
export type Flatten<T> = { [K in keyof T]: T[K] } & {}
