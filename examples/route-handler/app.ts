import Fastify, { type FastifyInstance } from 'fastify'
import { runInLoop } from 'loadstone'
import type { Models } from '../shop/open-shop.ts'
import type { TicketRow, UserRow } from '../shop/schema.ts'

/** An HTTP application whose handlers look up what they need, where they need it. */
export function createApp({ Event, Org, Ticket, User }: Models): FastifyInstance {
  const app = Fastify()

  // One scope per request. `done` runs the rest of the request, other hooks included, and all of it is in the scope.
  app.addHook('onRequest', (_request, _reply, done) => runInLoop(done)())

  app.get<{ Params: { slug: string } }>('/events/:slug', async ({ params }) => {
    // No such event? The error carries status 404, and Fastify answers with it by itself.
    const event = await Event.cache.getAsyncOr404({ slug: params.slug })

    // Three models, four lookups, one wave.
    const [organiser, admins, invited, tickets] = await Promise.all([
      Org.cache.getAsync({ id: event.org_id }),
      User.cache.filterAsync({ org_id: event.org_id, role: 'admin' }),
      User.cache.filterAsync({ org_id: event.org_id, role: null }), // null finds NULL
      Ticket.cache.filterAsync({ event_id: event.id }),
    ])
    // Fifty more, one wave again. Whoever holds two tickets is looked up once.
    const guests = await Promise.all(tickets.map(guestOf))

    return {
      title: event.title,
      startsAt: event.starts_at,
      organiser: organiser.name,
      admins: admins.map(({ email }) => email),
      invited: invited.length,
      guests,
    }
  })

  // What comes from outside is checked before it is looked up: this answers 400 to /users/me.
  const params = { type: 'object', properties: { id: { type: 'integer' } } }
  app.get<{ Params: { id: number } }>('/users/:id', { schema: { params } }, async ({ params: { id } }) => {
    const user = await User.cache.getAsyncOr404({ id })
    const org = await Org.cache.getAsync({ id: user.org_id })
    return { name: nameOf(user), org: org.name }
  })

  app.post<{ Body: { emails: string[] } }>('/guest-list', async ({ body }) => {
    const users = await Promise.all(body.emails.map((email) => User.cache.getAsyncOrNone({ email })))
    return users.map((user) => user && nameOf(user))
  })

  /** Knows nothing of the fifty other calls. It asks for one user, as if that cost nothing. */
  async function guestOf({ seat, holder_id }: TicketRow) {
    return { seat, name: nameOf(await User.cache.getAsync({ id: holder_id })) }
  }

  return app
}

function nameOf({ first_name, last_name }: UserRow): string {
  return `${first_name} ${last_name}`
}
