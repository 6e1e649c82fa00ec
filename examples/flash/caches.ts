import type { Cache } from 'loadstone'
import type { Declared } from '../shop/models.ts'
import type { Database } from '../shop/schema.ts'

/** What is cached besides rows: what the shop makes of them, by fields of the model whose writes can change it. */
export function declareCaches(cache: Cache<Database>, { Event, Order, Ticket, User }: Declared) {
  return {
    /** Without `load` it is the row, and the very entry that `Event.cache.getAsync({ slug })` looks up. */
    EventOnSlug: cache.instance({ name: 'EventOnSlug', model: Event, keyFields: ['slug'] }),

    /** The last event an organiser has announced. Null, cached as well, where there is none. */
    LatestEvent: cache.instance({
      name: 'LatestEvent',
      model: Event,
      keyFields: ['org_id'],
      // All keys of a wave at once: one statement for any number of organisers.
      async load(keys, { db }) {
        const rows = await db
          .selectFrom('events')
          .selectAll()
          .distinctOn('org_id')
          .where(
            'org_id',
            'in',
            keys.map((key) => key.org_id),
          )
          .orderBy('org_id')
          .orderBy('starts_at', 'desc')
          .execute()
        return keys.map((key) => rows.find((row) => row.org_id === key.org_id) ?? null)
      },
    }),

    /** Not the tickets, only their seats. */
    TakenSeats: cache.queryset({
      name: 'TakenSeats',
      model: Ticket,
      keyFields: ['event_id'],
      async loadOne({ event_id }, { db }) {
        const rows = await db.selectFrom('tickets').select('seat').where('event_id', '=', event_id).execute()
        return rows.map(({ seat }) => seat).sort()
      },
    }),

    /** Who holds tickets, each once: the rows at the end of a path. A new ticket changes it, and so does a new name. */
    GuestsOfEvent: cache.related({
      name: 'GuestsOfEvent',
      model: Event,
      keyFields: ['id'],
      path: [
        { model: Ticket, on: { id: 'event_id' } },
        { model: User, on: { holder_id: 'id' } },
      ],
    }),

    TicketsSold: cache.count({ name: 'TicketsSold', model: Ticket, keyFields: ['event_id'] }),
    HasOrdered: cache.exists({ name: 'HasOrdered', model: Order, keyFields: ['user_id', 'event_id'] }),
  }
}
