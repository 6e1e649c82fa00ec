import fc from 'fast-check'
import { createModelCache, InvalidKeyError } from 'loadstone'
import { types } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { DATABASES, type KyselyOptions, openPostgres, type SourceDatabase } from './databases.ts'
import { lookups } from './lookups.ts'

/*
 * A JS Date is a moment; a `date` or `timestamp` is what a calendar and a clock on some wall show. The driver decides
 * which wall. Whatever it decides, a row is found by the very values it came with.
 */

const ZONES = [
  'UTC',
  'America/New_York',
  'Europe/Amsterdam',
  'Asia/Kolkata',
  'Pacific/Apia',
  'Antarctica/Troll',
]
const META = { keyFields: [['id']], filterFields: [['day'], ['wall'], ['moment'], ['day', 'wall', 'moment']] }

const TABLE =
  'create table times (id int generated always as identity primary key, day date, wall timestamp, moment timestamptz)'

/** Texts of the days and hours around which calendars and clocks are odd, and of any others. */
const times = (first: string) =>
  fc
    .oneof(
      fc.date({ noInvalidDate: true, min: new Date(first), max: new Date('9999-12-30T00:00:00Z') }),
      fc.date({
        noInvalidDate: true,
        min: new Date('2024-11-02T12:00:00Z'),
        max: new Date('2024-11-04T00:00:00Z'),
      }),
      fc.date({
        noInvalidDate: true,
        min: new Date('2011-12-29T00:00:00Z'),
        max: new Date('2011-12-31T23:59:00Z'),
      }),
      fc.constantFrom(new Date('1970-01-01T00:00:00Z'), new Date('1900-01-01T00:00:00Z')),
    )
    .map((date) => date.toISOString().replace('T', ' ').slice(0, -1))

const ownZone = process.env.TZ
afterEach(() => {
  if (ownZone === undefined) delete process.env.TZ
  else process.env.TZ = ownZone
})

describe.each(DATABASES)('on %s', (name, open) => {
  // PGlite reads the year 99 as 1999.
  const first = name === 'PGlite' ? '1000-01-01T00:00:00Z' : '0001-01-02T00:00:00Z'
  let database: SourceDatabase

  beforeAll(async () => {
    database = await open()
    await database.run(TABLE)
  })
  afterAll(() => database.close())
  beforeEach(() => database.run('truncate times'))

  test.each(ZONES)('a row is found by the values it came with: %s', async (zone) => {
    process.env.TZ = zone
    const { db } = database.kysely()
    const rows = await lookups(db, 'times', META)
    await fc.assert(
      fc.asyncProperty(fc.array(times(first), { minLength: 1, maxLength: 40 }), async (texts) => {
        await database.run('truncate times')
        await database.query(
          `insert into times (day, wall, moment)
           select t::date, t::timestamp, t::timestamp at time zone 'UTC' from unnest($1::text[]) t`,
          [texts],
        )
        const stored = await db.selectFrom('times').selectAll().orderBy('id').execute()
        for (const fields of META.filterFields) {
          const filters = stored.map((row) => Object.fromEntries(fields.map((field) => [field, row[field]])))
          const found = await rows.filter(...filters)
          for (const [i, row] of stored.entries()) {
            // An hour that the clock skips in spring is read as another one, which no such row has.
            const text = texts[i] as string
            if (fields.includes('wall') && isSkipped(text)) continue
            if (fields.includes('day') && isSkipped(`${text.slice(0, 10)} 00:00`)) continue
            expect(found[i], `${texts[i]} by ${fields}`).toContainEqual(row)
          }
        }
      }),
      { numRuns: 8, seed: 3 },
    )
  })

  test('every text of a time finds it, whatever the time zone', async () => {
    await database.run(
      `insert into times (day, wall, moment) values ('2024-06-01', '2024-06-01 12:00:00.5', '2024-06-01 12:00:00.5+00')`,
    )
    for (const zone of ZONES) {
      process.env.TZ = zone
      const rows = await lookups(database.kysely().db, 'times', META)
      const count = async (filter: object) => (await rows.filter({ ...filter }))[0]?.length
      expect(await count({ day: '2024-06-01' })).toBe(1)
      expect(await count({ wall: '2024-06-01T12:00:00.500' })).toBe(1)
      expect(await count({ moment: '2024-06-01T12:00:00.5Z' })).toBe(1)
      expect(await count({ moment: new Date('2024-06-01T12:00:00.5Z') })).toBe(1)
      expect(await count({ moment: '2024-06-01 14:00:00.5+02' })).toBe(1)
    }
  })
})

describe('with type parsers of the application', () => {
  let database: SourceDatabase

  beforeAll(async () => {
    database = await openPostgres()
    await database.run(`
      ${TABLE};
      insert into times (day, wall, moment) values ('2024-06-01', '2024-06-01 12:00:00.123456', '2024-06-01 12:00:00.123456+00');
      create table sums (id int8 primary key, amount numeric(20, 4), ratio float4);
      insert into sums values (9007199254740993, 10.5, 0.1), (2, 0.001, 2)`)
  })
  afterAll(() => database.close())

  const text = (value: string) => value

  /** A Kysely whose driver reads these types otherwise. */
  function parsing(parsers: Record<number, (value: string) => unknown>): KyselyOptions {
    const getTypeParser = (id: number, format?: 'text' | 'binary') =>
      parsers[id] ?? types.getTypeParser(id, format as 'text')
    return { pool: { types: { getTypeParser: getTypeParser as typeof types.getTypeParser } } }
  }

  test.each([
    [
      'numbers',
      parsing({ [types.builtins.NUMERIC]: Number, [types.builtins.INT8]: BigInt }),
      [
        { id: 9007199254740993n, amount: 10.5, ratio: 0.1 },
        { id: 2n, amount: 0.001, ratio: 2 },
      ],
    ],
    [
      'texts',
      parsing({ [types.builtins.FLOAT4]: text }),
      [
        { id: '9007199254740993', amount: '10.5000', ratio: '0.1' },
        { id: '2', amount: '0.0010', ratio: '2' },
      ],
    ],
  ])('that make %s, a row is found by the values it came with', async (_what, options, stored) => {
    const { db } = database.kysely(options)
    const rows = await lookups(db, 'sums', {
      keyFields: [['id'], ['amount'], ['ratio'], ['id', 'amount', 'ratio']],
    })
    expect(await rows.get(...stored.map(({ id }) => ({ id })))).toEqual(stored.map((row) => [row]))
    expect(await rows.get(...stored.map(({ amount }) => ({ amount })))).toEqual(stored.map((row) => [row]))
    expect(await rows.get(...stored.map(({ ratio }) => ({ ratio })))).toEqual(stored.map((row) => [row]))
    expect(await rows.get(...stored)).toEqual(stored.map((row) => [row]))
  })

  test('that leave dates as texts, a row is found by these', async () => {
    const { DATE, TIMESTAMP, TIMESTAMPTZ } = types.builtins
    const options = parsing({ [DATE]: text, [TIMESTAMP]: text, [TIMESTAMPTZ]: text })
    options.pool!.options = '-c timezone=UTC'
    const { db } = database.kysely(options)
    const row = {
      id: 1,
      day: '2024-06-01',
      wall: '2024-06-01 12:00:00.123456',
      moment: '2024-06-01 12:00:00.123456+00',
    }
    const rows = await lookups(db, 'times', META)
    expect(await rows.filter({ day: row.day })).toEqual([[row]])
    expect(await rows.filter({ wall: row.wall })).toEqual([[row]])
    expect(await rows.filter({ moment: row.moment })).toEqual([[row]])
    // By a Date it would be another moment: milliseconds are all it has.
    expect(await rows.filter({ moment: new Date('2024-06-01T12:00:00.123Z') })).toEqual([[]])
  })

  test('that leave dates as texts, a Date is refused for a day or a wall: nobody knows which one it stands for', async () => {
    const options = parsing({ [types.builtins.DATE]: text, [types.builtins.TIMESTAMP]: text })
    const cache = createModelCache({ db: database.kysely(options).db, namespace: 'test', relay: false })
    const rows = cache.model('times', META).cache
    await expect(rows.filterAsync({ day: new Date() })).rejects.toThrow(InvalidKeyError)
    await expect(rows.filterAsync({ wall: new Date() })).rejects.toThrow(
      "model 'times': field 'wall' is not read as a Date through this connection; give the value as the driver returns it",
    )
    await cache.close()
  })

  test.each(ZONES)('that read walls as UTC, a row is found by the values it came with: %s', async (zone) => {
    process.env.TZ = zone
    const utc = (value: string) =>
      new Date(`${value.replace(' ', 'T')}${value.includes(':') ? '' : 'T00:00:00'}Z`)
    const { db } = database.kysely(parsing({ [types.builtins.DATE]: utc, [types.builtins.TIMESTAMP]: utc }))
    await database.run(`insert into times (day, wall) values ('2024-03-10', '2024-03-10 02:30:00')`)
    const rows = await lookups(db, 'times', META)
    const row = {
      id: expect.any(Number),
      day: new Date('2024-03-10T00:00:00Z'),
      wall: new Date('2024-03-10T02:30:00Z'),
      moment: null,
    }
    expect(await rows.filter({ day: row.day })).toEqual([[row]])
    expect(await rows.filter({ wall: row.wall })).toEqual([[row]])
    await database.run('delete from times where moment is null')
  })
})

/** Whether the wall time is none in the time zone of this process. */
function isSkipped(wall: string): boolean {
  const [year, month, day, hour, minute] = wall.split(/[- :.]/).map(Number) as [
    number,
    number,
    number,
    number,
    number,
  ]
  const date = new Date(2000, 0)
  date.setFullYear(year, month - 1, day)
  date.setHours(hour, minute)
  return date.getDate() !== day || date.getHours() !== hour || date.getMinutes() !== minute
}
