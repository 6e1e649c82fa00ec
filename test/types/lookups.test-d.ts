import type { Kysely, Selectable } from 'kysely'
import { createModelCache, type Model } from 'loadstone'
import { expectTypeOf, test } from 'vitest'
import { cache, type InvoicesTable, Invoice, Short, User, type UsersTable } from './fixture.ts'

/* Checked by `npm run typecheck`, never run. */

test('a lookup takes exactly one of the declared field lists', () => {
  void User.cache.getAsync({ id: 42 })
  void User.cache.getAsync({ email: 'a@example.org' })
  void User.cache.getAsync({ org_id: 7, first_name: 'Zoë' })
  void User.cache.getAsync({ first_name: 'Zoë', org_id: 7 })
  void User.cache.filterAsync({ first_name: 'Zoë' })
  void User.cache.filterAsync({ org_id: 7, role: 'admin' })

  // @ts-expect-error no field list has it
  void User.cache.getAsync({ role: 'admin' })
  // @ts-expect-error no column is called so
  void User.cache.getAsync({ age: 3 })
  // @ts-expect-error half of a composite
  void User.cache.getAsync({ org_id: 7 })
  // @ts-expect-error a field too many
  void User.cache.getAsync({ id: 42, age: 3 })
  // @ts-expect-error the fields of two lists at once
  void User.cache.getAsync({ id: 42, email: 'a@example.org' })
  // @ts-expect-error one list, and half of another
  void User.cache.getAsync({ id: 42, org_id: 7 })
  // @ts-expect-error no field at all
  void User.cache.getAsync({})
  // @ts-expect-error no object
  void User.cache.getAsync(42)
  // @ts-expect-error a filter is no key
  void User.cache.getAsync({ org_id: 7, role: 'admin' })
  // @ts-expect-error a key is no filter
  void User.cache.filterAsync({ id: 42 })
  // @ts-expect-error half of a composite
  void User.cache.filterAsync({ role: 'admin' })
})

test('each field takes what its column is read as', () => {
  // @ts-expect-error a text for a number
  void User.cache.getAsync({ id: '42' })
  // @ts-expect-error a label that the column does not have
  void User.cache.filterAsync({ org_id: 7, role: 'owner' })
  // @ts-expect-error undefined is no value
  void User.cache.getAsync({ id: undefined })
  // @ts-expect-error a bigint for a number
  void Invoice.cache.getAsync({ org_id: 7n, number: 'A-1' })

  const times = cache.model('users', { keyFields: [['id']], filterFields: [['created_at'], ['balance']] })
  void times.cache.filterAsync({ created_at: new Date() })
  // @ts-expect-error it is written as a text, but read as a Date
  void times.cache.filterAsync({ created_at: '2024-01-01' })
  // @ts-expect-error it is written as a number, but read as a text
  void times.cache.filterAsync({ balance: 10 })
})

test('NULL is for columns that can be NULL', () => {
  void User.cache.filterAsync({ first_name: null })
  void User.cache.filterAsync({ org_id: null, role: 'admin' })
  // @ts-expect-error id is never NULL
  void User.cache.getAsync({ id: null })
  // @ts-expect-error role is never NULL
  void User.cache.filterAsync({ org_id: 7, role: null })
})

test('without filterFields there is nothing to filter by', () => {
  // @ts-expect-error none is declared
  void Short.cache.filterAsync({ id: 42 })
  // @ts-expect-error none is declared
  void Short.cache.filterAsync({})
})

test('a lookup resolves to the row as Kysely selects it, read-only', () => {
  type UserRow = Readonly<Selectable<UsersTable>>
  expectTypeOf(User.cache.getAsync({ id: 42 })).toEqualTypeOf<Promise<UserRow>>()
  expectTypeOf(User.cache.getAsyncOr404({ id: 42 })).toEqualTypeOf<Promise<UserRow>>()
  expectTypeOf(User.cache.getAsyncOrNone({ id: 42 })).toEqualTypeOf<Promise<UserRow | null>>()
  expectTypeOf(User.cache.filterAsync({ first_name: null })).toEqualTypeOf<Promise<readonly UserRow[]>>()
  expectTypeOf(User.cache.peek({ id: 42 })).toEqualTypeOf<UserRow | null | undefined>()
  expectTypeOf(User.cache.getQuery({ id: 42 }).resolveAsync()).toEqualTypeOf<Promise<UserRow>>()
  expectTypeOf(Invoice.cache.getAsync({ org_id: 7, number: 'A-1' })).toEqualTypeOf<
    Promise<Readonly<Selectable<InvoicesTable>>>
  >()
  expectTypeOf<UserRow['id']>().toEqualTypeOf<number>()
})

test('rows and lists cannot be assigned to', async () => {
  const user = await User.cache.getAsync({ id: 42 })
  // @ts-expect-error the row is shared by the scope
  user.email = 'b@example.org'
  const users = await User.cache.filterAsync({ first_name: null })
  // @ts-expect-error and so is the list
  users.push(user)
  // @ts-expect-error
  users[0] = user
  const none = await User.cache.getAsyncOrNone({ id: 42 })
  // @ts-expect-error there may be none
  void none.email
})

test('columns narrow the result, and not the lookup', async () => {
  expectTypeOf(await Short.cache.getAsync({ id: 42 })).toEqualTypeOf<{
    readonly id: number
    readonly email: string
  }>()
  const Names = cache.model('users', {
    keyFields: [['id']],
    filterFields: [['org_id']],
    columns: ['first_name'],
  })
  expectTypeOf(await Names.cache.filterAsync({ org_id: null })).toEqualTypeOf<
    readonly { readonly first_name: string | null }[]
  >()
})

test('a column that is written but never read is in no row and in no lookup', async () => {
  const Audit = cache.model('audit', { keyFields: [['id']] })
  expectTypeOf(await Audit.cache.getAsync({ id: '1' })).toEqualTypeOf<{
    readonly id: string
    readonly at: Date
  }>()
  // @ts-expect-error it cannot be selected
  cache.model('audit', { keyFields: [['secret']] })
})

test('invalidate takes keys, filters and rows, one or many', async () => {
  const user = await User.cache.getAsync({ id: 42 })
  void User.cache.invalidate({ id: 42 })
  void User.cache.invalidate({ org_id: 7, role: 'admin' })
  void User.cache.invalidate(user)
  void User.cache.invalidate([user, { id: 43 }])
  // @ts-expect-error no field list has it
  void User.cache.invalidate({ age: 3 })
})

test('what is done by hand takes keys and filters as lookups do, and conditions on the table', async () => {
  const user = await User.cache.getAsync({ id: 42 })
  expectTypeOf(await User.cache.refresh({ id: 42 })).toEqualTypeOf<typeof user | null>()
  expectTypeOf(await User.cache.refresh({ org_id: 7, role: 'admin' })).toEqualTypeOf<
    readonly (typeof user)[]
  >()
  expectTypeOf(await User.cache.keyOf({ first_name: 'Zoë' })).toEqualTypeOf<string>()
  expectTypeOf(User.cache.prime({ id: 42 }, user)).toEqualTypeOf<boolean>()
  User.cache.prime({ id: 42 }, null)
  User.cache.prime({ first_name: 'Zoë' }, [user])
  expectTypeOf(
    await User.cache.invalidateWhere((users) =>
      users
        .where('org_id', '=', 7)
        .where(({ exists, selectFrom }) => exists(selectFrom('audit').select('at'))),
    ),
  ).toEqualTypeOf<number>()

  // @ts-expect-error no field list has it
  void User.cache.refresh({ age: 3 })
  // @ts-expect-error no field list has it
  void User.cache.keyOf({ role: 'admin' })
  // @ts-expect-error a list is no row
  User.cache.prime({ id: 42 }, [user])
  // @ts-expect-error half a row
  User.cache.prime({ id: 42 }, { id: 42 })
  // @ts-expect-error no column is called so
  void User.cache.invalidateWhere((users) => users.where('age', '=', 3))
  // @ts-expect-error of another table
  void User.cache.invalidateWhere((users) => users.where('amount', '=', 3n))
  // @ts-expect-error not the query
  void User.cache.invalidateWhere(() => true)
})

test('code may be written for any model', async () => {
  async function all<Key extends object, Filter extends object, Result>(
    model: Model<Key, Filter, Result>,
    keys: Key[],
  ) {
    return Promise.all(keys.map((key) => model.cache.getAsync(key)))
  }
  expectTypeOf(await all(Short, [{ id: 1 }])).toEqualTypeOf<
    { readonly id: number; readonly email: string }[]
  >()
  // @ts-expect-error no key of this model
  void all(Short, [{ email: 'a@example.org' }])
})

test('a database without types still has lookups', async () => {
  const untyped = createModelCache({
    db: {} as Kysely<Record<string, Record<string, unknown>>>,
    namespace: 'shop',
  })
  const Things = untyped.model('things', {
    keyFields: [['id']],
    filterFields: [['org_id']],
    columns: ['id', 'name'],
  })
  expectTypeOf(await Things.cache.getAsync({ id: 1 })).toEqualTypeOf<{
    readonly id: unknown
    readonly name: unknown
  }>()
  // @ts-expect-error even then, only declared fields
  void Things.cache.getAsync({ org_id: 1 })
})
