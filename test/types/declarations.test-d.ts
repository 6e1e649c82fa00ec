import type { Kysely } from 'kysely'
import { runInLoop } from 'loadstone'
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

test('scopeBy names columns, which load gets with each key, and lookups do not take', () => {
  const Scoped = cache.model('users', { keyFields, scopeBy: { tenant: 'org_id', role: 'role' } })
  void Scoped.cache.getAsync({ id: 1 })
  // @ts-expect-error the scope says it
  void Scoped.cache.getAsync({ id: 1, org_id: 7 })
  const Name = cache.instance({
    name: 'Name',
    model: Scoped,
    keyFields: ['id'],
    async load(keys) {
      return keys.map((key) => {
        key satisfies { id: number; org_id: number | null; role: 'admin' | 'member' }
        // @ts-expect-error
        return key.email
      })
    },
  })
  void Name({ id: 1 })
  // @ts-expect-error the scope says it
  void Name({ id: 1, org_id: 7 })
  const Plain = cache.model('users', { keyFields })
  cache.queryset({
    name: 'Plain',
    model: Plain,
    keyFields: ['id'],
    async loadOne(key) {
      key satisfies { id: number }
      // @ts-expect-error it is not scoped
      return key.org_id
    },
  })
  void runInLoop(() => 1, { scopeBy: { tenant: 7, role: 'admin', region: 7n } })
  // @ts-expect-error no such column
  cache.model('users', { keyFields, scopeBy: { tenant: 'tenant_id' } })
  // @ts-expect-error dimensions have columns
  cache.model('users', { keyFields, scopeBy: ['org_id'] })
  // @ts-expect-error what is not known must not be left out by mistake
  void runInLoop(() => 1, { scopeBy: { tenant: undefined } })
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
