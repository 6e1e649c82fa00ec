import type { Selectable } from 'kysely'

/** The tables of a Kysely `Database`, by name. */
export type TableName<DB> = keyof DB & string

/** The columns of a table, as Kysely names them. */
export type FieldName<DB, TB extends TableName<DB>> = keyof Selectable<DB[TB]> & string

/** What a lookup resolves to: the row as `selectFrom(table)` would return it, or the declared `columns` of it. */
export type Row<DB, TB extends TableName<DB>, Columns extends string = FieldName<DB, TB>> = Readonly<
  Pick<Selectable<DB[TB]>, Columns & keyof Selectable<DB[TB]>>
>

/**
 * The union of the objects that the declared field lists allow. Naming the fields of two lists at once is no
 * member, so it does not compile.
 */
export type LookupKey<Columns, Shapes extends readonly (readonly string[])[]> = {
  [I in keyof Shapes]: ExactKey<
    Columns,
    Shapes[I][number] & keyof Columns,
    Shapes[number][number] & keyof Columns
  >
}[number]

type ExactKey<Columns, Fields extends keyof Columns, Others extends keyof Columns> = Flatten<
  { readonly [F in Fields]: Columns[F] } & { readonly [F in Exclude<Others, Fields>]?: never }
>

type Flatten<T> = { [K in keyof T]: T[K] } & {}
