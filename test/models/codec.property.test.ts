import fc from 'fast-check'
import pg from 'pg'
import { expect, test } from 'vitest'
import { createRowCodec, type RowCodec } from '../../src/models/codec.ts'
import { mutate, randomFrom } from '../support/mutations.ts'
import { differences, objectsIn } from './form.ts'

type Row = Record<string, unknown>

const interval = (text: string): unknown => pg.types.getTypeParser(1186)(text)

// Any UTF-16 units, lone surrogates included, and what is likely to be mistaken for something else.
const text = fc.oneof(
  fc.string({ unit: 'grapheme-ascii' }),
  fc.string({ unit: 'binary' }),
  fc.array(fc.integer({ min: 0, max: 0xffff })).map((units) => String.fromCharCode(...units)),
  fc.array(fc.integer({ min: 0x80, max: 0xff })).map((units) => String.fromCharCode(...units)),
  fc.string({ minLength: 1_100, maxLength: 1_300 }),
  fc.constantFrom(
    '__proto__',
    'constructor',
    'prototype',
    'toJSON',
    '["t"]',
    'null',
    '\ufffd',
    '\ufeff',
    '0',
    '-0',
  ),
)
const number = fc.oneof(
  fc.double(),
  fc.integer(),
  fc.maxSafeInteger(),
  fc.constantFrom(-0, 2 ** 51, -(2 ** 51), 1e300),
)
const date = fc.oneof(
  fc.date({ noInvalidDate: false }),
  fc.integer().map((ms) => new Date(ms * 1_000)),
)
const bytes = fc.uint8Array({ maxLength: 80 })
const span = fc
  .record({ days: fc.integer({ min: -99, max: 99 }), seconds: fc.integer({ min: 0, max: 59 }) })
  .map(({ days, seconds }) => interval(`${days} days 00:00:${String(seconds).padStart(2, '0')}`))

const leaf: fc.Arbitrary<unknown> = fc.oneof(
  { weight: 4, arbitrary: text },
  { weight: 4, arbitrary: number },
  fc.boolean(),
  fc.constantFrom(null, undefined),
  fc.bigInt(),
  date,
  bytes,
  bytes.map((each) => Buffer.from(each)),
  span,
)

const { value, json } = fc.letrec<{ value: unknown; json: unknown }>((tie) => {
  const objectOf = (inner: fc.Arbitrary<unknown>) =>
    fc.array(fc.tuple(text, inner), { maxLength: 6 }).map((entries) => Object.fromEntries(entries))
  return {
    value: fc.oneof(
      { maxDepth: 5, depthIdentifier: 'value' },
      { weight: 4, arbitrary: leaf },
      fc.array(tie('value'), { maxLength: 6 }),
      objectOf(tie('value')),
      objectOf(tie('value')).map((object) => Object.setPrototypeOf(object, null) as object),
      tie('json'),
    ),
    json: fc.oneof(
      { maxDepth: 4, depthIdentifier: 'json' },
      text,
      number,
      fc.boolean(),
      fc.constant(null),
      fc.array(tie('json'), { maxLength: 6 }),
      objectOf(tie('json')),
    ),
  }
})

/** The values of one column: of one type and null, as in a table, or anything. */
const column = fc.oneof(
  ...[
    text,
    number,
    fc.boolean(),
    fc.bigInt(),
    date,
    bytes,
    bytes.map((each) => Buffer.from(each)),
    json,
    span,
  ].map((each) => fc.constant(fc.option<unknown>(each))),
  fc.constant(value),
)
const names = fc.uniqueArray(
  fc.oneof(text, fc.constantFrom('__proto__', 'toString', '1', '2', 'id', "'", '"')),
  {
    minLength: 1,
    maxLength: 8,
  },
)

const table = (maxRows: number) =>
  names.chain((columns) =>
    fc.record({
      columns: fc.constant(columns),
      rows: fc
        .tuple(...columns.map(() => column))
        .chain((values) => fc.array(fc.tuple(...values), { maxLength: maxRows, minLength: 1 }))
        .map((rows) =>
          rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])) as Row),
        ),
    }),
  )

/** Objects, and the stretches of memory under binary ones, that two values have in common. */
function shared(a: unknown, b: unknown): object[] {
  const theirs = objectsIn(b)
  return objectsIn(a).filter((mine) => theirs.includes(mine) || theirs.some((their) => overlap(mine, their)))
}

function overlap(a: object, b: object): boolean {
  if (!(a instanceof Uint8Array && b instanceof Uint8Array) || a.buffer !== b.buffer) return false
  return a.byteOffset < b.byteOffset + b.length && b.byteOffset < a.byteOffset + a.length
}

test('a row comes back as it is, twice, sharing nothing', () => {
  fc.assert(
    fc.property(table(4), fc.nat({ max: 9 }), ({ columns, rows }, offset) => {
      const codec = createRowCodec(columns)
      for (const row of rows) {
        const payload = codec.encodeRow(row)
        const record = Buffer.concat([Buffer.alloc(offset, 'V'), payload])
        const first = codec.decodeRow(record, offset)
        const second = codec.decodeRow(record, offset)
        expect(differences(first, row)).toEqual([])
        expect(differences(second, row)).toEqual([])
        expect(shared(first, second)).toEqual([])
        expect(shared(first, [row, record, payload])).toEqual([])
      }
    }),
    { numRuns: 1_500, seed: 7 },
  )
})

test('rows come back as they are, sharing nothing', () => {
  fc.assert(
    fc.property(table(8), ({ columns, rows }) => {
      const codec = createRowCodec(columns)
      const record = codec.encodeRows(rows)
      const first = codec.decodeRows(record, 0)
      const second = codec.decodeRows(record, 0)
      expect(differences(first, rows)).toEqual([])
      expect(differences(second, rows)).toEqual([])
      expect(shared(first, second)).toEqual([])
      expect(shared(first, [rows, record])).toEqual([])
    }),
    { numRuns: 1_500, seed: 8 },
  )
})

test('another process reads the same, whatever was encoded before', () => {
  fc.assert(
    fc.property(table(6), ({ columns, rows }) => {
      const sender = createRowCodec(columns)
      const receiver = createRowCodec(columns)
      // Intervals are known to a process once it has met one.
      for (const name of columns) receiver.encodeRow({ ...nulls(columns), [name]: interval('1 day') })
      for (const row of rows)
        expect(differences(receiver.decodeRow(sender.encodeRow(row), 0), row)).toEqual([])
      expect(differences(receiver.decodeRows(sender.encodeRows(rows), 0), rows)).toEqual([])
    }),
    { numRuns: 500, seed: 9 },
  )
})

// `{ ...row, [name]: value }` defines, never assigns: fit for a column named __proto__.
const nulls = (columns: readonly string[]): Row => Object.fromEntries(columns.map((name) => [name, null]))

test('damaged bytes never throw, and give rows of the right form or none', () => {
  const columns = ['id', '__proto__', 'at', 'raw', 'big', 'json', 'any']
  const rows: Row[] = [
    [
      42,
      'Ada',
      new Date(5),
      Buffer.from('raw bytes'),
      5n,
      { a: [1, { b: null }] },
      [1n, new Date(1), { x: undefined }],
    ],
    [1.5, 'Łódź', null, new Uint8Array(5), 10n ** 30n, [1, 2, 3], interval('1 day')],
    [-7, '名前', new Date(Number.NaN), null, null, 'text', { nested: [Buffer.from('abc'), -0] }],
    [null, '\ud800', new Date(8.64e15), Buffer.alloc(300), 1n, { ['__proto__']: { c: 1 } }, null],
  ].map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])))
  const codec: RowCodec = createRowCodec(columns)
  const records = [
    ...rows.map((row) => codec.encodeRow(row)),
    codec.encodeRows(rows),
    codec.encodeRows(rows.slice(0, 2)),
  ]
  const prototypes = new Set<unknown>([Object.prototype, Array.prototype, Date.prototype, null])
  for (const known of [Buffer.prototype, Uint8Array.prototype, Object.getPrototypeOf(interval('1 day'))])
    prototypes.add(known)
  const builtins = [
    Object.prototype,
    Array.prototype,
    Function.prototype,
    Object.getPrototypeOf(interval('1 day')),
  ]
  const before = builtins.map((each) => Reflect.ownKeys(each).length)
  const random = randomFrom(20_240_229)
  let survivors = 0
  for (let run = 0; run < 20_000; run++) {
    const bytes = mutate(records[run % records.length] as Buffer, records, random)
    const answers = [codec.decodeRow(bytes, 0), ...(codec.decodeRows(bytes, 0) ?? [])]
    for (const row of answers) {
      if (row === undefined) continue
      survivors++
      const intact =
        Object.getPrototypeOf(row) === Object.prototype &&
        Object.keys(row).join() === columns.join() &&
        objectsIn(row).every((object) => prototypes.has(Object.getPrototypeOf(object)))
      if (!intact) expect.fail(`run ${run}: ${bytes.toString('hex')}`)
    }
  }
  expect(builtins.map((each) => Reflect.ownKeys(each).length)).toEqual(before)
  expect('polluted' in {}).toBe(false)
  // Else the mutations would only ever test the header.
  expect(survivors).toBeGreaterThan(1_000)
  expect(differences(codec.decodeRow(records[0] as Buffer, 0), rows[0])).toEqual([])
})
