import fc from 'fast-check'
import type { Kysely } from 'kysely'
import { createModelCache, type RedisClient, runInLoop, type ValueType } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { types } from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { differences, objectsIn } from './models/form.ts'
import { openPGlite, openPostgres, type SourceDatabase } from './sources/databases.ts'
import { closeRedis, testRedis } from './support/redis.ts'

/*
 * Nobody can tell from a row where it came from: SQL, a scope's memo, or the store. Every type Postgres has, as the
 * driver reads it, is the same value of the same JS type with the same prototype.
 */

const text = fc.oneof(
  fc.string({ unit: 'grapheme' }),
  fc.string({ unit: 'binary' }).map((given) => given.toWellFormed().replaceAll('\0', '')),
  fc.constantFrom(
    '',
    ' ',
    'null',
    'NULL',
    '{}',
    '[]',
    '"',
    '\\',
    "'",
    '\n',
    '\u2028',
    '\ufffd',
    '😀',
    '__proto__',
    'toJSON',
    'x'.repeat(2_000),
  ),
)
const word = fc.constantFrom('a', 'b', 'it', 'word')
const integer = (bits: number) =>
  fc.bigInt({ min: -(2n ** BigInt(bits - 1)), max: 2n ** BigInt(bits - 1) - 1n }).map(String)
const oddNumbers = fc.constantFrom('NaN', 'Infinity', '-Infinity', '-0', '0')
const double = fc.oneof(fc.double({ noNaN: true }).map(String), oddNumbers)
const numeric = fc.oneof(
  fc.double({ noNaN: true, noDefaultInfinity: true }).map(String),
  fc.constantFrom(
    'NaN',
    'Infinity',
    '-Infinity',
    '1e1000',
    '0.00',
    '1.500',
    '-1e-200',
    '123456789012345678901234567890.123456789',
  ),
)
const bytes = fc.uint8Array({ maxLength: 20 }).map((value) => `\\x${Buffer.from(value).toString('hex')}`)
const json = fc.oneof(
  fc.json({ stringUnit: 'grapheme' }).map((given) => given.replaceAll('\\u0000', '')),
  fc.constantFrom(
    '1e400',
    '-1e400',
    '-0',
    '12345678901234567890',
    '0.1',
    '1.0',
    'null',
    '"null"',
    '[]',
    '{}',
    '[[], [{}]]',
    '" "',
    '{"": null}',
    '{"a": 1e400, "b": [-0, 9007199254740993]}',
    '{"__proto__": {"a": 1}, "constructor": 1, "toJSON": 2}',
    '{"2": 1, "1": 2, "b": 3, "a": 4}',
    '"\\u2028\\ud83d\\ude00"',
    '"2024-01-01T00:00:00.000Z"',
  ),
)
const day = fc.oneof(
  fc
    .date({
      noInvalidDate: true,
      min: new Date('0001-01-01T00:00:00Z'),
      max: new Date('9999-12-31T00:00:00Z'),
    })
    .map((date) => date.toISOString().slice(0, 10)),
  fc.constantFrom(
    'infinity',
    '-infinity',
    '0044-03-15 BC',
    '4713-01-01 BC',
    '0001-01-01',
    '10000-01-01',
    '2024-02-29',
  ),
)
const moment = fc.oneof(
  fc
    .date({
      noInvalidDate: true,
      min: new Date('0001-01-01T00:00:00Z'),
      max: new Date('9999-12-31T00:00:00Z'),
    })
    .map((date) => date.toISOString()),
  fc.constantFrom(
    'infinity',
    '-infinity',
    '0044-03-15 12:00 BC',
    '4713-01-01 BC',
    '294276-12-31 23:59:59',
    '275760-09-13',
    '2024-02-29 12:00:00.123456',
  ),
)
const time = fc.constantFrom('00:00', '12:34:56.789', '24:00')
const interval = fc.constantFrom(
  '0',
  '1 day',
  '-1 month 2 days',
  '1 year 2 mons 3 days 04:05:06.789',
  '-00:00:01',
  '100000 hours',
  '0.5 s',
)
const number = fc.constantFrom('0', '-1.5', '1e10', '2')
const list = <T>(...parts: fc.Arbitrary<T>[]) => fc.tuple(...parts).map((items) => items.join(','))
const point = list(number, number).map((pair) => `(${pair})`)
const range = (low: string, high: string) =>
  fc.constantFrom('empty', `[${low},${high})`, `(${low},]`, '(,)', `[,${high}]`)

/** Every type, and texts that Postgres reads as values of it. */
const TYPES: Record<string, fc.Arbitrary<string>> = {
  bool: fc.constantFrom('t', 'f'),
  int2: integer(16),
  int4: integer(32),
  int8: fc.oneof(integer(64), fc.constantFrom('0', '1', '9007199254740992')),
  float4: fc.oneof(
    fc
      .float({ noNaN: true, noDefaultInfinity: true })
      .map((value) => String(Math.abs(value) < 1e-37 ? 0 : value)),
    oddNumbers,
  ),
  float8: double,
  numeric,
  'numeric(20, 5)': fc.constantFrom('0', '1.5', 'NaN', '-99999.12345'),
  money: fc.constantFrom('0', '1234.50', '-1'),
  text,
  'varchar(2100)': text,
  'char(5)': fc.constantFrom('', 'a', 'abcde', ' b'),
  name: fc.constantFrom('', 'pg_class'),
  '"char"': fc.constantFrom('a', '~'),
  citext: text,
  hstore: fc.constantFrom('', 'a=>1', '"a b"=>NULL, c=>"\\""'),
  bytea: bytes,
  uuid: fc.uuid(),
  json,
  jsonb: json,
  date: day,
  timestamp: moment,
  timestamptz: moment,
  time,
  timetz: time.map((at) => `${at}+02`),
  interval,
  point,
  line: fc.constant('{1,-1,0}'),
  lseg: list(point, point).map((points) => `[${points}]`),
  box: list(point, point),
  path: fc.oneof(
    list(point, point).map((points) => `[${points}]`),
    list(point, point).map((points) => `(${points})`),
  ),
  polygon: list(point, point, point).map((points) => `(${points})`),
  circle: point.map((centre) => `<${centre},2.5>`),
  inet: fc.constantFrom('10.0.0.1', '10.0.0.1/8', '::1'),
  cidr: fc.constantFrom('10.0.0.0/8', '::/0'),
  macaddr: fc.constant('08:00:2b:01:02:03'),
  macaddr8: fc.constant('08:00:2b:01:02:03:04:05'),
  'bit(3)': fc.constantFrom('000', '101'),
  varbit: fc.constantFrom('', '1', '10101'),
  xml: fc.constantFrom('<a>b &amp; c</a>', 'text'),
  tsvector: list(word, word).map((words) => words.replaceAll(',', ' ')),
  tsquery: list(word, word).map((words) => words.replaceAll(',', ' & ')),
  oid: fc.constantFrom('0', '4294967295'),
  regclass: fc.constantFrom('pg_class', 'pg_type'),
  pg_lsn: fc.constant('16/B374D848'),
  jsonpath: fc.constant('$.a[*] ? (@ > 1)'),
  int4range: range('1', '5'),
  numrange: range('1.50', '2.5'),
  tstzrange: range('2024-01-01', '2024-02-01'),
  int4multirange: fc.constantFrom('{}', '{[1,3),[5,8)}'),
  colour: fc.constantFrom('red', 'dark blue', "it's"),
  pair: fc.constantFrom('(1,a)', '(,)', '(2,"a,\\"b\\"")'),
  positive: fc.constantFrom('1', '2147483647'),
}
const ARRAYS = [
  'bool',
  'int2',
  'int4',
  'int8',
  'float4',
  'float8',
  'numeric',
  'text',
  'citext',
  'bytea',
  'uuid',
  'json',
  'jsonb',
  'date',
  'timestamp',
  'timestamptz',
  'interval',
  'point',
  'inet',
  'numrange',
  'colour',
  'pair',
  'positive',
  'money',
  'xml',
]
for (const type of ARRAYS) TYPES[`${type}[]`] = arrayOf(TYPES[type] as fc.Arbitrary<string>)

function arrayOf(item: fc.Arbitrary<string>): fc.Arbitrary<string> {
  const quoted = fc
    .option(item, { freq: 4 })
    .map((value) => (value === null ? 'NULL' : `"${value.replace(/["\\]/g, '\\$&')}"`))
  const flat = fc.array(quoted, { maxLength: 3 }).map((items) => `{${items}}`)
  const nested = fc.tuple(quoted, quoted, quoted, quoted).map(([a, b, c, d]) => `{{${a},${b}},{${c},${d}}}`)
  return fc.oneof({ weight: 2, arbitrary: flat }, nested)
}

const columns = Object.keys(TYPES).map((type, i) => ({
  name: `c${i}`,
  type,
  values: fc.option(TYPES[type] as fc.Arbitrary<string>, { freq: 6 }),
}))
const rows = fc.array(fc.tuple(...columns.map(({ values }) => values)), { minLength: 1, maxLength: 4 })

interface Everything {
  readonly things: Record<string, unknown> & { readonly id: number; readonly batch: number }
}

const SETUPS: readonly (readonly [
  string,
  () => Promise<SourceDatabase>,
  () => { redis?: RedisClient; namespace: string },
])[] = [
  ['pg and Redis', openPostgres, () => testRedis()],
  ['pg and the store inside the process', openPostgres, () => ({ namespace: 'test' })],
  ['PGlite and the store inside the process', openPGlite, () => ({ namespace: 'test' })],
]

describe.each(SETUPS)('through %s', (_name, open, store) => {
  let database: SourceDatabase
  let db: Kysely<Everything>
  let batch = 0

  beforeAll(async () => {
    database = await open()
    await database.run(`
      create extension citext; create extension hstore;
      create type colour as enum ('red', 'dark blue', 'it''s');
      create type pair as (number int, letter text);
      create domain positive as int check (value > 0);
      create table things (
        id int generated always as identity primary key, batch int not null,
        ${columns.map(({ name, type }) => `${name} ${type}`).join(', ')})`)
    ;({ db } = database.kysely<Everything>())
  })
  afterAll(async () => {
    await database.close()
    await closeRedis()
  })

  /** Rows of a new batch, as a plain select has them. */
  async function insert(given: readonly (readonly (string | null)[])[]) {
    batch++
    for (const values of given) {
      const casts = columns.map(({ type }, i) => `$${i + 2}::text::${type}`)
      await database.query(
        `insert into things (batch, ${columns.map(({ name }) => name)}) values ($1, ${casts})`,
        [batch, ...values],
      )
    }
    return db.selectFrom('things').selectAll().where('batch', '=', batch).orderBy('id').execute()
  }

  const openCache = () => {
    const cache = createModelCache({ db, ...store(), storeTimeout: '5s', relay: false })
    return { cache, things: cache.model('things', { keyFields: [['id']], filterFields: [['batch']] }).cache }
  }

  test('every value of every type is the same from SQL, from the memo and from the store', async () => {
    const { cache, things } = openCache()
    await things.getAsyncOrNone({ id: -1 })
    await fc.assert(
      fc.asyncProperty(rows, async (given) => {
        const plain = await insert(given)
        const ids = plain.map(({ id }) => id)
        const look = runInLoop(async () => {
          const answers = async () => [
            ...(await Promise.all(ids.map((id) => things.getAsync({ id })))),
            ...(await things.filterAsync({ batch })),
          ]
          return { first: await answers(), again: await answers() }
        })
        const cold = await expectTrips(cache, { mget: 2, acquire: 2, select: 2, fill: 2 }, look)
        const warm = await expectTrips(cache, { mget: 2 }, look)
        for (const answers of [cold.first, cold.again, warm.first, warm.again]) {
          expect(differences(answers, [...plain, ...plain]).map(withType)).toEqual([])
        }
        // The memo gives what was given before, the store what nobody has.
        expect(cold.again[0]).toBe(cold.first[0])
        const before = new Set(objectsIn(cold.first))
        expect(objectsIn(warm.first).filter((each) => before.has(each))).toEqual([])
      }),
      { numRuns: 25, seed: 5 },
    )
    expect(cache.stats()).toMatchObject({ damaged: 0, uncached: 0, storeErrors: 0, sourceErrors: 0 })
    await cache.close()
  })

  test('what one scope does to its row never shows in another', async () => {
    const { cache, things } = openCache()
    const [plain] = await insert([sample()])
    const id = (plain as { id: number }).id
    const spoil = runInLoop(async () => {
      const row = await things.getAsync({ id })
      const [listed] = await things.filterAsync({ batch })
      const asGiven = differences([row, listed], [plain, plain])
      for (const object of objectsIn([row, listed])) spoilObject(object)
      return asGiven
    })
    const none = [[], [], [], []]
    // The first of these loads the row, the others join it; then all of them find it in the store.
    expect(await Promise.all([spoil(), spoil(), spoil(), spoil()])).toEqual(none)
    await cache.idle()
    expect(await Promise.all([spoil(), spoil(), spoil(), spoil()])).toEqual(none)
    // Outside any scope, each lookup is its own.
    const loose = await Promise.all([things.getAsync({ id }), things.getAsync({ id })])
    for (const object of objectsIn(loose[0])) spoilObject(object)
    expect(differences(loose[1], plain)).toEqual([])
    await cache.close()
  })

  test('another process reads the same from the same store', async () => {
    const { redis, namespace } = store()
    if (!redis) return
    const [one, other] = [1, 2].map(() => {
      const cache = createModelCache({ db, redis, namespace, storeTimeout: '5s', relay: false })
      return { cache, things: cache.model('things', { keyFields: [['id']] }).cache }
    }) as [ReturnType<typeof openCache>, ReturnType<typeof openCache>]
    const [plain] = await insert([sample()])
    const id = (plain as { id: number }).id
    await one.things.getAsync({ id })
    await one.cache.idle()
    for (const { things } of [other, one, other])
      expect(differences(await things.getAsync({ id }), plain)).toEqual([])
    await Promise.all([one.cache.close(), other.cache.close()])
  })
})

describe('classes of the application, made by type parsers', () => {
  class Money {
    readonly #cents: bigint
    constructor(cents: bigint) {
      this.#cents = cents
    }
    get cents() {
      return this.#cents
    }
  }
  const parsers: Record<number, (value: string) => unknown> = {
    [types.builtins.NUMERIC]: (value) => new Money(BigInt(value.replace('.', ''))),
    [types.builtins.INT8]: BigInt,
  }
  const getTypeParser = ((id: number, format: 'text') =>
    parsers[id] ?? types.getTypeParser(id, format)) as typeof types.getTypeParser
  const money: ValueType<Money> = {
    name: 'money',
    is: (value) => value instanceof Money,
    encode: (value) => String(value.cents),
    decode: (data) => new Money(BigInt(data as string)),
  }

  let database: SourceDatabase
  let db: Kysely<Record<string, Record<string, unknown>>>

  beforeAll(async () => {
    database = await openPostgres()
    await database.run(
      `create table prices (id int8 primary key, price numeric(8, 2), past numeric[]); insert into prices values (1, 9.99, '{8.99}')`,
    )
    ;({ db } = database.kysely({ pool: { types: { getTypeParser } } }))
  })
  afterAll(() => database.close())

  test('come back from the store as what they are, once their type is declared', async () => {
    const cache = createModelCache({ db, namespace: 'test', relay: false, valueTypes: [money as ValueType] })
    const prices = cache.model('prices', { keyFields: [['id']] }).cache
    for (const trips of [{ mget: 1, acquire: 1, select: 1, fill: 1 }, { mget: 1 }]) {
      const row = await expectTrips(cache, trips, () => prices.getAsync({ id: 1n }))
      expect(row.id).toBe(1n)
      expect(row.price).toBeInstanceOf(Money)
      expect((row.price as Money).cents).toBe(999n)
    }
    await cache.close()
  })

  test('are answered but not cached while it is not: private fields cannot be seen from outside', async () => {
    const cache = createModelCache({ db, namespace: 'test', relay: false })
    const prices = cache.model('prices', { keyFields: [['id']] }).cache
    await prices.getAsyncOrNone({ id: 2n })
    for (const uncached of [1, 2]) {
      // The fill gives the lease back.
      const row = await expectTrips(cache, { mget: 1, acquire: 1, select: 1, fill: 1 }, () =>
        prices.getAsync({ id: 1n }),
      )
      expect((row.price as Money).cents).toBe(999n)
      expect(cache.stats().uncached).toBe(uncached)
    }
    await cache.close()
  })
})

/** One value of every type, none of them NULL. */
function sample(): (string | null)[] {
  return fc.sample(fc.tuple(...columns.map(({ type }) => TYPES[type] as fc.Arbitrary<string>)), {
    numRuns: 1,
    seed: 11,
  })[0] as string[]
}

function withType(difference: string): string {
  const column = /\.c(\d+)/.exec(difference)
  return column ? `${difference} (${columns[Number(column[1])]?.type})` : difference
}

function spoilObject(object: object): void {
  if (object instanceof Date) object.setFullYear(1)
  else if (object instanceof Uint8Array) object.fill(7)
  else if (Array.isArray(object)) object.push('spoilt')
  else Object.assign(object, { spoilt: true, id: -1 })
}
