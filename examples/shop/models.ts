import type { Cache } from 'loadstone'
import type { Database } from './schema.ts'

/**
 * How the shop looks its tables up. An application has one cache, so there this is a module of constants:
 * `export const User = cache.model('users', { ... })`.
 */
export function declareModels(cache: Cache<Database>) {
  return {
    Org: cache.model('orgs', { keyFields: [['id'], ['slug']] }),
    User: cache.model('users', {
      keyFields: [['id'], ['email']],
      filterFields: [['org_id', 'role']],
      // 'Ada@Example.com' is who 'ada@example.com' is.
      normalize: { email: (email: string) => email.toLowerCase() },
    }),
    Event: cache.model('events', { keyFields: [['id'], ['slug']] }),
    Order: cache.model('orders', { keyFields: [['id']] }),
    Ticket: cache.model('tickets', { keyFields: [['id']], filterFields: [['event_id'], ['order_id']] }),
  }
}

export type Declared = ReturnType<typeof declareModels>

/** What the examples use of the models: lookups. It says no more than that so that plain.ts can stand in for them. */
export type Models = {
  readonly [Name in keyof Declared]: {
    readonly cache: Pick<
      Declared[Name]['cache'],
      'getAsync' | 'getAsyncOrNone' | 'getAsyncOr404' | 'filterAsync'
    >
  }
}
