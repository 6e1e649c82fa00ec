import type { ColumnType, Generated, JSONColumnType, Kysely } from 'kysely'
import { createModelCache } from 'loadstone'

export interface Database {
  users: UsersTable
  'billing.invoices': InvoicesTable
  audit: AuditTable
}

export interface UsersTable {
  id: Generated<number>
  email: string
  first_name: string | null
  org_id: number | null
  role: 'admin' | 'member'
  /** Read as a Date, written as a Date or text, never changed. */
  created_at: ColumnType<Date, Date | string | undefined, never>
  settings: JSONColumnType<{ theme: 'dark' | 'light'; tags: string[] }>
  balance: ColumnType<string, string | number>
}

export interface InvoicesTable {
  org_id: number
  number: string
  amount: bigint
  paid: boolean
}

/** Written, never read. */
export interface AuditTable {
  id: Generated<string>
  secret: ColumnType<never, string, string>
  at: Date
}

declare const db: Kysely<Database>

export const cache = createModelCache({ db, namespace: 'shop' })

export const User = cache.model('users', {
  keyFields: [['id'], ['email'], ['org_id', 'first_name']],
  filterFields: [['first_name'], ['org_id', 'role']],
})
export const Short = cache.model('users', { keyFields: [['id']], columns: ['id', 'email'] })
export const Invoice = cache.model('billing.invoices', {
  keyFields: [['org_id', 'number']],
  filterFields: [['paid']],
  orderBy: [['amount', 'desc'], 'number'],
})
