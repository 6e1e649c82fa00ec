import { PGlite } from '@electric-sql/pglite'
import { type Dialect, Kysely, PGliteDialect, PostgresDialect, sql } from 'kysely'
import { createModelCache, InvalidKeyError, ModelError, runInLoop, withInvalidation } from 'loadstone'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createTestDatabase } from '../support/database.ts'
import { closeRedis, testRedis } from '../support/redis.ts'

type Tables = Record<string, Record<string, unknown>>

const HOSTILE = [
  "it's",
  '"quoted"',
  "'; drop table bystanders; --",
  '"; drop table bystanders; --',
  '`backticks`',
  '$' + '{process}',
  '"]: (() => { globalThis["hacked"] = 1 })(), ["b',
  '\\',
  "\\'; drop table bystanders; --",
  'constructor',
  'prototype',
  'toString',
  'hasOwnProperty',
  'line\nbreak',
  'carriage\rreturn',
  'tab\tand blank',
  'line\u2028separators\u2029 too',
  'ünï 😀 名前',
  '$1',
  '%I %s %%',
  '$loadstone$ $loadstone1$',
  '/* comment',
  'comment */',
  '-- comment',
  '~,:#[]*?',
  '{"json": [1]}',
  'x'.repeat(63),
]

/** As good as any for a table, but Postgres gives a row type of that name to every table, and has some already. */
const TABLE = `${HOSTILE[2]?.slice(0, 20)}"${HOSTILE[5]}\n😀\``

const STACKS = [
  [
    'Redis and Postgres',
    async () => {
      const { pool, drop } = await createTestDatabase()
      return { dialect: new PostgresDialect({ pool }) as Dialect, redis: testRedis().redis, end: drop }
    },
  ],
  [
    'the store inside the process and PGlite',
    async () => {
      const pglite = await PGlite.create()
      return {
        dialect: new PGliteDialect({ pglite }) as Dialect,
        redis: undefined,
        end: () => pglite.close(),
      }
    },
  ],
] as const

afterAll(closeRedis)

describe.each(STACKS)('hostile names and values on %s', (_, open) => {
  let stack: Awaited<ReturnType<typeof open>>
  let db: Kysely<Tables>
  beforeAll(async () => {
    stack = await open()
    db = new Kysely<Tables>({ dialect: withInvalidation(stack.dialect) })
    const columns = HOSTILE.map((name) => sql`${sql.id(name)} text`)
    await sql`create table ${sql.id(TABLE)} (id int primary key, ${sql.join(columns)})`.execute(db)
    await sql`create table bystanders (id int primary key)`.execute(db)
    await sql`insert into bystanders values (1)`.execute(db)
  })
  afterAll(() => stack.end())

  const openCache = (namespace: string) =>
    createModelCache<Tables>({
      db,
      namespace,
      storeTimeout: '5s',
      relay: false,
      ...(stack.redis && { redis: stack.redis }),
    })

  /** A row of which every value is a hostile text too, each column another one. */
  const rowOf = (id: number) => ({
    id,
    ...Object.fromEntries(HOSTILE.map((name, i) => [name, HOSTILE[(i + id) % HOSTILE.length]])),
  })
  const insert = (id: number) => {
    const row: Record<string, unknown> = rowOf(id)
    const names = Object.keys(row)
    return sql`insert into ${sql.id(TABLE)} (${sql.join(names.map((name) => sql.id(name)))})
      values (${sql.join(names.map((name) => row[name]))})`.execute(db)
  }

  test('are nothing but names and values, all the way', async () => {
    const namespace = `${testRedis({ lazyConnect: true }).namespace} '"\\\n\`; drop table bystanders; --%s`
    const cache = openCache(namespace)
    const Thing = cache.model(TABLE, {
      keyFields: [['id'], ...HOSTILE.map((name) => [name])],
      filterFields: HOSTILE.map((name) => [name]),
      orderBy: HOSTILE.map((name) => [name, 'desc'] as const),
      normalize: { id: (id) => Number(id) },
    })
    const Count = cache.count({ name: 'toString', model: Thing, keyFields: ['constructor'] })
    // From now on, shapes are told from those that are marked stale, by their names.
    const Stale = cache.count({
      name: 'valueOf',
      model: Thing,
      keyFields: ['id'],
      invalidation: 'mark-stale',
      staleFor: '1h',
    })
    const byAll = runInLoop(async (id: number) => {
      const row: Record<string, unknown> = rowOf(id)
      return Promise.all([
        Thing.cache.getAsyncOrNone({ id }),
        ...HOSTILE.map((name) => Thing.cache.getAsyncOrNone({ [name]: row[name] })),
        ...HOSTILE.map(async (name) => (await Thing.cache.filterAsync({ [name]: row[name] }))[0] ?? null),
      ])
    })
    const everyAnswer = (answer: unknown) => Array.from({ length: 2 * HOSTILE.length + 1 }, () => answer)

    expect(await cache.install()).not.toEqual([])
    expect(await cache.install()).toEqual([])
    // Absent, known to be absent, and there from the insert on.
    expect(await byAll(1)).toEqual(everyAnswer(null))
    expect(await byAll(1)).toEqual(everyAnswer(null))
    await insert(1)
    expect(await byAll(1)).toEqual(everyAnswer(rowOf(1)))
    await cache.idle()
    const { hits } = cache.stats()
    expect(await byAll(1)).toEqual(everyAnswer(rowOf(1)))
    expect(cache.stats().hits - hits).toBe(2 * HOSTILE.length + 1)
    expect(await Count({ constructor: rowOf(1).constructor }).resolveAsync()).toBe(1)
    expect(await Stale({ id: 1 }).resolveAsync()).toBe(1)
    await expect(Count({} as never).resolveAsync()).rejects.toBeInstanceOf(InvalidKeyError)

    await sql`update ${sql.id(TABLE)} set ${sql.id('constructor')} = ${'changed'} where id = 1`.execute(db)
    expect(await Thing.cache.getAsync({ id: 1 })).toEqual({ ...rowOf(1), constructor: 'changed' })
    expect(await Thing.cache.filterAsync({ constructor: rowOf(1).constructor })).toEqual([])
    expect(await Count({ constructor: 'changed' }).resolveAsync()).toBe(1)
    expect(await Count({ constructor: rowOf(1).constructor }).resolveAsync()).toBe(0)
    await Thing.cache.invalidate({ id: 1 })
    await Thing.cache.invalidateWhere((rows) => rows.where('constructor', '=', HOSTILE[2]))

    await cache.idle()
    expect(await cache.verify({ settleMs: 0 })).toMatchObject({ stale: 0 })
    expect(
      (await cache.doctor()).filter(({ area, status }) => area === 'install' && status === 'fail'),
    ).toEqual([])
    await sql`delete from ${sql.id(TABLE)}`.execute(db)
    expect(await byAll(1)).toEqual(everyAnswer(null))
    expect(await cache.uninstall()).not.toEqual([])
    await cache.close()

    const { rows } = await sql`select id from bystanders`.execute(db)
    expect(rows).toEqual([{ id: 1 }])
    expect('hacked' in globalThis).toBe(false)
  })

  test('values of any kind select what equals them, or are refused', async () => {
    const cache = openCache(testRedis({ lazyConnect: true }).namespace)
    const Thing = cache.model(TABLE, { keyFields: [['id']], filterFields: [['constructor']] })
    await insert(2)
    const find = async (value: unknown) => Thing.cache.filterAsync({ constructor: value })
    for (const value of [
      '__proto__',
      'x'.repeat(1_000_000),
      '%',
      '_',
      '*',
      '{}',
      "' or '1'='1",
      '$1',
      '~',
      '#',
    ]) {
      expect(await find(value)).toEqual([])
    }
    for (const value of [
      undefined,
      {},
      { toString: () => "' or true" },
      ['a'],
      Symbol('s'),
      () => 'x',
      Number.NaN,
    ]) {
      await expect(find(value)).rejects.toBeInstanceOf(InvalidKeyError)
    }
    // No text of Postgres has these in it.
    for (const value of ['\0', 'a\0b']) expect(await find(value)).toEqual([])
    await expect(find('\ud800')).rejects.toBeInstanceOf(InvalidKeyError)
    for (const id of ['1 or 1=1', '2; drop table bystanders', {}, [2]]) {
      await expect(Thing.cache.getAsyncOrNone({ id })).rejects.toBeInstanceOf(InvalidKeyError)
    }
    await sql`delete from ${sql.id(TABLE)}`.execute(db)
    await cache.close()
  })

  test('a column called __proto__ is one like any other, and gives no row another prototype', async () => {
    await sql`create table odd (id int primary key, ${sql.id('__proto__')} jsonb)`.execute(db)
    await sql`insert into odd values (1, '{"polluted": 1}')`.execute(db)
    const cache = openCache(testRedis({ lazyConnect: true }).namespace)
    const Odd = cache.model('odd', { keyFields: [['id']] })
    const look = runInLoop(() => Odd.cache.getAsync({ id: 1 }))
    for (const from of ['SQL', 'the store']) {
      const row = await look()
      expect(Object.getPrototypeOf(row), from).toBe(Object.prototype)
      expect(Object.getOwnPropertyDescriptor(row, '__proto__')?.value, from).toEqual({ polluted: 1 })
      await cache.idle()
    }
    expect(cache.stats().hits).toBe(1)
    expect('polluted' in {}).toBe(false)
    await cache.close()
  })

  test('names that Kysely would take for others are refused', async () => {
    await sql`create table spaced (id int primary key, name text, ${sql.id(' name')} text)`.execute(db)
    for (const name of ['a.b', 'a as b', ' name', 'name ', '\u2028']) {
      const cache = openCache(testRedis({ lazyConnect: true }).namespace)
      const Spaced = cache.model('spaced', { keyFields: [['id']], filterFields: [[name]] })
      const Table = cache.model(name, { keyFields: [['id']] })
      await expect(Spaced.cache.getAsyncOrNone({ id: 1 }), name).rejects.toBeInstanceOf(ModelError)
      await expect(Table.cache.getAsyncOrNone({ id: 1 }), name).rejects.toBeInstanceOf(ModelError)
      await cache.close()
    }
  })
})
