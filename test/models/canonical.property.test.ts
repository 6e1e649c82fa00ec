import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  type Canonical,
  canonicalizerOf,
  canonicalPrint,
  Refusal,
  Uncertain,
} from '../../src/models/canonical.ts'
import type { ColumnInfo } from '../../src/models/column.ts'
import { DATABASES, type SourceDatabase } from '../sources/databases.ts'

/*
 * What a cache key says of a value, held against what Postgres says of it. For any values of a type:
 *
 * - two of them have one canonical text exactly when Postgres calls them equal;
 * - a canonical text means to Postgres what the value means that it was made of;
 * - what Postgres prints for a stored value comes to the key of every lookup that finds it: a write clears that key;
 * - a value that is refused, or that is said to equal nothing, is none that Postgres could have found.
 */

// Far from UTC, and by half hours. Each test file is a process of its own.
process.env.TZ = 'America/St_Johns'

const forms = <T>(values: fc.Arbitrary<T>, ...written: ((value: T) => unknown)[]) =>
  fc.tuple(values, fc.constantFrom(...written)).map(([value, write]) => write(value))

const near = (...centres: bigint[]) =>
  fc
    .tuple(fc.constantFrom(...centres), fc.bigInt({ min: -2n, max: 2n }))
    .map(([centre, distance]) => centre + distance)

const integers = fc.oneof(
  fc.bigInt({ min: -3n, max: 12n }),
  near(
    2n ** 15n,
    -(2n ** 15n),
    2n ** 31n,
    -(2n ** 31n),
    2n ** 32n,
    2n ** 53n,
    2n ** 63n,
    -(2n ** 63n),
    10n ** 22n,
  ),
)
const integerForms = forms<bigint>(
  integers,
  (value) => value,
  Number,
  String,
  (value) => ` ${value}\t`,
  (value) => `${value}.0`,
  (value) => `${value}e0`,
  (value) => `${value}`.replace(/^-?/, '$&00'),
  (value) => (value < 0n ? `${value}` : `+${value}`),
  (value) => -Number(value) * 0,
  (value) => Number(value) + 0.5,
  (value) => `${value}.5`,
  (value) => (value < 0n ? `${value}` : `0x${value.toString(16)}`),
  (value) => `${value}`.replace(/(?<=\d)(?=\d\d\d$)/, '_'),
)

const decimals = fc.oneof(
  integerForms,
  forms(
    fc.tuple(fc.integer({ min: -200, max: 200 }), fc.integer({ min: -4, max: 4 })),
    ([digits, exponent]) => `${digits}e${exponent}`,
    ([digits, exponent]) => `${digits}E${exponent >= 0 ? '+' : ''}${exponent}`,
    ([digits, exponent]) => digits * 10 ** exponent,
    ([digits, exponent]) => String(digits * 10 ** exponent),
    ([digits, exponent]) => `  ${digits}.${'0'.repeat(Math.abs(exponent))}`,
  ),
  fc.constantFrom(
    '.5',
    '5.',
    '0.50',
    '-.5e1',
    '-0',
    '-0.00',
    '0e5',
    '.',
    '',
    ' ',
    '+',
    'e5',
    '1e',
    '1 2',
    '--1',
  ),
  fc.constantFrom('NaN', 'nan', 'Infinity', '-Infinity', 'inf', '+inf', ' -INF ', Infinity, -Infinity),
  fc.constantFrom('1e400', '-1e400', '1e-400', '0e400', 10n ** 400n, 1e308, 5e-324),
)

const doubles = forms<number>(
  fc.double({ noNaN: true }),
  (value) => value,
  String,
  (value) => value.toExponential(),
  (value) => value.toPrecision(17),
  Math.fround,
  (value) => String(Math.fround(value)),
)
// Values that lie halfway between two of the type, and their neighbours.
const halfway = forms<number>(
  fc.integer({ min: 0, max: 40 }).map((n) => 2 ** 24 + n),
  (value) => value,
  String,
  (value) => value / 2 ** 24,
  (value) => String(value / 2 ** 24),
  (value) => `${value}.0000000000000000001`,
)
const floats = fc.oneof(
  decimals,
  doubles,
  halfway,
  fc.constantFrom(
    3.4028234663852886e38,
    3.4028235677973366e38,
    '3.4028235e38',
    '3.4028236e38',
    1e39,
    1e-46,
    1.4e-45,
    7e-46,
    1e-40,
  ),
  fc.constantFrom('1.7976931348623157e308', '1.7976931348623159e308', '4.9e-324', '2e-324', '1e-324', -0),
)

const letters = fc.constantFrom(
  '',
  'a',
  'A',
  ' ',
  '  ',
  'é',
  'É',
  'e\u0301',
  'ß',
  'ss',
  'İ',
  'ı',
  'i',
  'I',
  'K',
  'k',
  '0',
  '%',
  ',',
  ':',
  '~',
  '#',
  '\\',
  '\n',
  '\u00a0',
  '😀',
  '\ud800',
  '\0',
)
const texts = fc.oneof(
  fc.array(letters, { maxLength: 4 }).map((parts) => parts.join('')),
  fc.string({ unit: 'grapheme', maxLength: 6 }),
  fc.constantFrom(0, 1, -1.5, 1n, true, false, 'true', '1'),
)
const names = fc.oneof(
  texts,
  forms(
    fc.integer({ min: 58, max: 66 }),
    (length) => 'x'.repeat(length),
    (length) => 'é'.repeat(length / 2),
  ),
)

const days = fc.record({
  year: fc.oneof(
    fc.integer({ min: 1, max: 3000 }),
    fc.constantFrom(
      1,
      99,
      1900,
      2000,
      2004,
      4713,
      4714,
      9999,
      10_000,
      99_999,
      200_000,
      200_001,
      275_760,
      294_276,
      294_277,
      5_874_897,
    ),
  ),
  month: fc.integer({ min: 0, max: 13 }),
  day: fc.integer({ min: 0, max: 32 }),
  era: fc.constantFrom('', '', '', ' BC'),
})
const digits = (value: number, length: number) => String(value).padStart(length, '0')
const dayText = ({ year, month, day }: { year: number; month: number; day: number }) =>
  `${digits(year, 4)}-${digits(month, 2)}-${digits(day, 2)}`
const dayForms = forms(
  days,
  (day) => dayText(day) + day.era,
  (day) => `0${dayText(day)}${day.era}`,
  (day) => `${day.year}-${day.month}-${day.day}`,
  (day) => dayText(day).replaceAll('-', ''),
)
const moments = forms(
  fc.record({
    day: days,
    hour: fc.integer({ min: 0, max: 24 }),
    second: fc.constantFrom(0, 1, 59, 60),
    fraction: fc.constantFrom('', '.', '.0', '.5', '.500', '.123456', '.1234567'),
    zone: fc.constantFrom('', '+00', 'Z', '+00:00', '+0000', '+02', '-00', ' UTC'),
  }),
  ({ day, hour, second, fraction, zone }) =>
    `${dayText(day)} ${digits(hour, 2)}:00:${digits(second, 2)}${fraction}${zone}${day.era}`,
  ({ day, hour, second, fraction, zone }) =>
    `${dayText(day)}T${digits(hour, 2)}:00:${digits(second, 2)}${fraction}${zone}${day.era}`,
)
const dates = fc.oneof(
  fc.date({ noInvalidDate: true }),
  fc
    .date({ noInvalidDate: true, min: new Date('1999-12-30'), max: new Date('2000-01-02') })
    .map((date) => new Date(date.setUTCHours(date.getUTCHours(), 0, 0, 0))),
  fc.date({ noInvalidDate: true, min: new Date('-004800-01-01'), max: new Date('-004600-01-01') }),
  fc.date({ noInvalidDate: true, min: new Date('-000005-01-01'), max: new Date('0103-01-01') }),
  fc.constantFrom(
    new Date(8.64e15),
    new Date(-8.64e15),
    new Date(Number.NaN),
    'infinity',
    '-infinity',
    Infinity,
    -Infinity,
    'now',
    'today',
    'epoch',
    'x',
    '',
  ),
)

const uuids = forms<string>(
  fc.oneof(
    fc.uuid(),
    fc.constantFrom('00000000-0000-0000-0000-000000000000', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'),
  ),
  (value) => value,
  (value) => value.toUpperCase(),
  (value) => `{${value}}`,
  (value) => value.replaceAll('-', ''),
  (value) => value.replaceAll('-', '').replace(/..../g, '$&-').slice(0, -1),
  (value) => value.slice(1),
  (value) => `${value}0`,
)
const buffers = forms<Uint8Array>(
  fc.uint8Array({ maxLength: 3 }),
  (value) => Buffer.from(value),
  (value) => `\\x${Buffer.from(value).toString('hex')}`,
  (value) => `\\x${Buffer.from(value).toString('hex').toUpperCase()}`,
  (value) => `\\x ${Buffer.from(value).toString('hex')}`,
  (value) => Buffer.from(value).toString('latin1'),
  () => '\\000',
)
const booleans = fc.constantFrom(
  true,
  false,
  't',
  'f',
  'true',
  'false',
  'TRUE',
  'yes',
  'no',
  'on',
  'off',
  '1',
  '0',
  ' t ',
  'maybe',
  '',
)
const labels = fc.constantFrom('red', 'Red', 'dark blue', "it's", '~', '', 'green', 'late')

interface Case {
  /** The column's type. */
  readonly type: string
  /** Its base type, as SQL writes it, where that is another text. */
  readonly base?: string
  readonly values: fc.Arbitrary<unknown>
}

const CASES: readonly Case[] = [
  { type: 'int2', values: integerForms },
  { type: 'int4', values: integerForms },
  { type: 'int8', values: integerForms },
  { type: 'oid', values: integerForms },
  { type: 'numeric', values: decimals },
  { type: 'float4', values: floats },
  { type: 'float8', values: floats },
  { type: 'bool', values: booleans },
  { type: 'text', values: texts },
  { type: 'varchar', values: texts },
  { type: 'bpchar', values: texts },
  { type: 'name', values: names },
  { type: 'citext', values: texts },
  { type: 'uuid', values: uuids },
  { type: 'bytea', values: buffers },
  { type: 'date', values: fc.oneof(dates, dayForms) },
  { type: 'timestamp', values: fc.oneof(dates, dayForms, moments) },
  { type: 'timestamptz', values: fc.oneof(dates, dayForms, moments) },
  { type: 'colour', values: labels },
]

describe.each(DATABASES)('on %s', (_name, open) => {
  let database: SourceDatabase

  beforeAll(async () => {
    database = await open()
    await database.run(`
      create extension citext;
      create type colour as enum ('red', 'Red', 'dark blue', 'it''s', '~', '');
      ${CASES.map(({ type }) => meaning(type)).join('\n')}`)
  })
  afterAll(() => database.close())

  test.each(CASES)('$type', async ({ type, values }) => {
    const canonicalize = canonicalizerOf(column(type), { date: 'local', timestamp: 'local' })
    await fc.assert(
      fc.asyncProperty(fc.array(values, { minLength: 1, maxLength: 60 }), async (given) => {
        const canonicals = given.map(canonicalize)
        const meanings = await meaningsOf(database, type, [
          ...given.map((value) => asSent(value, type)),
          ...canonicals.map(exactText),
        ])
        const asGiven = meanings.slice(0, given.length)
        const asCanonical = meanings.slice(given.length)
        const exact = canonicals.flatMap((text, i) =>
          typeof text === 'string' ? [{ text, ...meaningAt(asCanonical, i) }] : [],
        )

        for (const [i, value] of given.entries()) {
          const canonical = canonicals[i] as Canonical
          const { printed, group } = meaningAt(asGiven, i)
          const at = `${typeof value} ${String(value)}`
          if (typeof canonical === 'string') {
            const understood = meaningAt(asCanonical, i)
            expect(understood.printed, `${at}: Postgres takes its canonical text`).not.toBeNull()
            if (printed !== null)
              expect(understood.group, `${at}: means the same as '${canonical}'`).toBe(group)
            expect(canonicalPrint(type, understood.printed as string), `${at}: what is printed for it`).toBe(
              canonical,
            )
          } else if (!(canonical instanceof Uncertain)) {
            const why = canonical instanceof Refusal ? canonical.problem : 'is impossible'
            expect(isNaNNumber(value) ? null : printed, `${at}: ${why}`).toBeNull()
          }
          for (const lookup of exact) {
            if (printed === null || lookup.group !== group) continue
            expect(canonicalPrint(type, printed), `${at}: found as '${lookup.text}', so it clears that`).toBe(
              lookup.text,
            )
          }
        }
        for (const [i, one] of exact.entries()) {
          for (const other of exact.slice(i + 1)) {
            expect(one.text === other.text, `'${one.text}' and '${other.text}' are one`).toBe(
              one.group === other.group,
            )
          }
        }
      }),
      { numRuns: 30, seed: 42 },
    )
  })
})

function column(type: string): ColumnInfo {
  return {
    field: 'value',
    name: 'value',
    type,
    sqlType: type,
    labels: type === 'colour' ? ['red', 'Red', 'dark blue', "it's", '~', ''] : undefined,
    deterministic: true,
    nullable: false,
  }
}

/** What the driver would send, were the value a parameter of `where value = $1`. */
function asSent(value: unknown, type: string): string | null {
  if (value instanceof Uint8Array) return `\\x${Buffer.from(value).toString('hex')}`
  if (!(value instanceof Date)) return String(value)
  if (Number.isNaN(value.getTime())) return null
  if (type === 'timestamptz') return momentOf(value, 'UTC')
  return momentOf(value, '')
}

function momentOf(date: Date, utc: 'UTC' | ''): string {
  const year = date[`get${utc}FullYear`]()
  const month = digits(date[`get${utc}Month`]() + 1, 2)
  const day = digits(date[`get${utc}Date`](), 2)
  const time = [date[`get${utc}Hours`](), date[`get${utc}Minutes`](), date[`get${utc}Seconds`]()]
  const clock = `${time.map((part) => digits(part, 2)).join(':')}.${digits(date[`get${utc}Milliseconds`](), 3)}`
  const zone = utc && '+00'
  return `${digits(year > 0 ? year : 1 - year, 4)}-${month}-${day} ${clock}${zone}${year > 0 ? '' : ' BC'}`
}

const exactText = (canonical: Canonical) => (typeof canonical === 'string' ? canonical : null)

const isNaNNumber = (value: unknown) => Number.isNaN(value)

interface Meaning {
  /** As a trigger prints it; null: Postgres refuses the text. */
  readonly printed: string | null
  /** The first of the texts that means an equal value. */
  readonly group: number
}

function meaningAt(meanings: readonly Meaning[], i: number): Meaning {
  return meanings[i] as Meaning
}

/** A cast that answers NULL instead of failing. */
function meaning(type: string): string {
  return `
    create function meaning_of_${type}(given text) returns ${type} language plpgsql
      set timezone = 'America/New_York' set datestyle = 'SQL, DMY' as $$
    begin return given::${type}; exception when others then return null; end $$;
    create function print_of_${type}(given ${type}) returns text language sql
      set timezone = 'UTC' set datestyle = 'ISO' set bytea_output = 'hex' set extra_float_digits = 1 as
      $$ select given::text $$;`
}

async function meaningsOf(
  database: SourceDatabase,
  type: string,
  given: readonly (string | null)[],
): Promise<Meaning[]> {
  // Postgres has neither of these two in a text, and the driver would make them something else.
  const texts = given.map((text) => (text?.includes('\0') || !text?.isWellFormed() ? null : text))
  const rows = await database.query(
    `with given as materialized (
       select at::int4 as at, meaning_of_${type}(given) as value
       from unnest($1::text[]) with ordinality as texts(given, at)
     )
     select print_of_${type}(value) as printed, (select min(at) from given other where other.value = given.value) as group
     from given order by at`,
    [texts],
  )
  return rows as unknown as Meaning[]
}
