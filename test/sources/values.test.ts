import type { Kysely } from 'kysely'
import { createModelCache, InvalidKeyError, SourceError } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Tables } from '../../src/sources/database.ts'
import { DATABASES, type SourceDatabase } from './databases.ts'
import { lookups } from './lookups.ts'

/*
 * A lookup finds what `where column = value` finds, whatever the column's type: the database compares, by the
 * column's own rules. Each table has one row per stored value; the rows are numbered from 1.
 */
interface Column {
  readonly type: string
  readonly stored: readonly string[]
  /** A value, and which rows it finds. */
  readonly found: readonly (readonly [value: unknown, rows: readonly number[]])[]
  /** Values that find nothing, and about which nobody is asked. */
  readonly impossible?: readonly unknown[]
  /** Values of which the database says that they are none of the type. */
  readonly failing?: readonly unknown[]
}

const COLUMNS: readonly Column[] = [
  {
    type: 'int2',
    stored: ['7', '-7'],
    found: [
      [7, [1]],
      [7n, [1]],
      ['+07', [1]],
      [-7, [2]],
      [8, []],
    ],
    impossible: [7.5, '7.5', 70_000, '99999999999999999999'],
  },
  {
    type: 'int8',
    stored: ['9007199254740993', '9007199254740992', '1152921504606847000'],
    found: [
      [9007199254740993n, [1]],
      ['9007199254740993', [1]],
      [2 ** 53, [2]],
      [2 ** 60, [3]],
    ],
    impossible: [2n ** 63n, 1e300],
  },
  {
    type: 'numeric(10, 2)',
    stored: ['10.50', '10', '0.01'],
    found: [
      [10.5, [1]],
      ['10.5', [1]],
      ['10.5000', [1]],
      ['1.05e1', [1]],
      [10n, [2]],
      [0.01, [3]],
      ['10.504', []],
    ],
  },
  {
    type: 'numeric',
    stored: ['NaN', '1e100', '0.1'],
    found: [
      ['NaN', [1]],
      ['1e100', [2]],
      [1e100, [2]],
      [10n ** 100n, [2]],
      [0.1, [3]],
      ['1e20001', []],
    ],
    failing: ['1e140000'],
  },
  {
    type: 'float4',
    stored: ['0.1', 'Infinity', 'NaN', '-0', '16777216'],
    found: [
      [0.1, [1]],
      ['0.1', [1]],
      [Math.fround(0.1), [1]],
      [Infinity, [2]],
      ['inf', [2]],
      ['NaN', [3]],
      [0, [4]],
      [-0, [4]],
      [16_777_217, [5]],
    ],
    impossible: [1e39, 1e-60],
  },
  {
    type: 'float8',
    stored: ['0.1', '-Infinity', '1e-7'],
    found: [
      [0.1, [1]],
      [Math.fround(0.1), []],
      [-Infinity, [2]],
      [1e-7, [3]],
      ['0.0000001', [3]],
    ],
    impossible: ['1e400'],
  },
  {
    type: 'bool',
    stored: ['true', 'false'],
    found: [
      [true, [1]],
      ['t', [1]],
      ['YES', [1]],
      [false, [2]],
      ['off', [2]],
    ],
    failing: ['maybe'],
  },
  {
    type: 'text',
    stored: ['a', 'A', 'a ', 'e\u0301', '\u00e9', '', '1'],
    found: [
      ['a', [1]],
      ['A', [2]],
      ['a ', [3]],
      ['e\u0301', [4]],
      ['\u00e9', [5]],
      ['', [6]],
      [1, [7]],
    ],
    impossible: ['a\0'],
  },
  {
    // Whatever means something in the text of an array.
    type: 'text',
    stored: ['NULL', 'null', '{a,b}', '"a"', 'a,b', 'a\\b', 'a\nb', ' a', '{}', '\\x00'],
    found: [
      ['NULL', [1]],
      ['null', [2]],
      ['{a,b}', [3]],
      ['"a"', [4]],
      ['a,b', [5]],
      ['a\\b', [6]],
      ['a\nb', [7]],
      [' a', [8]],
      ['{}', [9]],
      ['\\x00', [10]],
    ],
  },
  {
    type: 'varchar(3)',
    stored: ['abc', 'ab'],
    found: [
      ['abc', [1]],
      ['abcd', []],
      ['ab ', []],
    ],
  },
  {
    type: 'char(5)',
    stored: ['abc', '', ' x'],
    found: [
      ['abc', [1]],
      ['abc  ', [1]],
      ['abc       ', [1]],
      ['a', []],
      ['', [2]],
      ['     ', [2]],
      [' x', [3]],
      ['abcdef', []],
    ],
  },
  {
    type: 'char',
    stored: ['a'],
    found: [
      ['a', [1]],
      ['a ', [1]],
      ['ab', []],
    ],
  },
  {
    type: '"char"',
    stored: ['a'],
    found: [
      ['a', [1]],
      ['b', []],
    ],
  },
  {
    type: 'name',
    stored: ['pg_class', 'x'.repeat(63)],
    found: [
      ['pg_class', [1]],
      ['x'.repeat(63), [2]],
      ['x'.repeat(62), []],
      ['x'.repeat(70), [2]],
    ],
  },
  {
    type: 'citext',
    stored: ['Zoe', 'ZOË', '300 \u212a'],
    found: [
      ['zoe', [1]],
      ['ZOE', [1]],
      ['zoë', [2]],
      ['Zoë', [2]],
      ['300 k', [3]],
      ['300 K', [3]],
      ['300 \u212a', [3]],
    ],
  },
  {
    type: 'uuid',
    stored: ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'],
    found: [
      ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', [1]],
      ['A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', [1]],
      ['{a0eebc999c0b4ef8bb6d6bb9bd380a11}', [1]],
    ],
  },
  {
    type: 'bytea',
    stored: ['\\x00ff', '\\x'],
    found: [
      [Buffer.from([0, 255]), [1]],
      [new Uint8Array([0, 255]), [1]],
      ['\\x00FF', [1]],
      ['\\000\\377', [1]],
      [Buffer.alloc(0), [2]],
    ],
    failing: ['\\xzz'],
  },
  {
    type: 'date',
    stored: ['2024-02-29', '0044-03-15 BC', 'infinity'],
    found: [
      ['2024-02-29', [1]],
      ['29 Feb 2024', [1]],
      ['0044-03-15 BC', [2]],
      ['infinity', [3]],
      [Infinity, [3]],
    ],
    failing: ['2023-02-29', 'x'],
  },
  {
    type: 'timestamp',
    stored: ['2024-02-29 12:00:00.123456', '10000-01-01'],
    found: [
      ['2024-02-29T12:00:00.123456', [1]],
      ['2024-02-29 12:00:00.123', []],
      ['10000-01-01', [2]],
      ['10000-01-01 00:00:00', [2]],
    ],
  },
  {
    type: 'timestamptz',
    stored: ['2024-02-29 12:00:00+00', '-infinity'],
    found: [
      ['2024-02-29T12:00:00Z', [1]],
      ['2024-02-29 13:00:00+01', [1]],
      [new Date('2024-02-29T12:00:00Z'), [1]],
      [-Infinity, [2]],
    ],
  },
  {
    type: 'colour',
    stored: ['red', 'Red', 'it\'s, {"so"}', 'NULL'],
    found: [
      ['red', [1]],
      ['Red', [2]],
      ['it\'s, {"so"}', [3]],
      ['NULL', [4]],
    ],
    failing: ['green'],
  },
  {
    type: 'postcode',
    stored: ['1011 ab'],
    found: [
      ['1011 ab', [1]],
      ['1011 AB', [1]],
      ['1011 ac', []],
    ],
  },
  {
    type: 'percent',
    stored: ['50', '99.5'],
    found: [
      [50, [1]],
      ['50.0', [1]],
      ['99.50', [2]],
      [200, []],
    ],
  },
  {
    type: 'oid',
    stored: ['4294967295'],
    found: [
      [4_294_967_295, [1]],
      ['4294967295', [1]],
      [-1, [1]],
    ],
  },
  // These have no canonical text of ours, so SQL alone answers.
  {
    type: 'inet',
    stored: ['10.0.0.1', '10.0.0.0/8'],
    found: [
      ['10.0.0.1', [1]],
      ['10.0.0.1/32', [1]],
      ['10.0.0.0/8', [2]],
    ],
    failing: ['10.0.0.256'],
  },
  {
    type: 'interval',
    stored: ['1 day', '24 hours'],
    found: [
      ['1 day', [1, 2]],
      ['P1D', [1, 2]],
    ],
  },
  {
    type: 'jsonb',
    stored: ['{"a": 1, "b": 2}'],
    found: [
      ['{"b":2,"a":1.0}', [1]],
      ['{"a":1}', []],
    ],
  },
  {
    type: 'int4[]',
    stored: ['{1,2}'],
    found: [
      ['{1,2}', [1]],
      ['{ 1, 2 }', [1]],
      ['{2,1}', []],
    ],
  },
  {
    type: 'bit(3)',
    stored: ['101'],
    found: [
      ['101', [1]],
      ['1', []],
      ['100', []],
    ],
  },
  {
    type: 'varbit',
    stored: ['101'],
    found: [
      ['101', [1]],
      ['1', []],
    ],
  },
  {
    type: 'time',
    stored: ['12:00'],
    found: [
      ['12:00:00', [1]],
      ['12:00', [1]],
      ['12:01', []],
    ],
    failing: ['noon'],
  },
  {
    type: 'timetz',
    stored: ['12:00+00'],
    found: [
      ['12:00:00+00', [1]],
      ['13:00:00+01', []],
    ],
  },
  { type: 'macaddr', stored: ['08:00:2b:01:02:03'], found: [['08002b:010203', [1]]] },
  { type: 'int4range', stored: ['[1,3)'], found: [['[1,2]', [1]]] },
  { type: 'tsvector', stored: ["'a' 'b'"], found: [['b a', [1]]] },
  {
    type: 'pair',
    stored: ['(1,a)'],
    found: [
      ['(1,a)', [1]],
      ['(1,b)', []],
    ],
  },
]

describe.each(DATABASES)('lookups on %s', (_name, open) => {
  let database: SourceDatabase
  let db: Kysely<Tables>

  beforeAll(async () => {
    database = await open()
    const tables = COLUMNS.map(({ type, stored }, i) => {
      const rows = stored.map((value) => `('${value.replaceAll("'", "''")}')`)
      return `create table t${i} (id int generated always as identity primary key, value ${type});
        insert into t${i} (value) values ${rows.join(', ')};`
    })
    await database.run(`
      create extension citext;
      create type colour as enum ('red', 'Red', 'it''s, {"so"}', 'NULL');
      create domain short_text as citext check (length(value) < 10);
      create domain postcode as short_text;
      create domain percent as numeric(5, 2) check (value <= 100);
      create type pair as (number int, letter text);
      ${tables.join('\n')}`)
    ;({ db } = database.kysely())
  })
  afterAll(() => database.close())

  test.each(COLUMNS.map((column, i) => [column.type, `t${i}`, column] as const))(
    'by %s',
    async (_type, table, column) => {
      const { found, impossible = [], failing = [] } = column
      const cache = createModelCache({ db, namespace: 'test', relay: false })
      const { cache: rows } = cache.model(table, {
        keyFields: [['id']],
        filterFields: [['value']],
        columns: ['id'],
      })
      const find = async (value: unknown) => (await rows.filterAsync({ value })).map(({ id }) => id)
      for (const [value, ids] of found) {
        const at = `${typeof value} ${String(value)}`
        expect(await find(value), at).toEqual(ids)
        expect(await find(value), `${at}, once more`).toEqual(ids)
      }
      // All at once: none of them disturbs another.
      expect(await Promise.all(found.map(([value]) => find(value)))).toEqual(found.map(([, ids]) => ids))
      await cache.idle()

      for (const value of impossible) {
        await expectTrips(cache, {}, async () => expect(await find(value), String(value)).toEqual([]))
      }
      for (const value of failing) await expect(find(value), String(value)).rejects.toThrow(SourceError)
      const [[value, ids]] = found as [[unknown, number[]]]
      const answers = await Promise.allSettled([...failing.map(find), find(value)])
      expect(answers.pop()).toEqual({ status: 'fulfilled', value: ids })
      await cache.close()
    },
  )

  test('by a composite of types, each with its own idea of what is equal', async () => {
    await database.run(`
      create table prices (country char(3), name citext, amount numeric(8, 2), primary key (country, name, amount));
      insert into prices values ('NL', 'Tea', 1.50), ('NL', 'Thé', 1.50)`)
    const prices = await lookups(db, 'prices', {
      keyFields: [['country', 'name', 'amount']],
      columns: ['name'],
    })
    expect(
      await prices.get(
        { country: 'NL ', name: 'TEA', amount: '1.5' },
        { country: 'NL', name: 'thé', amount: 1.5 },
        { country: 'N', name: 'tea', amount: 1.5 },
      ),
    ).toEqual([[{ name: 'Tea' }], [{ name: 'Thé' }], []])
  })

  test('by a collation that calls different texts equal: SQL alone answers', async () => {
    await database.run(`
      create collation any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
      create table people (id int primary key, name text collate any_case unique);
      insert into people values (1, 'Zoë'), (2, 'Max')`)
    const cache = createModelCache({ db, namespace: 'test', relay: false })
    const people = cache.model('people', { keyFields: [['id'], ['name']] }).cache
    for (const name of ['Zoë', 'ZOË', 'zoe\u0308']) {
      // PGlite comes without what ICU needs for it: there the names differ. What holds is that both say the same.
      const [plain = null] = await database.query('select * from people where name = $1', [name])
      await expectTrips(cache, { select: 1 }, async () => {
        expect(await people.getAsyncOrNone({ name })).toEqual(plain)
      })
    }
    await cache.close()
  })

  test('a value that is no value of the type is refused before anybody is asked', async () => {
    const cache = createModelCache({ db, namespace: 'test', relay: false })
    const numbers = cache.model('t0', { keyFields: [['id'], ['value']] }).cache
    for (const value of ['abc', Number.NaN, {}, [], undefined, true, new Date()]) {
      await expect(numbers.getAsync({ value })).rejects.toThrow(InvalidKeyError)
    }
    await expectTrips(cache, {}, () => {})
    await cache.close()
  })

  test('a type that knows no equality cannot be looked up by', async () => {
    await database.run(
      `create table shapes (id int primary key, at point); insert into shapes values (1, '(1,2)')`,
    )
    const cache = createModelCache({ db, namespace: 'test', relay: false })
    const shapes = cache.model('shapes', { keyFields: [['id'], ['at']] }).cache
    await expect(shapes.getAsync({ at: '(1,2)' })).rejects.toThrow(
      /SQL for \['at'\] failed: operator .*point = point/,
    )
    expect(await shapes.getAsync({ id: 1 })).toMatchObject({ id: 1 })
    await cache.close()
  })

  test('a label added to an enum is found by whoever knows it and by whoever does not', async () => {
    await database.run(
      `create type phase as enum ('new'); create table tasks (id int primary key, phase phase)`,
    )
    const cache = createModelCache({ db, namespace: 'test', relay: false })
    const tasks = cache.model('tasks', { keyFields: [['id']], filterFields: [['phase']] }).cache
    expect(await tasks.filterAsync({ phase: 'new' })).toEqual([])
    await database.run(`alter type phase add value 'done'`)
    await database.run(`insert into tasks values (1, 'done')`)
    expect(await tasks.filterAsync({ phase: 'done' })).toEqual([{ id: 1, phase: 'done' }])
    await cache.close()

    const later = createModelCache({ db, namespace: 'test', relay: false })
    const again = later.model('tasks', { keyFields: [['id']], filterFields: [['phase']] }).cache
    expect(await again.filterAsync({ phase: 'done' })).toEqual([{ id: 1, phase: 'done' }])
    await later.close()
  })
})
