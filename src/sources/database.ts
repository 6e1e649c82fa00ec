import type { Kysely } from 'kysely'

/** Any `Kysely`: which tables it has is checked by the types of `cache.model()`, and by the database. */
export type Database = Kysely<Tables>

export type Tables = Record<string, Record<string, unknown>>
