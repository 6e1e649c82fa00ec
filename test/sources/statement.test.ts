import type { Kysely } from 'kysely'
import { createModelCache } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import type { ModelMeta } from '../../src/models/model.ts'
import { DATABASES, type SourceDatabase, type Statement } from './databases.ts'
import { lookups } from './lookups.ts'

const numbers = (count: number) => Array.from({ length: count }, (_, i) => i + 1)

describe.each(DATABASES)('a source on %s', (_name, open) => {
  let database: SourceDatabase
  let db: Kysely<Record<string, Record<string, unknown>>>
  let statements: Statement[]

  beforeAll(async () => {
    database = await open()
    await database.run(`
      create table users (id int primary key, email text not null unique, org_id int, role text, joined date);
      insert into users values
        (1, 'a@example.org', 1, 'admin',  '2024-03-01'),
        (2, 'b@example.org', 1, 'member', '2024-01-01'),
        (3, 'c@example.org', 1, 'member', '2024-02-01'),
        (4, 'd@example.org', 2, null,     '2024-01-01'),
        (5, 'e@example.org', null, null,  null),
        (6, 'f@example.org', null, 'member', '2024-01-01');
      create table lines (invoice text, number int, sku text, unique (invoice, number));
      insert into lines select 'i' || i, n, i || '/' || n from generate_series(1, 100) i, generate_series(1, 5) n;
      create table many (id int primary key, name text);
      insert into many select i, 'name ' || i from generate_series(1, 10000) i`)
    ;({ db, statements } = database.kysely())
  })
  afterAll(() => database.close())
  beforeEach(() => {
    statements.length = 0
  })

  describe('sends one statement for all keys of a shape', () => {
    test('with the same text however many there are: an array for each field', async () => {
      const users = await lookups(db, 'users', { keyFields: [['id'], ['email', 'org_id']] })
      statements.length = 0
      for (const count of [1, 2, 100]) await users.get(...numbers(count).map((id) => ({ id })))
      expect(statements).toHaveLength(3)
      expect(new Set(statements.map(({ sql }) => sql)).size).toBe(1)
      expect(statements.map(({ parameters }) => parameters.length)).toEqual([1, 1, 1])
      expect(statements[1]?.parameters).toEqual([['1', '2']])
      expect(statements[0]?.sql).toBe(
        'select "loadstonerow".*, loadstonekey.loadstoneord::int4 as "loadstoneord" ' +
          'from unnest($1::text[]) with ordinality as loadstonekey(c0, loadstoneord) ' +
          'inner join "users" as "loadstonerow" on "loadstonerow"."id" = loadstonekey.c0::integer',
      )

      await users.get({ email: 'a@example.org', org_id: 1 }, { org_id: 1, email: 'b@example.org' })
      expect(statements[3]?.parameters).toEqual([
        ['a@example.org', 'b@example.org'],
        ['1', '1'],
      ])
    })

    test('and with one for every set of NULL columns, so that each can use an index', async () => {
      const users = await lookups(db, 'users', { keyFields: [['id']], filterFields: [['org_id', 'role']] })
      statements.length = 0
      const some = { org_id: 1, role: 'member' }
      const noRole = { org_id: 2, role: null }
      await users.filter(some)
      await users.filter(some, noRole)
      await users.filter(noRole, some, noRole, some)
      await users.filter({ org_id: null, role: null }, noRole)
      const [without, with1, with2, with3] = statements.map(({ sql }) => sql)
      expect(with1).toBe(with2)
      expect(new Set([without, with1, with3]).size).toBe(3)
      expect(without).not.toContain('is null')
      expect(with1).toContain('"loadstonetable"."role" is null')
      expect(with1).not.toContain('"loadstonetable"."org_id" is null')
    })

    test('of 10,000 keys: no limit of parameters is met', async () => {
      const many = await lookups(db, 'many', { keyFields: [['id'], ['id', 'name']] })
      statements.length = 0
      const rows = await many.get(...numbers(10_000).map((id) => ({ id })))
      const pairs = await many.get(...numbers(10_000).map((id) => ({ id, name: `name ${id}` })))
      expect(statements).toHaveLength(2)
      expect(rows).toEqual(numbers(10_000).map((id) => [{ id, name: `name ${id}` }]))
      expect(pairs).toEqual(rows)
    })
  })

  test('10,000 lookups are one wave, in statements of 5,000 keys', async () => {
    const cache = createModelCache({ db, namespace: 'test', relay: false })
    const many = cache.model('many', { keyFields: [['id']] }).cache
    await many.getAsyncOrNone({ id: 0 })
    const look = () => Promise.all(numbers(10_000).map((id) => many.getAsync({ id })))
    const loaded = await expectTrips(cache, { mget: 10, acquire: 1, select: 2, fill: 1 }, look)
    expect(loaded).toEqual(numbers(10_000).map((id) => ({ id, name: `name ${id}` })))
    expect(await expectTrips(cache, { mget: 10 }, look)).toEqual(loaded)
    await cache.close()
  })

  describe('answers', () => {
    test('with a list for each key, in the order of the keys', async () => {
      const users = await lookups(db, 'users', { keyFields: [['id']], columns: ['email'] })
      expect(await users.get({ id: 3 }, { id: 99 }, { id: 1 })).toEqual([
        [{ email: 'c@example.org' }],
        [],
        [{ email: 'a@example.org' }],
      ])
      expect(await users.get({ id: 99 })).toEqual([[]])
    })

    test('with plain rows, as a select of the table has them', async () => {
      const users = await lookups(db, 'users', { keyFields: [['id']] })
      const [[row]] = (await users.get({ id: 1 })) as [[object]]
      const plain = await db.selectFrom('users').selectAll().where('id', '=', 1).executeTakeFirstOrThrow()
      expect(row).toEqual(plain)
      expect(Object.keys(row)).toEqual(Object.keys(plain))
      expect(Object.getPrototypeOf(row)).toBe(Object.prototype)
    })

    test('with the columns that are declared, in that order', async () => {
      const users = await lookups(db, 'users', {
        keyFields: [['id']],
        filterFields: [['role']],
        columns: ['role', 'id'],
      })
      const [[row]] = (await users.get({ id: 1 })) as [[object]]
      expect(Object.entries(row)).toEqual([
        ['role', 'admin'],
        ['id', 1],
      ])
      expect(await users.filter({ role: null })).toEqual([
        [
          { role: null, id: 4 },
          { role: null, id: 5 },
        ],
      ])
    })

    test('by every field of a composite key', async () => {
      const lines = await lookups(db, 'lines', { keyFields: [['invoice', 'number']], columns: ['sku'] })
      const keys = [
        { invoice: 'i7', number: 3 },
        { number: 2, invoice: 'i100' },
        { invoice: 'i3', number: 7 },
      ]
      expect(await lines.get(...keys)).toEqual([[{ sku: '7/3' }], [{ sku: '100/2' }], []])
    })

    test('with every row of a key that is none: to choose is not its business', async () => {
      const users = await lookups(db, 'users', { keyFields: [['org_id']], columns: ['id'] })
      expect((await users.get({ org_id: 1 }, { org_id: 2 })).map((rows) => rows.length)).toEqual([3, 1])
    })
  })

  describe('finds NULL by NULL in filters', () => {
    const filters = [
      { org_id: null, role: null },
      { org_id: 1, role: 'member' },
      { org_id: null, role: 'member' },
      { org_id: 2, role: null },
      { org_id: 1, role: null },
    ]
    const found = [[5], [2, 3], [6], [4], []]

    test('together with others, and alone', async () => {
      const users = await lookups(db, 'users', {
        keyFields: [['id']],
        filterFields: [['org_id', 'role']],
        columns: ['id'],
      })
      const ids = (lists: readonly (readonly Record<string, unknown>[])[]) =>
        lists.map((rows) => rows.map(({ id }) => id))
      expect(ids(await users.filter(...filters))).toEqual(found)
      for (const [i, filter] of filters.entries()) expect(ids(await users.filter(filter))).toEqual([found[i]])
    })
  })

  describe('keeps lists in order', () => {
    const ids = async (meta: Partial<ModelMeta>, filter: Record<string, unknown>) => {
      const users = await lookups(db, 'users', {
        keyFields: [['id']],
        filterFields: [['org_id'], ['role']],
        ...meta,
      })
      return (await users.filter(filter))[0]?.map(({ id }) => id)
    }

    test('that of the primary key, when none is declared', async () => {
      expect(await ids({}, { org_id: 1 })).toEqual([1, 2, 3])
    })

    test('that which is declared', async () => {
      expect(await ids({ orderBy: [['id', 'desc']] }, { org_id: 1 })).toEqual([3, 2, 1])
      expect(await ids({ orderBy: ['joined'] }, { org_id: 1 })).toEqual([2, 3, 1])
      expect(await ids({ orderBy: ['role', ['joined', 'desc']] }, { org_id: 1 })).toEqual([1, 3, 2])
    })

    test('and the primary key settles what it leaves open', async () => {
      expect(await ids({ orderBy: ['role'] }, { org_id: 1 })).toEqual([1, 2, 3])
      expect(await ids({ orderBy: [['role', 'desc']] }, { org_id: 1 })).toEqual([2, 3, 1])
      expect(await ids({ orderBy: ['joined'] }, { role: 'member' })).toEqual([2, 6, 3])
    })

    test('by a column that results do not carry', async () => {
      const users = await lookups(db, 'users', {
        keyFields: [['id']],
        filterFields: [['org_id']],
        columns: ['email'],
        orderBy: [['joined', 'desc']],
      })
      expect(await users.filter({ org_id: 1 }, { org_id: null })).toEqual([
        [{ email: 'a@example.org' }, { email: 'c@example.org' }, { email: 'b@example.org' }],
        [{ email: 'e@example.org' }, { email: 'f@example.org' }],
      ])
    })

    test('each list for itself, however the rows lie in the table', async () => {
      await database.run(`
        create table events (id int primary key, topic int, at int);
        insert into events select i, i % 3, (i * 7919) % 101 from generate_series(1, 300) i order by random()`)
      const events = await lookups(db, 'events', {
        keyFields: [['id']],
        filterFields: [['topic']],
        orderBy: ['at'],
      })
      const lists = await events.filter({ topic: 2 }, { topic: 0 }, { topic: 1 })
      for (const [i, topic] of [2, 0, 1].entries()) {
        const rows = await database.query('select * from events where topic = $1 order by at, id', [topic])
        expect(lists[i]).toEqual(rows)
      }
    })
  })
})
