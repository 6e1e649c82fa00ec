import { createSchema, createYoga, maskError, type Plugin } from 'graphql-yoga'
import { NotFoundHttpError, runInLoop } from 'loadstone'
import type { Models } from '../shop/open-shop.ts'
import type { EventRow, OrderRow, TicketRow, UserRow } from '../shop/schema.ts'

const typeDefs = /* GraphQL */ `
  type Query {
    event(slug: String!): Event
  }
  type Event {
    title: String!
    startsAt: String!
    organiser: Org!
    tickets: [Ticket!]!
  }
  type Org {
    name: String!
    plan: String!
  }
  type Ticket {
    seat: String!
    price: String!
    holder: User!
    order: Order!
  }
  type Order {
    placedAt: String!
    buyer: User!
  }
  type User {
    name: String!
    email: String!
    org: Org!
  }
`

/** A GraphQL server whose resolvers each look up one thing. What they ask for on one level becomes one wave. */
export function createGraphqlServer({ Event, Order, Org, Ticket, User }: Models) {
  const resolvers = {
    Query: {
      event: (_: unknown, { slug }: { slug: string }) => Event.cache.getAsyncOr404({ slug }),
    },
    Event: {
      startsAt: (event: EventRow) => event.starts_at.toISOString(),
      organiser: (event: EventRow) => Org.cache.getAsync({ id: event.org_id }),
      tickets: (event: EventRow) => Ticket.cache.filterAsync({ event_id: event.id }),
    },
    Ticket: {
      holder: (ticket: TicketRow) => User.cache.getAsync({ id: ticket.holder_id }),
      order: (ticket: TicketRow) => Order.cache.getAsync({ id: ticket.order_id }),
    },
    Order: {
      placedAt: (order: OrderRow) => order.placed_at.toISOString(),
      buyer: (order: OrderRow) => User.cache.getAsync({ id: order.user_id }),
    },
    User: {
      name: (user: UserRow) => `${user.first_name} ${user.last_name}`,
      org: (user: UserRow) => Org.cache.getAsync({ id: user.org_id }),
    },
  }
  return createYoga({
    schema: createSchema({ typeDefs, resolvers }),
    plugins: [scopePerRequest],
    maskedErrors: { maskError: showNotFound },
    // A 404 is the client's business. Everything else is masked, and logged as an error.
    logging: 'error',
  })
}

/** One scope per request. `run` does all of it: reads it, executes the query and answers. */
const scopePerRequest: Plugin = {
  instrumentation: { request: (_payload, run) => runInLoop(run)() },
}

/**
 * Yoga tells clients only of errors that are made by its own copy of `graphql`, and of others just "Unexpected
 * error.". So it has to be told that this one is meant for them; its `extensions` are there already. Apollo Server
 * and Mercurius need no such thing.
 */
function showNotFound(error: unknown, message: string, isDev?: boolean): Error {
  const { originalError } = error as { originalError?: unknown }
  return originalError instanceof NotFoundHttpError ? (error as Error) : maskError(error, message, isDev)
}
