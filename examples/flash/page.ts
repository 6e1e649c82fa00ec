import { type Cache, runInLoop } from 'loadstone'
import type { Declared } from '../shop/models.ts'
import type { Database } from '../shop/schema.ts'
import type { declareCaches } from './caches.ts'

/** What the shop's pages are made of, and every way to get there. Which of them are gone, each page's own needs decide. */
export function declarePlan(
  cache: Cache<Database>,
  { Event, Order, Org }: Declared,
  {
    EventOnSlug,
    GuestsOfEvent,
    HasOrdered,
    LatestEvent,
    TakenSeats,
    TicketsSold,
  }: ReturnType<typeof declareCaches>,
) {
  return (
    cache
      .plan<{ slug: string; orderId: number; userId: number | null }>()
      .node('event', ['slug'], ({ slug }) => EventOnSlug(slug))
      .node('order', ['orderId'], ({ orderId }) => Order.cache.getQuery({ id: orderId }))
      .way('event', ['order'], ({ order }) => Event.cache.getQuery({ id: order.event_id }))
      // Reads what is there already: no lookup, no wave.
      .way('userId', ['order'], ({ order }) => order.user_id, { cost: 0 })
      .node('organiser', ['event'], ({ event }) => Org.cache.getQuery({ id: event.org_id }))
      .node('latest', ['event'], ({ event }) => LatestEvent(event.org_id))
      .node('seats', ['event'], ({ event }) => TakenSeats(event.id), { onNull: () => [] })
      .node('guests', ['event'], ({ event }) => GuestsOfEvent(event.id), { onNull: () => [] })
      .node('sold', ['event'], ({ event }) => TicketsSold(event.id), { onNull: () => 0 })
      // Nobody has signed in: userId is null, and nothing is looked up.
      .node('isGuest', ['userId', 'event'], ({ userId, event }) => HasOrdered(userId, event.id), {
        onNull: () => false,
      })
  )
}

export type ShopPlan = ReturnType<typeof declarePlan>

/** The pages, each of which says what it has and what it wants. One scope per page. */
export function createPages(plan: ShopPlan) {
  return {
    /** The page of an event; null when there is none. */
    event: runInLoop(async (slug: string, userId: number | null) => {
      const { event, organiser, latest, seats, guests, sold, isGuest } = await plan.resolve(
        { slug, userId },
        EVENT_PAGE,
      )
      if (!event || !organiser) return null
      return {
        title: event.title,
        organiser: organiser.name,
        sold,
        guests: guests?.length ?? 0,
        isTaken: (seat: string) => seats?.includes(seat) ?? false,
        isGuest,
        next: latest && latest.id !== event.id ? latest.title : null,
      }
    }),

    /** What somebody sees who has just ordered. */
    order: runInLoop(async (orderId: number) => {
      const { event, organiser, sold, isGuest } = await plan.resolve({ orderId }, ORDER_PAGE)
      return { title: event?.title, organiser: organiser?.name, sold, isGuest }
    }),
  }
}

export const EVENT_PAGE = ['event', 'organiser', 'latest', 'seats', 'guests', 'sold', 'isGuest'] as const
export const ORDER_PAGE = ['event', 'organiser', 'sold', 'isGuest'] as const
