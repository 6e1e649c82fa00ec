import type { Kysely } from 'kysely'
import type { Models } from './models.ts'
import type { Database } from './schema.ts'

/**
 * The same lookups without Loadstone: each is one query. The demo runs the same handlers on both, to tell the
 * difference.
 */
export function plainModels(db: Kysely<Database>): Models {
  // Models checks every call; in here, all tables are alike.
  const anyTable = db as unknown as Kysely<Record<string, Record<string, unknown>>>
  const model = (table: keyof Database) => {
    const query = (fields: object) =>
      anyTable
        .selectFrom(table)
        .selectAll()
        .where((eb) => eb.and(fields as Record<string, unknown>))
    const getAsync = (key: object) => query(key).executeTakeFirstOrThrow()
    return {
      cache: {
        getAsync,
        getAsyncOr404: getAsync,
        getAsyncOrNone: async (key: object) => (await query(key).executeTakeFirst()) ?? null,
        filterAsync: (filter: object) => query(filter).orderBy('id').execute(),
      },
    }
  }
  return {
    Org: model('orgs'),
    User: model('users'),
    Event: model('events'),
    Order: model('orders'),
    Ticket: model('tickets'),
  } as unknown as Models
}
