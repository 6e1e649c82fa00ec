import type { Kysely } from 'kysely'
import type { Database, EventRow, OrderRow, OrgRow, TicketRow, UserRow } from './schema.ts'

const ORGS = 30
const USERS_PER_ORG = 50
const USERS = ORGS * USERS_PER_ORG
const EVENTS = 60
const ORDERS_PER_EVENT = 25

const SOUNDS = ['Amber', 'Brass', 'Copper', 'Distant', 'Early', 'Floating']
const PLACES = ['Harbour', 'Cellar', 'Orchard', 'Foundry', 'Terrace']
const FORMS = ['Nights', 'Sessions', 'Festival', 'Gala']
const FIRST_NAMES = ['Ada', 'Bela', 'Chidi', 'Dora', 'Emil', 'Femi', 'Greta', 'Hugo', 'Ines', 'Jun', 'Kofi']
const LAST_NAMES = ['Abel', 'Berg', 'Costa', 'Diaz', 'Ekwe', 'Frey', 'Gill', 'Haas', 'Ito', 'Jung', 'Kane']

/** The same few thousand rows every time, so that the examples can say exactly what they cost. */
export async function seed(db: Kysely<Database>): Promise<number> {
  const data = { orgs: orgs(), users: users(), events: events(), ...sales() }
  let count = 0
  for (const [table, rows] of Object.entries(data) as [keyof Database, readonly object[]][]) {
    // One statement takes at most 65,535 parameters.
    for (let from = 0; from < rows.length; from += 1000) {
      await db
        .insertInto(table)
        .values(rows.slice(from, from + 1000) as never)
        .execute()
    }
    count += rows.length
  }
  return count
}

function orgs(): OrgRow[] {
  return rows(ORGS, (id) => {
    const name = `${cycle(SOUNDS, id)} ${cycle(PLACES, id)}`
    return { id, name, slug: slugOf(name), plan: id % 3 === 0 ? 'team' : 'free' }
  })
}

/** Per org two admins, three people without a role, and members. */
function users(): UserRow[] {
  return rows(USERS, (id) => {
    const [first_name, last_name] = [cycle(FIRST_NAMES, id), cycle(LAST_NAMES, id)]
    const place = Math.floor((id - 1) / ORGS)
    return {
      id,
      email: `${first_name}.${last_name}.${id}@example.com`.toLowerCase(),
      first_name,
      last_name,
      org_id: ((id - 1) % ORGS) + 1,
      role: place < 2 ? 'admin' : place < 5 ? null : 'member',
      created_at: day(id % 365),
    }
  })
}

function events(): EventRow[] {
  return rows(EVENTS, (id) => {
    const title = `${cycle(SOUNDS, id)} ${cycle(PLACES, id)} ${cycle(FORMS, id)}`
    return { id, slug: slugOf(title), title, org_id: ((id - 1) % ORGS) + 1, starts_at: day(400 + id) }
  })
}

/** Per event 25 orders by different people, each of two tickets; one order in five is for one person alone. */
function sales(): { orders: OrderRow[]; tickets: TicketRow[] } {
  const orders = rows(EVENTS * ORDERS_PER_EVENT, (id) => ({
    id,
    // 7 has no divisor in common with the number of users, so nobody comes up twice.
    user_id: ((id * 7) % USERS) + 1,
    event_id: Math.ceil(id / ORDERS_PER_EVENT),
    placed_at: day(370 + (id % 30)),
  }))
  const tickets = rows(orders.length * 2, (id) => {
    const order = orders[Math.ceil(id / 2) - 1] as OrderRow
    const friend = ((order.user_id - 1 + ORGS) % USERS) + 1
    const seat = ((id - 1) % (ORDERS_PER_EVENT * 2)) + 1
    return {
      id,
      order_id: order.id,
      event_id: order.event_id,
      holder_id: id % 2 === 1 || order.id % 5 === 0 ? order.user_id : friend,
      seat: `${'ABCDE'[Math.floor((seat - 1) / 10)]}${((seat - 1) % 10) + 1}`,
      price: seat <= 10 ? '48.00' : '32.50',
    }
  })
  return { orders, tickets }
}

/** Rows with the ids 1, 2, 3... */
function rows<Row>(count: number, row: (id: number) => Row): Row[] {
  return Array.from({ length: count }, (_, i) => row(i + 1))
}

function cycle(words: readonly string[], id: number): string {
  return words[(id - 1) % words.length] as string
}

function day(days: number): Date {
  return new Date(Date.UTC(2025, 0, 1 + days, 19, 30))
}

function slugOf(title: string): string {
  return title.toLowerCase().replaceAll(' ', '-')
}
