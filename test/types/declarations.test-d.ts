import type { Kysely } from 'kysely'
import { expectTypeOf, test } from 'vitest'
import { cache, User } from './fixture.ts'

/* Checked by `npm run typecheck`, never run. */

const keyFields = [['id']] as const

test('a model is of a table, and its field lists are of columns', () => {
  cache.model('users', { keyFields: [['id'], ['org_id', 'first_name']] })
  cache.model('billing.invoices', { keyFields: [['org_id', 'number']] })

  // @ts-expect-error no such table
  cache.model('people', { keyFields: [['id']] })
  // @ts-expect-error without a key there is no model
  cache.model('users', {})
  // @ts-expect-error a key is a list of fields
  cache.model('users', { keyFields: ['id'] })
  // @ts-expect-error no such column
  cache.model('users', { keyFields: [['id'], ['mail']] })
  // @ts-expect-error a column of another table
  cache.model('users', { keyFields: [['number']] })
  // @ts-expect-error no such column
  cache.model('users', { keyFields, filterFields: [['org_id', 'roles']] })
  // @ts-expect-error no such column
  cache.model('users', { keyFields, columns: ['id', 'mail'] })
  // @ts-expect-error no such option
  cache.model('users', { keyFields, filterfields: [['role']] })
})

test('lists have an order', () => {
  cache.model('users', { keyFields, orderBy: ['email', ['created_at', 'desc'], ['id', 'asc']] })
  // @ts-expect-error no such column
  cache.model('users', { keyFields, orderBy: ['mail'] })
  // @ts-expect-error no such column
  cache.model('users', { keyFields, orderBy: [['mail', 'desc']] })
  // @ts-expect-error no such direction
  cache.model('users', { keyFields, orderBy: [['email', 'down']] })
})

test('normalize gets the values of its field', () => {
  cache.model('users', {
    keyFields: [['email'], ['org_id', 'first_name']],
    normalize: {
      email: (email) => email.trim().toLowerCase(),
      org_id: (id) => id + 1, // NULL never comes here
    },
  })
  // @ts-expect-error no such column
  cache.model('users', { keyFields, normalize: { mail: (mail: string) => mail } })
  // @ts-expect-error the values are numbers
  cache.model('users', { keyFields, normalize: { id: (id: string) => id } })
  // @ts-expect-error no function
  cache.model('users', { keyFields, normalize: { id: 'trim' } })
})

test('the other options have their values', () => {
  cache.model('users', { keyFields, ttl: '7d', negativeTtl: 5_000, version: 3, maxListRows: 50 })
  cache.model('users', { keyFields, ttl: undefined, columns: undefined, filterFields: undefined })
  cache.model('users', { keyFields, consistency: 'strict', onRedisDown: 'proceed' })
  // @ts-expect-error no such unit
  cache.model('users', { keyFields, ttl: '7 days' })
  // @ts-expect-error a number
  cache.model('users', { keyFields, version: '3' })
  // @ts-expect-error no such consistency
  cache.model('users', { keyFields, consistency: 'eventual' })
})

test('field lists may be constants', () => {
  const lists = { keyFields: [['id'], ['email']], filterFields: [['role']] } as const
  const User = cache.model('users', lists)
  void User.cache.getAsync({ email: 'a@example.org' })
  void User.cache.filterAsync({ role: 'admin' })
  // @ts-expect-error
  void User.cache.getAsync({ role: 'admin' })
})

test('another database has its own tables', () => {
  interface Archive {
    users: { id: number; year: number }
  }
  const archive = cache.using('archive', {} as Kysely<Archive>)
  const OldUser = archive.model('users', { keyFields: [['id']] })
  expectTypeOf<Awaited<ReturnType<typeof OldUser.cache.getAsync>>>().toEqualTypeOf<{
    readonly id: number
    readonly year: number
  }>()
  void archive.transaction((trx) => trx.selectFrom('users').select('year').execute())

  // @ts-expect-error a table of the first database
  archive.model('audit', { keyFields: [['id']] })
  // @ts-expect-error a column of the first database's table
  archive.model('users', { keyFields: [['email']] })
  // @ts-expect-error a model of the first database
  archive.count({ name: 'Count', model: User, keyFields: ['org_id'] })
  // @ts-expect-error no table of this database
  void archive.clear(['audit'])
  // @ts-expect-error a further database has none
  archive.using('more', {} as Kysely<Archive>)
})
