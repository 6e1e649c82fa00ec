import { describe, expect, onTestFinished, test } from 'vitest'
import {
  canonicalizerOf,
  canonicalPrint,
  IMPOSSIBLE,
  Refusal,
  Uncertain,
} from '../../src/models/canonical.ts'
import type { ColumnInfo, DateReading } from '../../src/models/column.ts'

/*
 * Which text stands for a value, type by type. That these are Postgres' own ideas of equality is shown in
 * canonical.property.test.ts; here is what they look like.
 */

interface Given extends Partial<ColumnInfo> {
  readonly reading?: DateReading
}

function canonical(type: string, value: unknown, { reading = 'local', ...given }: Given = {}) {
  const column: ColumnInfo = {
    field: 'value',
    name: 'value',
    type,
    sqlType: type,
    labels: undefined,
    deterministic: true,
    nullable: true,
    ...given,
  }
  return canonicalizerOf(column, { date: reading, timestamp: reading })(value)
}

const uncertain = (text: string) => new Uncertain(text)
const refused = (problem: string) => new Refusal(problem)

describe('equal values have one text', () => {
  test.each<[type: string, text: string, values: unknown[]]>([
    ['int4', '42', [42, 42n, '42', '042', ' +42 ', '42.0', '4.2e1', 42.0]],
    ['int4', '0', [0, -0, 0n, '0', '-0', '0.0']],
    ['int8', '9007199254740993', [9007199254740993n, '9007199254740993']],
    ['numeric', '10.5', [10.5, '10.50', '010.5', '1.05e1', '+10.500']],
    ['numeric', '0', [0, -0, '0.00', '-0', '0e9']],
    ['numeric', '-0.001', [-0.001, '-.001', '-1e-3']],
    ['float8', '0.1', [0.1, '0.1', '1e-1', '.10']],
    ['float8', 'Infinity', [Number.POSITIVE_INFINITY, 'Infinity']],
    ['float4', '0.10000000149011612', [0.1, '0.1', Math.fround(0.1)]],
    ['bool', 'true', [true, 't', 'true']],
    ['bool', 'false', [false, 'f', 'false']],
    ['text', '1', [1, 1n, '1']],
    ['text', 'true', [true, 'true']],
    ['bpchar', 'NL', ['NL', 'NL   ']],
    ['citext', 'zoe@example.org', ['Zoe@Example.org', 'zoe@example.org']],
    [
      'uuid',
      'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
      [
        'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11',
        '{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}',
        'a0eebc999c0b4ef8bb6d6bb9bd380a11',
      ],
    ],
    ['bytea', '\\x00ff', [Buffer.from([0, 255]), new Uint8Array([0, 255]), '\\x00FF']],
    ['date', '2024-02-29', [new Date(2024, 1, 29), new Date(2024, 1, 29, 23, 59), '2024-02-29']],
    ['date', '0044-03-15 BC', [new Date(new Date(2000, 2, 15).setFullYear(-43)), '0044-03-15 BC']],
    [
      'timestamp',
      '2024-02-29 12:30:00.5',
      [new Date(2024, 1, 29, 12, 30, 0, 500), '2024-02-29 12:30:00.5', '2024-02-29T12:30:00.500'],
    ],
    [
      'timestamptz',
      '2024-02-29 12:30:00+00',
      [
        new Date('2024-02-29T12:30:00Z'),
        '2024-02-29 12:30:00+00',
        '2024-02-29T12:30:00.000Z',
        '2024-02-29 12:30:00+00:00',
      ],
    ],
    ['timestamptz', '2024-02-29 12:30:00.123456+00', ['2024-02-29T12:30:00.123456Z']],
  ])('%s: %j', (type, text, values) => {
    for (const value of values) expect(canonical(type, value), `${typeof value} ${String(value)}`).toBe(text)
  })

  test('a label of an enum is itself, in its own letters', () => {
    const labels = ['draft', 'Draft', "it's"]
    for (const label of labels) expect(canonical('status', label, { labels })).toBe(label)
  })

  test('a date means what the driver reads: local or UTC wall time', () => {
    const midnight = { local: new Date(2024, 5, 1), utc: new Date('2024-06-01T00:00:00Z') }
    for (const reading of ['local', 'utc'] as const) {
      expect(canonical('date', midnight[reading], { reading })).toBe('2024-06-01')
      expect(canonical('timestamp', midnight[reading], { reading })).toBe('2024-06-01 00:00:00')
    }
    // A timestamptz is a moment, however dates are read.
    expect(canonical('timestamptz', midnight.utc, { reading: 'none' })).toBe('2024-06-01 00:00:00+00')
  })
})

describe('no row can have a value that the type does not hold', () => {
  test.each<[type: string, values: unknown[]]>([
    ['int2', [32_768, -32_769, '40000']],
    ['int4', [4.2, '4.2', 2_147_483_648, 2n ** 31n, '99999999999999999999', 1e300, Number.POSITIVE_INFINITY]],
    ['int8', [2n ** 63n, 2 ** 63, '9223372036854775808']],
    ['float4', [1e39, '1e39', 1e-46]],
    ['float8', ['1e400', 10n ** 400n, '-1e-400']],
    ['text', ['a\0b']],
    ['citext', ['a\0b']],
  ])('%s', (type, values) => {
    for (const value of values) expect(canonical(type, value), String(value)).toBe(IMPOSSIBLE)
  })
})

describe('the database alone knows', () => {
  test.each<[what: string, type: string, values: unknown[]]>([
    ['which letters beyond ASCII are the same', 'citext', ['Zoë', '\u212a']],
    ['other words for true and false', 'bool', ['yes', 'TRUE', '1', 'maybe']],
    ['numbers that are words', 'numeric', ['NaN', 'Infinity', '-inf']],
    ['numbers that are words', 'float8', ['NaN', 'inf', '+Infinity']],
    ['how newer versions write numbers', 'int4', ['0x1F', '1_000']],
    [
      'which of two float4 is nearer to one halfway between them',
      'float4',
      [16_777_217, '1.000000059604644775390626'],
    ],
    ['what is left of a name that is too long', 'name', ['x'.repeat(64)]],
    [
      'dates it prints otherwise',
      'date',
      ['29 Feb 2024', '20240229', 'today', '2024-02-30', '0000-01-01', '02024-01-01'],
    ],
    [
      'times it prints otherwise',
      'timestamp',
      ['2024-02-29', '2024-02-29 24:00:00', '2024-02-29 12:00:00Z', '2024-02-29 12:00:00.1234567'],
    ],
    ['moments without a time zone', 'timestamptz', ['2024-02-29 12:00:00', '2024-02-29 12:00:00+02']],
    ['the end of time', 'timestamptz', ['infinity', '-infinity']],
    ['bytes that are not hex', 'bytea', ['abc', '\\000']],
    ['types we know nothing of', 'inet', ['10.0.0.1', '10.0.0.1/32']],
  ])('%s (%s)', (_what, type, values) => {
    for (const value of values) expect(canonical(type, value)).toEqual(uncertain(String(value)))
  })

  test('the end of time, which the driver reads as a number', () => {
    expect(canonical('timestamptz', Number.POSITIVE_INFINITY)).toEqual(uncertain('infinity'))
    expect(canonical('date', Number.NEGATIVE_INFINITY)).toEqual(uncertain('-infinity'))
  })

  test('a Date that is too early or too late for some of the types', () => {
    expect(canonical('timestamptz', new Date(8.64e15))).toEqual(uncertain('275760-09-13 00:00:00+00'))
    expect(canonical('timestamptz', new Date('-005000-01-01T00:00:00Z'))).toEqual(
      uncertain('5001-01-01 00:00:00+00 BC'),
    )
  })

  test('a label that was added to an enum after it was read', () => {
    expect(canonical('status', 'archived', { labels: ['draft'] })).toEqual(uncertain('archived'))
  })

  test('texts of a column whose collation calls different ones equal: they go there as they are', () => {
    expect(canonical('text', 'Ünlü', { deterministic: false })).toEqual(uncertain('Ünlü'))
    // In Turkish the small letter of I is another one than i.
    expect(canonical('citext', 'DIYARBAKIR', { deterministic: false })).toEqual(uncertain('DIYARBAKIR'))
  })
})

describe('refused, as it is no value of the type', () => {
  class Money {}

  test.each<[type: string, value: unknown, problem: string]>([
    ['int4', undefined, 'must be an integer, but is undefined'],
    ['int4', Number.NaN, 'must not be NaN'],
    ['int4', 'abc', 'must be a number, but is the string abc'],
    ['int4', 'Infinity', 'must be an integer, but is the string Infinity'],
    ['int4', true, 'must be an integer, but is the boolean true'],
    ['int4', {}, 'must be an integer, but is a Object'],
    ['numeric', Number.NaN, 'must not be NaN'],
    ['numeric', new Money(), 'must be a number, but is a Money'],
    ['float8', Number.NaN, 'must not be NaN'],
    ['float8', '1,5', 'must be a number, but is the string 1,5'],
    ['bool', 1, 'must be a boolean, but is the number 1'],
    ['text', Number.NaN, 'must not be NaN'],
    ['text', new Date(0), 'must be a text, but is a Date'],
    ['text', '\ud800', 'must be well-formed Unicode, but has a lone surrogate'],
    ['text', undefined, 'must be a text, but is undefined'],
    ['uuid', 'not-a-uuid', 'must be a uuid, but is the string not-a-uuid'],
    ['bytea', 7, 'must be a Buffer, but is the number 7'],
    ['date', new Date(Number.NaN), 'must not be an invalid Date'],
    ['date', 20240229, 'must be a date, but is the number 20240229'],
    ['timestamptz', 1_709_208_000_000, 'must be a timestamp, but is the number 1709208000000'],
    ['inet', ['10.0.0.1'], 'must be a text, but is a Array'],
    ['inet', Object.create(null), 'must be a text, but is a object'],
  ])('%s: %o', (type, value, problem) => {
    expect(canonical(type, value)).toEqual(refused(problem))
  })

  test('an enum label that is no text', () => {
    expect(canonical('status', 1, { labels: ['1'] })).toEqual(refused('must be a text, but is the number 1'))
  })

  test('the last moment of all, where the clock on the wall is already past it', () => {
    const zone = process.env.TZ
    process.env.TZ = 'Pacific/Auckland'
    onTestFinished(() => {
      if (zone === undefined) delete process.env.TZ
      else process.env.TZ = zone
    })
    expect(canonical('timestamp', new Date(8.64e15))).toEqual(
      refused('is too far off to be told in this time zone'),
    )
    expect(canonical('timestamptz', new Date(8.64e15))).toBeInstanceOf(Uncertain)
  })

  test('a Date where the driver makes something else of dates: which day or hour it is cannot be known', () => {
    const problem = 'is not read as a Date through this connection; give the value as the driver returns it'
    expect(canonical('date', new Date(), { reading: 'none' })).toEqual(refused(problem))
    expect(canonical('timestamp', new Date(), { reading: 'none' })).toEqual(refused(problem))
  })
})

describe('a value of a million characters takes no long time', () => {
  test.each<[type: string, value: string]>([
    ['int8', '9'.repeat(1_000_000)],
    ['int8', `${'0'.repeat(1_000_000)}1`],
    ['numeric', `0.${'0'.repeat(1_000_000)}1`],
    ['bpchar', `a${' '.repeat(1_000_000)}b`],
    ['float8', `${'1'.repeat(1_000_000)}x`],
    ['timestamp', `2024-02-29${' '.repeat(1_000_000)}`],
  ])('%s', (type, value) => {
    const began = performance.now()
    canonical(type, value)
    expect(performance.now() - began).toBeLessThan(1000)
  })
})

describe('what Postgres prints for a stored value comes to the text of every lookup that finds it', () => {
  test.each<[type: string, printed: string, text: string]>([
    ['int8', '42', '42'],
    ['numeric', '10.50', '10.5'],
    ['numeric', 'NaN', 'NaN'],
    ['float4', '0.1', '0.10000000149011612'],
    ['float8', '-0', '0'],
    ['float8', '1e+21', '1e+21'],
    ['bpchar', 'NL   ', 'NL'],
    ['citext', 'Zoe', 'zoe'],
    // A lookup of 'k' finds the Kelvin sign, so a write of one must clear the other.
    ['citext', '300 \u212a', '300 k'],
    ['citext', 'Zoë', 'Zoë'],
    ['bool', 't', 'true'],
    ['timestamptz', '2024-02-29 12:30:00.5+00', '2024-02-29 12:30:00.5+00'],
    ['bytea', '\\x00ff', '\\x00ff'],
    ['inet', '10.0.0.1', '10.0.0.1'],
    ['constructor', 'a type of that name', 'a type of that name'],
  ])('%s %s', (type, printed, text) => {
    expect(canonicalPrint(type, printed)).toBe(text)
  })
})
