import { CamelCasePlugin, type KyselyPlugin, ParseJSONResultsPlugin } from 'kysely'
import { createModelCache } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { openPostgres, type SourceDatabase } from './databases.ts'
import { lookups } from './lookups.ts'

/*
 * Whatever tables and columns are called, and whatever Kysely's plugins make of that: a lookup finds what a plain
 * select of the same Kysely finds, and its rows look the same.
 */
describe('names', () => {
  let database: SourceDatabase

  beforeAll(async () => {
    database = await openPostgres()
  })
  afterAll(() => database.close())

  describe('schemas', () => {
    beforeAll(() =>
      database.run(`
        create schema billing;
        create table billing.invoices (id int primary key, org_id int);
        create table public.invoices (id int primary key, title text, org_id int);
        insert into billing.invoices values (1, 7), (2, null);
        insert into public.invoices values (1, 'not this one', 8)`),
    )

    test('may stand in the name of the table', async () => {
      const { db } = database.kysely()
      const invoices = await lookups(db, 'billing.invoices', {
        keyFields: [['id']],
        filterFields: [['org_id']],
      })
      expect(await invoices.get({ id: 1 })).toEqual([[{ id: 1, org_id: 7 }]])
      expect(await invoices.filter({ org_id: null }, { org_id: 7 })).toEqual([
        [{ id: 2, org_id: null }],
        [{ id: 1, org_id: 7 }],
      ])
    })

    test('may come from withSchema', async () => {
      const { db } = database.kysely()
      const invoices = await lookups(db.withSchema('billing'), 'invoices', {
        keyFields: [['id']],
        filterFields: [['org_id']],
      })
      expect(await invoices.get({ id: 1 })).toEqual([[{ id: 1, org_id: 7 }]])
      expect(await invoices.filter({ org_id: null }, { org_id: 7 })).toEqual([
        [{ id: 2, org_id: null }],
        [{ id: 1, org_id: 7 }],
      ])
    })

    test('or from the search path', async () => {
      const { db } = database.kysely()
      const invoices = await lookups(db, 'invoices', { keyFields: [['id']], columns: ['title'] })
      expect(await invoices.get({ id: 1 })).toEqual([[{ title: 'not this one' }]])
    })
  })

  describe('the CamelCasePlugin', () => {
    beforeAll(() =>
      database.run(`
        create table team_members (
          member_id int primary key, first_name text, _private text, trailing_ text, two__parts text, address_1 text,
          "lowerCamel" text, x_y_z text);
        insert into team_members values (1, 'Zoë', 'p', 't', 'two', 'a1', 'lc', 'xyz'), (2, null, 'p2', null, null, null, null, null)`),
    )

    // Kysely's own names for these columns, some of them surprising: none that a rule of ours would have guessed.
    const PLUGINS: readonly (readonly [string, KyselyPlugin, string])[] = [
      [
        'as it is',
        new CamelCasePlugin(),
        'memberId, firstName, _Private, trailing, twoParts, address1, lowerCamel, xYZ',
      ],
      [
        'with underscores before digits',
        new CamelCasePlugin({ underscoreBeforeDigits: true }),
        'memberId, firstName, _Private, trailing, twoParts, address1, lowerCamel, xYZ',
      ],
      [
        'with underscores between upper case letters',
        new CamelCasePlugin({ underscoreBetweenUppercaseLetters: true }),
        'memberId, firstName, _Private, trailing, twoParts, address1, lowerCamel, xYZ',
      ],
    ]

    test.each(PLUGINS)('%s', async (_how, plugin, names) => {
      const { db } = database.kysely({ plugins: [plugin] })
      const members = await lookups(db, 'teamMembers', {
        keyFields: [['memberId']],
        filterFields: [['firstName'], ['_private'], ['trailing_', 'firstName']],
        orderBy: [['firstName', 'desc']],
      })
      const [first, second] = await db.selectFrom('teamMembers').selectAll().orderBy('memberId').execute()
      expect(Object.keys(first as object).join(', ')).toBe(names)
      expect(await members.get({ memberId: 1 }, { memberId: 2 })).toEqual([[first], [second]])
      expect(await members.filter({ firstName: null }, { firstName: 'Zoë' })).toEqual([[second], [first]])
      expect(await members.filter({ _private: 'p2' })).toEqual([[second]])
      expect(await members.filter({ trailing_: null, firstName: null })).toEqual([[second]])
    })

    test('with declared columns: results have the names that the plugin gives them', async () => {
      const { db } = database.kysely({ plugins: [new CamelCasePlugin()] })
      const columns = ['firstName', '_private']
      const plain = await db.selectFrom('teamMembers').select(columns).where('memberId', '=', 1).execute()
      const cache = createModelCache({ db, namespace: 'test', relay: false })
      const members = cache.model('teamMembers', { keyFields: [['memberId']], columns })
      await expectTrips(cache, { mget: 1, acquire: 1, select: 1, fill: 1 }, async () => {
        expect(await members.cache.getAsync({ memberId: 1 })).toEqual(plain[0])
      })
      await expectTrips(cache, { mget: 1 }, async () => {
        expect(await members.cache.getAsync({ memberId: 1 })).toEqual(plain[0])
      })
      await cache.close()
    })

    test('in upper case', async () => {
      await database.run(
        `create table "LOUD_TABLE" ("USER_ID" int primary key, "FULL_NAME" text); insert into "LOUD_TABLE" values (1, 'Zoë')`,
      )
      const { db } = database.kysely({ plugins: [new CamelCasePlugin({ upperCase: true })] })
      const loud = await lookups(db, 'loudTable', { keyFields: [['userId']], filterFields: [['fullName']] })
      expect(await loud.get({ userId: 1 })).toEqual([[{ userId: 1, fullName: 'Zoë' }]])
      expect(await loud.filter({ fullName: 'Zoë' }, { fullName: null })).toEqual([
        [{ userId: 1, fullName: 'Zoë' }],
        [],
      ])
    })
  })

  test('plugins that change results are asked as well', async () => {
    await database.run(
      `create table notes (id int primary key, body text); insert into notes values (1, '{"a":[1]}')`,
    )
    const { db } = database.kysely({ plugins: [new ParseJSONResultsPlugin()] })
    const notes = await lookups(db, 'notes', { keyFields: [['id']] })
    expect(await notes.get({ id: 1 })).toEqual([[{ id: 1, body: { a: [1] } }]])
  })

  test.each([
    [
      'weird "quoted" name',
      ['a b', 'q"uote', "it's", 'ünï', 'select', '$1', 'UPPER', '?', '--', 'x;y', '%s'],
    ],
    ['select', ['from', 'where', 'order']],
    ['Users', ['Id', 'id', 'ID']],
    ['loadstonerow', ['id', 'loadstonerow', 'loadstonekey']],
    ['loadstonekey', ['c0', 'c1', 'ordinality']],
    ['loadstonetable', ['unnest', 'loadstonetable']],
    ['unnest', ['text', 'int4']],
  ])('a table called %j', async (table, columns) => {
    const quote = (name: string) => `"${name.replaceAll('"', '""')}"`
    await database.run(`
      create table ${quote(table)} (${columns.map((column) => `${quote(column)} int`).join(', ')});
      insert into ${quote(table)} values (${columns.map((_, i) => i).join(', ')})`)
    const { db } = database.kysely()
    const rows = await lookups(db, table, {
      keyFields: [columns, ...columns.slice(1).map((column) => [column])],
      filterFields: columns.map((column) => [column]),
      orderBy: columns.map((column) => [column, 'desc'] as const),
    })
    const row = Object.fromEntries(columns.map((column, i) => [column, i]))
    expect(await rows.get(row)).toEqual([[row]])
    for (const [i, column] of columns.entries()) {
      expect(await rows.filter({ [column]: i }, { [column]: null })).toEqual([[row], []])
    }
  })

  test('a table whose columns have been dropped and added', async () => {
    await database.run(`
      create table changed (gone int, id int primary key, also_gone text);
      alter table changed drop column gone, drop column also_gone, add column added text default 'new';
      insert into changed values (1)`)
    const changed = await lookups(database.kysely().db, 'changed', { keyFields: [['id']] })
    expect(await changed.get({ id: 1 })).toEqual([[{ id: 1, added: 'new' }]])
  })

  describe('what is no plain table', () => {
    beforeAll(() =>
      database.run(`
        create table base (id int primary key, email text, deleted boolean not null default false);
        insert into base values (1, 'a@example.org', false), (2, 'b@example.org', true);
        create view active as select id, upper(email) as email from base where not deleted;
        create materialized view counted as select deleted, count(*) as rows from base group by deleted;
        create table parted (id int, region text, primary key (region, id)) partition by list (region);
        create table parted_eu partition of parted for values in ('eu');
        create table parted_us partition of parted for values in ('us');
        insert into parted values (1, 'eu'), (1, 'us')`),
    )

    test('a view', async () => {
      const active = await lookups(database.kysely().db, 'active', { keyFields: [['id'], ['email']] })
      expect(await active.get({ id: 1 }, { id: 2 })).toEqual([[{ id: 1, email: 'A@EXAMPLE.ORG' }], []])
      expect(await active.get({ email: 'A@EXAMPLE.ORG' })).toEqual([[{ id: 1, email: 'A@EXAMPLE.ORG' }]])
    })

    test('a materialized view', async () => {
      const counted = await lookups(database.kysely().db, 'counted', {
        keyFields: [['deleted']],
        columns: ['deleted'],
      })
      expect(await counted.get({ deleted: true })).toEqual([[{ deleted: true }]])
    })

    test('a partitioned table', async () => {
      const parted = await lookups(database.kysely().db, 'parted', {
        keyFields: [['region', 'id']],
        filterFields: [['id']],
      })
      expect(await parted.get({ region: 'us', id: 1 })).toEqual([[{ id: 1, region: 'us' }]])
      expect(await parted.filter({ id: 1 })).toEqual([
        [
          { id: 1, region: 'eu' },
          { id: 1, region: 'us' },
        ],
      ])
    })
  })
})
