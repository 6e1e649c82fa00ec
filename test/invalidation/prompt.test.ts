import { sql } from 'kysely'
import { runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { closeRedis } from '../support/redis.ts'
import { type Company, PLACES } from './company.ts'

afterAll(closeRedis)

describe.each(Object.entries(PLACES))('a write through withInvalidation, on %s', (_place, openCompany) => {
  let company: Company

  beforeEach(async () => {
    company = await openCompany()
    await warm()
  })
  afterEach(() => company.close())

  /** Everything the tests write is cached before. */
  async function warm() {
    await everything()
    await company.cache.idle()
  }

  const everything = runInLoop(async () => {
    const { Person } = company
    const [one, byEmail, a, b, none, newcomer] = await Promise.all([
      Person.cache.getAsyncOrNone({ id: 1 }),
      Person.cache.getAsyncOrNone({ email: 'p1@x' }),
      Person.cache.filterAsync({ team: 'a' }),
      Person.cache.filterAsync({ team: 'b' }),
      Person.cache.filterAsync({ team: null }),
      Person.cache.getAsyncOrNone({ email: 'new@x' }),
    ])
    const ids = (people: readonly { id: number }[]) => people.map(({ id }) => id)
    return { one, byEmail, a: ids(a), b: ids(b), none: ids(none), newcomer }
  })

  const BEFORE = { a: [1, 2, 3], b: [4, 5], none: [6], newcomer: null }

  test('is seen when it returns: update', async () => {
    const { db } = company
    await db.updateTable('people').set({ name: 'Ada' }).where('id', '=', 1).execute()
    const { one, byEmail } = await everything()
    expect([one?.name, byEmail?.name]).toEqual(['Ada', 'Ada'])
  })

  test('is seen when it returns: insert, which ends a known absence', async () => {
    const { db } = company
    await db.insertInto('people').values({ email: 'new@x', team: 'a', name: 'New' }).execute()
    expect(await everything()).toMatchObject({ newcomer: { name: 'New' }, a: [1, 2, 3, 100], b: [4, 5] })
  })

  test('is seen when it returns: delete', async () => {
    await company.db.deleteFrom('people').where('id', '=', 1).execute()
    expect(await everything()).toMatchObject({ one: null, byEmail: null, a: [2, 3] })
  })

  test('moves a row from list to list, NULL included', async () => {
    const { db } = company
    await db.updateTable('people').set({ team: 'b' }).where('id', '=', 1).execute()
    expect(await everything()).toMatchObject({ a: [2, 3], b: [1, 4, 5], none: [6] })
    await db.updateTable('people').set({ team: null }).where('id', '=', 1).execute()
    expect(await everything()).toMatchObject({ a: [2, 3], b: [4, 5], none: [1, 6] })
  })

  test('frees an old key and takes a new one', async () => {
    await company.db.updateTable('people').set({ email: 'new@x' }).where('id', '=', 1).execute()
    expect(await everything()).toMatchObject({ byEmail: null, newcomer: { id: 1 }, one: { email: 'new@x' } })
  })

  test.each([
    [
      'ON CONFLICT',
      `insert into people (email, name) values ('p1@x', 'Ada') on conflict (email) do update set name = 'Ada'`,
    ],
    [
      'a writable CTE',
      `with w as (update people set name = 'Ada' where id = 1 returning id) select * from w`,
    ],
    [
      'MERGE',
      `merge into people p using (values (1)) v(id) on p.id = v.id when matched then update set name = 'Ada'`,
    ],
    ['a statement behind a comment', `-- why\n /* and how */ update people set name = 'Ada' where id = 1`],
  ])('may be raw SQL: %s', async (_what, statement) => {
    await sql.raw(statement).execute(company.db)
    expect((await everything()).one?.name).toBe('Ada')
  })

  test('may be a transaction of many statements', async () => {
    await company.db.transaction().execute(async (trx) => {
      await trx.updateTable('people').set({ team: 'b' }).where('id', '=', 1).execute()
      await trx.deleteFrom('people').where('id', '=', 4).execute()
      await trx.insertInto('people').values({ email: 'new@x', team: 'a', name: 'New' }).execute()
    })
    expect(await everything()).toMatchObject({ a: [2, 3, 100], b: [1, 5], newcomer: { team: 'a' } })
  })

  test('may be a transaction written as raw BEGIN and COMMIT', async () => {
    await company.db.connection().execute(async (connection) => {
      await sql`begin`.execute(connection)
      await sql`update people set name = 'Ada' where id = 1`.execute(connection)
      await sql`commit`.execute(connection)
    })
    expect((await everything()).one?.name).toBe('Ada')
  })

  test('may be a controlled transaction, with savepoints released and rolled back', async () => {
    const trx = await company.db.startTransaction().execute()
    await trx.updateTable('people').set({ team: 'b' }).where('id', '=', 1).execute()
    const second = await trx.savepoint('second').execute()
    await second.updateTable('people').set({ team: 'b' }).where('id', '=', 2).execute()
    await second.rollbackToSavepoint('second').execute()
    const third = await trx.savepoint('third').execute()
    await third.updateTable('people').set({ team: null }).where('id', '=', 3).execute()
    await third.releaseSavepoint('third').execute()
    await trx.commit().execute()
    expect(await everything()).toMatchObject({ a: [2], b: [1, 4, 5], none: [3, 6] })
  })

  test('invalidates what it touched, and nothing else', async () => {
    const { Person, cache, db } = company
    await db.updateTable('people').set({ team: 'b' }).where('id', '=', 1).execute()
    const untouched = runInLoop(() =>
      Promise.all([
        Person.cache.filterAsync({ team: null }),
        Person.cache.getAsyncOrNone({ email: 'new@x' }),
      ]),
    )
    await expectTrips(cache, { mget: 1 }, untouched)
    const touched = runInLoop(() => Promise.all([1, 1].map((id) => Person.cache.getAsync({ id }))))
    await expectTrips(cache, { mget: 1, acquire: 1, select: 1, fill: 1 }, touched)
  })

  test('that is rolled back invalidates nothing', async () => {
    const { cache, db } = company
    const undone = db.transaction().execute(async (trx) => {
      await trx.updateTable('people').set({ name: 'Ada' }).execute()
      throw new Error('changed my mind')
    })
    await expect(undone).rejects.toThrow('changed my mind')
    await expectTrips(cache, { mget: 1 }, everything)
  })

  test('that fails tells its own error, and leaves the connection usable', async () => {
    const { cache, db } = company
    const twin = db.insertInto('people').values({ email: 'p1@x', name: 'twin' }).execute()
    await expect(twin).rejects.toThrow(/duplicate key/)
    await expectTrips(cache, { mget: 1 }, everything)
    await db.updateTable('people').set({ name: 'Ada' }).where('id', '=', 1).execute()
    expect((await everything()).one?.name).toBe('Ada')
  })

  test('returns what it would have returned', async () => {
    const { db } = company
    const updated = await db
      .updateTable('people')
      .set({ name: 'x' })
      .where('team', '=', 'a')
      .executeTakeFirst()
    expect(updated.numUpdatedRows).toBe(3n)
    const inserted = await db
      .insertInto('people')
      .values({ email: 'new@x', name: 'New' })
      .returning(['id', 'team'])
      .executeTakeFirst()
    expect(inserted).toEqual({ id: 100, team: null })
  })

  test('clears the memo of its own scope, before and after', async () => {
    const { Person, db } = company
    await runInLoop(async () => {
      expect(await everythingInScope()).toEqual(['person 1', 3])
      await db.updateTable('people').set({ name: 'Ada', team: 'b' }).where('id', '=', 1).execute()
      expect(await everythingInScope()).toEqual(['Ada', 2])
      expect(Person.cache.peek({ id: 1 })?.name).toBe('Ada')
    })()
    async function everythingInScope() {
      const [one, a] = await Promise.all([
        Person.cache.getAsync({ id: 1 }),
        Person.cache.filterAsync({ team: 'a' }),
      ])
      return [one.name, a.length]
    }
  })

  test('of more rows than are recorded one by one clears the whole model', async () => {
    const { cache } = company
    const small = company.another({ maxTouchedRows: 2 })
    await small.cache.install()
    await company.db.updateTable('people').set({ name: 'Ada' }).execute()
    expect((await everything()).one?.name).toBe('Ada')
    await cache.idle()
    await sql`truncate people`.execute(company.db)
    expect(await everything()).toEqual({ ...BEFORE, a: [], b: [], none: [], one: null, byEmail: null })
  })

  test('leaves an empty outbox behind', async () => {
    const { cache, db } = company
    await db.updateTable('people').set({ name: 'Ada' }).execute()
    await cache.idle()
    const { rows } = await sql<{ n: string }>`select count(*)::text as n from loadstone.outbox`.execute(db)
    expect(rows[0]?.n).toBe('0')
  })

  test('lone writes on one connection do not get in each other’s way', async () => {
    await company.db
      .connection()
      .execute((connection) =>
        Promise.all(
          [1, 2, 3].map((id) =>
            connection.updateTable('people').set({ team: 'b' }).where('id', '=', id).execute(),
          ),
        ),
      )
    expect(await everything()).toMatchObject({ a: [], b: [1, 2, 3, 4, 5] })
  })
})
