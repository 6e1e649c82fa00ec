import type { Kysely } from 'kysely'
import { currentScope } from 'loadstone'
import type { Models } from '../../examples/shop/models.ts'
import type { Database } from '../../examples/shop/schema.ts'

type Fields = Readonly<Record<string, unknown>>

/** The lookups as a good engineer writes them with DataLoader alone: batched per request, and nothing kept after it. */
export function dataLoaderModels(db: Kysely<Database>): Models {
  // Models checks every call; in here, all tables are alike.
  const anyTable = db as unknown as Kysely<Record<string, Fields>>
  const loadAll = (table: string, field: string) => async (values: readonly unknown[]) => {
    const rows = await anyTable.selectFrom(table).selectAll().where(field, 'in', values).execute()
    const byValue = new Map<unknown, Fields[]>(values.map((value) => [value, []]))
    for (const row of rows) byValue.get(row[field])?.push(row)
    return values.map((value) => byValue.get(value) ?? [])
  }
  const model = (table: string) => {
    const find = (fields: object): Promise<Fields[]> => {
      const [[field, value], ...others] = Object.entries(fields) as [[string, unknown], ...unknown[]]
      const scope = currentScope()
      if (!scope || others.length > 0) throw new Error(`${table}: only fields alone, within requests`)
      return scope.loaderFor(`${table}.${field}`, loadAll(table, field)).load(value)
    }
    const getAsyncOrNone = async (key: object) => (await find(key))[0] ?? null
    return {
      cache: { getAsync: getAsyncOrNone, getAsyncOr404: getAsyncOrNone, getAsyncOrNone, filterAsync: find },
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
