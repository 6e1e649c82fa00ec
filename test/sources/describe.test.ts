import { createModelCache, ModelError, SourceError } from 'loadstone'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { defineModel, type ModelMeta } from '../../src/models/model.ts'
import type { Database } from '../../src/sources/database.ts'
import { KyselySource } from '../../src/sources/kysely.ts'
import { openPostgres, type SourceDatabase } from './databases.ts'

describe('what a source says of a table', () => {
  let database: SourceDatabase

  beforeAll(async () => {
    database = await openPostgres()
    await database.run(`
      create extension citext;
      create type colour as enum ('red', 'blue');
      create domain email as citext check (value like '%@%');
      create schema shop;
      create table shop.things (
        id int8 generated always as identity primary key, code char(5) not null, price numeric(10, 2), name varchar(20),
        email email, colour colour, flags bit(3), tags text[], made date, sold timestamp)`)
  })
  afterAll(() => database.close())

  const describeTable = (table: string, meta: ModelMeta = { keyFields: [['id']] }) =>
    new KyselySource(database.kysely().db as Database).describe(defineModel(table, meta))

  test('its schema, its columns in order, and their base types', async () => {
    const { schema, name, columns } = await describeTable('shop.things')
    expect([schema, name]).toEqual(['shop', 'things'])
    expect(columns.map((column) => [column.field, column.type, column.sqlType, column.nullable])).toEqual([
      ['id', 'int8', 'bigint', false],
      // Not `character`, which would mean one character, and cut every lookup down to it.
      ['code', 'bpchar', 'bpchar', false],
      ['price', 'numeric', 'numeric', true],
      ['name', 'varchar', 'character varying', true],
      ['email', 'citext', 'citext', true],
      ['colour', 'colour', 'colour', true],
      ['flags', 'bit', '"bit"', true],
      ['tags', '_text', 'text[]', true],
      ['made', 'date', 'date', true],
      ['sold', 'timestamp', 'timestamp without time zone', true],
    ])
    expect(columns.find(({ field }) => field === 'colour')?.labels).toEqual(['red', 'blue'])
    expect(columns.every(({ deterministic }) => deterministic)).toBe(true)
  })

  test('the columns of results are those that are declared; those of lookups and order are known besides', async () => {
    const { columns, byField } = await describeTable('shop.things', {
      keyFields: [['id']],
      filterFields: [['colour']],
      orderBy: ['price'],
      columns: ['name', 'code'],
    })
    expect(columns.map(({ field }) => field)).toEqual(['name', 'code'])
    expect([...byField.keys()]).toEqual(['id', 'colour', 'price'])
  })

  test('a type that is not on the search path is told with its schema', async () => {
    await database.run(`
      create schema "Odd"; create type "Odd"."Size" as enum ('S'); create table sizes (id int, size "Odd"."Size")`)
    const { columns } = await describeTable('sizes')
    expect(columns[1]).toMatchObject({ type: 'Size', sqlType: '"Odd"."Size"', labels: ['S'] })
  })

  describe('is an error of the model', () => {
    test.each<[what: string, table: string, meta: ModelMeta, message: string]>([
      [
        'without the table',
        'shop.nothing',
        { keyFields: [['id']] },
        'the database has no table "shop"."nothing"',
      ],
      [
        'without the schema',
        'nowhere.things',
        { keyFields: [['id']] },
        'the database has no table "nowhere"."things"',
      ],
      [
        'without a key field',
        'shop.things',
        { keyFields: [['uuid']] },
        'table "shop"."things" has no column \'uuid\'; it has id, code',
      ],
      [
        'without a filter field',
        'shop.things',
        { keyFields: [['id']], filterFields: [['org']] },
        "has no column 'org'",
      ],
      [
        'without a column of the order',
        'shop.things',
        { keyFields: [['id']], orderBy: ['at'] },
        "has no column 'at'",
      ],
      [
        'without a declared column',
        'shop.things',
        { keyFields: [['id']], columns: ['id', 'x'] },
        "has no column 'x'",
      ],
      [
        'with names that Kysely reads as an alias',
        'shop.things',
        { keyFields: [['id as x']] },
        "'id as x' cannot be the name of a column in Kysely",
      ],
      [
        'with names that Kysely reads as those of a table',
        'shop.things',
        { keyFields: [['a.id']] },
        "'a.id' cannot be the name of a column in Kysely",
      ],
      [
        'with a table that Kysely reads as an alias',
        'shop.things as x',
        { keyFields: [['id']] },
        'is no table of this Kysely instance',
      ],
    ])('%s', async (_what, table, meta, message) => {
      const described = describeTable(table, meta)
      await expect(described).rejects.toThrow(ModelError)
      await expect(described).rejects.toThrow(`model '${table}': `)
      await expect(described).rejects.toThrow(message)
    })

    test('without any column', async () => {
      await database.run('create table void ()')
      await expect(describeTable('void')).rejects.toThrow(`table "void" has no column 'id'; it has none`)
    })
  })

  test('a model that does not fit its table fails alone, at its first lookup', async () => {
    await database.run('create table good (id int primary key); insert into good values (1)')
    const cache = createModelCache({ db: database.kysely().db, namespace: 'test', relay: false })
    const good = cache.model('good', { keyFields: [['id']] }).cache
    const gone = cache.model('gone', { keyFields: [['id']] }).cache
    const bad = cache.model('shop.things', { keyFields: [['uuid']] }).cache
    const [found, ...failed] = await Promise.allSettled([
      good.getAsync({ id: 1 }),
      gone.getAsync({ id: 1 }),
      bad.getAsync({ uuid: 1 }),
    ])
    expect(found).toEqual({ status: 'fulfilled', value: { id: 1 } })
    expect(failed.map((each) => (each as PromiseRejectedResult).reason)).toEqual([
      new ModelError('gone', 'the database has no table "gone"'),
      expect.objectContaining({ code: 'ERR_MODEL', model: 'shop.things' }),
    ])
    await expect(cache.ready()).rejects.toThrow(ModelError)
    expect(await good.getAsync({ id: 1 })).toEqual({ id: 1 })

    // It is asked about again at the next lookup: a migration may have been late.
    await database.run('create table gone (id int primary key)')
    expect(await gone.getAsyncOrNone({ id: 1 })).toBeNull()
    await cache.close()
  })
})

describe('what stands in the way of the database', () => {
  let database: SourceDatabase

  beforeAll(async () => {
    database = await openPostgres()
  })
  afterAll(() => database.close())

  test('is a SourceError: it may be gone at the next try', async () => {
    const { db } = database.kysely({ pool: { port: 1, host: '127.0.0.1', connectionString: undefined } })
    const source = new KyselySource(db as Database)
    const described = source.describe(defineModel('users', { keyFields: [['id']] }))
    await expect(described).rejects.toThrow(SourceError)
    await expect(described).rejects.toMatchObject({ transient: true, model: 'users' })
  })

  test('citext whose operators are not on the search path compares as text does, and so do lookups', async () => {
    await database.run(`
      create schema extensions; create extension citext schema extensions;
      create table people (email extensions.citext primary key); insert into people values ('Zoe')`)
    const { db } = database.kysely()
    const cache = createModelCache({ db, namespace: 'test', relay: false })
    const people = cache.model('people', { keyFields: [['email']] }).cache
    for (const email of ['Zoe', 'zoe']) {
      const plain = await db.selectFrom('people').selectAll().where('email', '=', email).executeTakeFirst()
      expect(await people.getAsyncOrNone({ email })).toEqual(plain ?? null)
    }
    expect(await people.getAsyncOrNone({ email: 'Zoe' })).toEqual({ email: 'Zoe' })
    await cache.close()
  })
})
