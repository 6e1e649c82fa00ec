import { type ColumnType, type Kysely, type Selectable, sql } from 'kysely'

/** The tables all examples work on: organisers hold events, people order tickets for them. */
export interface Database {
  orgs: OrgsTable
  users: UsersTable
  events: EventsTable
  orders: OrdersTable
  tickets: TicketsTable
}

interface OrgsTable {
  id: number
  name: string
  slug: string
  plan: string
}

interface UsersTable {
  id: number
  email: string
  first_name: string
  last_name: string
  org_id: number
  /** Null: has been invited, and waits for a role. */
  role: string | null
  created_at: Timestamp
}

interface EventsTable {
  id: number
  slug: string
  title: string
  org_id: number
  starts_at: Timestamp
}

interface OrdersTable {
  id: number
  user_id: number
  event_id: number
  placed_at: Timestamp
}

interface TicketsTable {
  id: number
  order_id: number
  event_id: number
  /** Who will come, which need not be who ordered. */
  holder_id: number
  seat: string
  /** `numeric`, so the driver reads it as a string: no cent is lost. */
  price: string
}

type Timestamp = ColumnType<Date, Date | string>

export type EventRow = Selectable<EventsTable>
export type OrderRow = Selectable<OrdersTable>
export type OrgRow = Selectable<OrgsTable>
export type TicketRow = Selectable<TicketsTable>
export type UserRow = Selectable<UsersTable>

export async function createTables(db: Kysely<Database>): Promise<void> {
  await db.schema
    .createTable('orgs')
    .addColumn('id', 'integer', (column) => column.primaryKey())
    .addColumn('name', 'text', (column) => column.notNull())
    .addColumn('slug', 'text', (column) => column.notNull().unique())
    .addColumn('plan', 'text', (column) => column.notNull())
    .execute()
  await db.schema
    .createTable('users')
    .addColumn('id', 'integer', (column) => column.primaryKey())
    .addColumn('email', 'text', (column) => column.notNull().unique())
    .addColumn('first_name', 'text', (column) => column.notNull())
    .addColumn('last_name', 'text', (column) => column.notNull())
    .addColumn('org_id', 'integer', (column) => column.notNull().references('orgs.id'))
    .addColumn('role', 'text')
    .addColumn('created_at', 'timestamptz', (column) => column.notNull().defaultTo(sql`now()`))
    .execute()
  await db.schema
    .createTable('events')
    .addColumn('id', 'integer', (column) => column.primaryKey())
    .addColumn('slug', 'text', (column) => column.notNull().unique())
    .addColumn('title', 'text', (column) => column.notNull())
    .addColumn('org_id', 'integer', (column) => column.notNull().references('orgs.id'))
    .addColumn('starts_at', 'timestamptz', (column) => column.notNull())
    .execute()
  await db.schema
    .createTable('orders')
    .addColumn('id', 'integer', (column) => column.primaryKey())
    .addColumn('user_id', 'integer', (column) => column.notNull().references('users.id'))
    .addColumn('event_id', 'integer', (column) => column.notNull().references('events.id'))
    .addColumn('placed_at', 'timestamptz', (column) => column.notNull())
    .execute()
  await db.schema
    .createTable('tickets')
    .addColumn('id', 'integer', (column) => column.primaryKey())
    .addColumn('order_id', 'integer', (column) => column.notNull().references('orders.id'))
    .addColumn('event_id', 'integer', (column) => column.notNull().references('events.id'))
    .addColumn('holder_id', 'integer', (column) => column.notNull().references('users.id'))
    .addColumn('seat', 'text', (column) => column.notNull())
    .addColumn('price', 'numeric(10, 2)', (column) => column.notNull())
    .execute()
  // Lists are looked up by these: a cache makes slow queries rare, an index makes them fast.
  await db.schema.createIndex('users_org_role').on('users').columns(['org_id', 'role']).execute()
  await db.schema.createIndex('tickets_event').on('tickets').column('event_id').execute()
  await db.schema.createIndex('tickets_order').on('tickets').column('order_id').execute()
}
