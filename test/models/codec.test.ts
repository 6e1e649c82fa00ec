import { execFileSync } from 'node:child_process'
import { isDeepStrictEqual } from 'node:util'
import pg from 'pg'
import { afterEach, describe, expect, test, vi } from 'vitest'
import {
  createRowCodec,
  type RowCodec,
  RowFormError,
  UnstorableValueError,
  type ValueType,
} from '../../src/models/codec.ts'
import { differences } from './form.ts'

type Row = Record<string, unknown>

const parse = (oid: number, text: string): unknown => pg.types.getTypeParser(oid)(text)
const interval = (text: string) => parse(1186, text) as object

class Decimal {
  readonly #digits: string
  constructor(digits: string) {
    this.#digits = digits
  }
  toString() {
    return this.#digits
  }
}
const decimal: ValueType<Decimal> = {
  name: 'decimal',
  is: (value) => value instanceof Decimal,
  encode: (value) => value.toString(),
  decode: (data) => new Decimal(String(data)),
}
const regexp: ValueType<RegExp> = {
  name: 'regexp',
  is: (value) => value instanceof RegExp,
  encode: ({ source, flags }) => ({ source, flags }),
  decode: (data) => {
    const { source, flags } = data as RegExp
    return new RegExp(source, flags)
  },
}

/** Encodes, decodes at another offset, and checks that row and rows come back as they went in. */
function expectSame(codec: RowCodec, ...rows: Row[]) {
  const prefix = Buffer.from('V\0\x01ep0c')
  for (const row of rows) {
    const back = codec.decodeRow(Buffer.concat([prefix, codec.encodeRow(row)]), prefix.length)
    expect(differences(back, row)).toEqual([])
    expect(isDeepStrictEqual(back, row)).toBe(true)
  }
  const back = codec.decodeRows(Buffer.concat([prefix, codec.encodeRows(rows)]), prefix.length)
  expect(differences(back, rows)).toEqual([])
  expect(isDeepStrictEqual(back, rows)).toBe(true)
}

const expectValue = (value: unknown, options?: Parameters<typeof createRowCodec>[1]) => {
  const codec = createRowCodec(['value', 'other'], options)
  const row = (inner: unknown) => ({ value: inner, other: 1 })
  expectSame(codec, row(value))
  expectSame(codec, row(null), row(value), row(null))
  expectSame(codec, row([value, { nested: [value] }]))
  expectSame(codec, row('text'), row(value), row(1.5), row(new Date(0)))
}

const floatBytes = (value: number) => [...Buffer.from(new Float64Array([value]).buffer)]

/** A record with one 't' column that holds `data`: JSON text, or what to make it of. */
function taggedRecord(codec: RowCodec, data: unknown): Buffer {
  const text = Buffer.from(typeof data === 'string' ? data : JSON.stringify(data), 'latin1')
  const length = text.length + 1
  const fields = [(length % 128) | 128, ((length >> 7) % 128) | 128, length >> 14]
  return Buffer.concat([
    Buffer.from(`${codec.fingerprint}rt`),
    Buffer.from([fields.length * 4, ...fields]),
    text,
  ])
}

afterEach(() => {
  vi.unstubAllGlobals()
  vi.useRealTimers()
})

describe('values come back with the same type and prototype', () => {
  test.each<[string, unknown]>([
    ['zero', 0],
    ['negative zero', -0],
    [
      'small numbers',
      [1, -1, 63, 64, 126, 127, 128, -127, -128, -129, 16_383, 16_384, 2_097_152, 268_435_456],
    ],
    [
      'large whole numbers',
      [2 ** 31, -(2 ** 31), 2 ** 35, 2 ** 42, 2 ** 49, 2 ** 51, -(2 ** 51), 2 ** 53, 2 ** 60],
    ],
    ['the largest safe integers', [Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER]],
    ['fractions', [0.1, 1 / 3, 5e-324, 1.7976931348623157e308]],
    ['NaN', Number.NaN],
    ['Infinity', Number.POSITIVE_INFINITY],
    ['-Infinity', Number.NEGATIVE_INFINITY],
    ['an empty string', ''],
    ['NUL', 'a\0b\0'],
    ['Latin-1', 'Žluťoučký naïve Müller ÿ'],
    ['UTF-8', 'Łukasz Kowalski writes a rather long line with one €'],
    ['East Asian text', '日本語のテキスト'],
    ['emoji', '👩‍👩‍👧 and more'],
    ['a byte order mark', '\ufeffabc\ufeff'],
    ['a written replacement character', 'bad \ufffd text, all in all'],
    ['lone surrogates', ['\ud800', 'a\udc00b', '\udc00\ud800']],
    ['what looks like ours', ['["t"]', '[]', 'x', '__proto__']],
    ['booleans', [true, false]],
    ['null', null],
    ['undefined', undefined],
    ['bigint', [0n, 1n, -1n, 2n ** 51n, -(2n ** 51n), 2n ** 63n - 1n, -(2n ** 63n), 10n ** 100n]],
    ['dates', [new Date(0), new Date(-1), new Date(1_700_000_000_123), new Date('1969-12-31T23:59:59.999Z')]],
    ['extreme dates', [new Date(8.64e15), new Date(-8.64e15), new Date(2 ** 47), new Date(-(2 ** 47) + 1)]],
    ['Buffer', Buffer.from([0, 1, 127, 128, 255])],
    ['an empty Buffer', Buffer.alloc(0)],
    ['a long Buffer', Buffer.alloc(100_000, 'xyz')],
    ['Uint8Array', new Uint8Array([0, 1, 255])],
    ['an empty Uint8Array', new Uint8Array()],
    ['a view into other bytes', new Uint8Array(new Uint8Array([1, 2, 3, 4]).buffer, 1, 2)],
    ['an empty array', []],
    ['nested arrays', [[1, [2, [null, 'x']]], []]],
    ['undefined in an array', [undefined, 1, undefined]],
    ['an empty object', {}],
    ['json', { a: 1, b: [true, null, { c: 'ü' }], '': 0, 10: 'ten', 9: 'nine' }],
    ['own __proto__', JSON.parse('{"__proto__":{"polluted":1},"constructor":{"prototype":2},"toJSON":"x"}')],
    ['own __proto__, not plain', Object.fromEntries([['__proto__', 1n]])],
    ['json with odd numbers', JSON.parse('{"zero":-0,"big":1e400,"small":[-1e400]}')],
    ['undefined in an object', { a: undefined, b: 1 }],
    ['no prototype', Object.assign(Object.create(null), { a: 1, b: Object.create(null) })],
    [
      'mixed nesting',
      { at: new Date(5), id: 5n, raw: Buffer.from('x'), bytes: new Uint8Array(2), list: [-0, {}] },
    ],
    ['an interval', interval('1 year 2 mons -3 days 04:05:06.789')],
    ['an interval of nothing', interval('00:00:00')],
    ['intervals', parse(1187, '{"1 day","-00:00:01.5",NULL}')],
  ])('%s', (_, value) => {
    expectValue(value)
    if (Array.isArray(value)) for (const item of value) expectValue(item)
  })

  test("what pg's own parsers give", () => {
    const row = {
      int8: parse(20, '9223372036854775807'),
      numeric: parse(1700, '1.10'),
      float8: parse(701, '-0'),
      nan: parse(701, 'NaN'),
      bool: parse(16, 't'),
      bytea: parse(17, '\\xdeadbeef'),
      timestamptz: parse(1184, '2024-02-29 12:00:00.123+00'),
      bc: parse(1184, '0044-03-15 12:00:00+00 BC'),
      infinity: parse(1184, 'infinity'),
      date: parse(1082, '2024-02-29'),
      json: parse(114, '{"a":[1,"2",null]}'),
      jsonString: parse(3802, '"text"'),
      jsonNumber: parse(3802, '1e400'),
      int4s: parse(1007, '{1,2,NULL,3}'),
      texts: parse(1009, '{a,"b c",NULL}'),
      dates: parse(1185, '{"2024-02-29 12:00:00+00",NULL}'),
      byteas: parse(1001, '{"\\\\xdead",NULL}'),
      jsons: parse(3807, '{"{\\"a\\":1}"}'),
      point: parse(600, '(1.5,-2)'),
      circle: parse(718, '<(1,2),3>'),
      interval: interval('1 day'),
    }
    const nulls = Object.fromEntries(Object.keys(row).map((column) => [column, null]))
    expectSame(createRowCodec(Object.keys(row)), row, nulls, row)
  })

  test('an invalid date, though node does not call it equal to another', () => {
    const codec = createRowCodec(['at', 'list'])
    const row = { at: new Date(Number.NaN), list: [new Date(Number.NaN)] }
    expect(differences(codec.decodeRow(codec.encodeRow(row), 0), row)).toEqual([])
  })

  test('columns of any name', () => {
    const columns = [
      '__proto__',
      'constructor',
      'toString',
      '',
      '1',
      '0',
      'a b',
      '"',
      "'",
      '\\',
      '\u2028',
      '\ud800',
      '`$' + '{x}`',
    ]
    const row = Object.fromEntries(columns.map((column, i) => [column, i]))
    expectSame(createRowCodec(columns), row)
    expect(
      Object.getPrototypeOf(createRowCodec(columns).decodeRow(createRowCodec(columns).encodeRow(row), 0)),
    ).toBe(Object.prototype)
  })

  test('a list of none, and one of many', () => {
    const codec = createRowCodec(['id', 'name'])
    expectSame(codec)
    expectSame(
      codec,
      ...Array.from({ length: 1_000 }, (_, id) => ({ id, name: id % 3 ? `né ${id}` : `名 ${id}` })),
    )
  })

  test('short strings beside a long one', () => {
    const row = {
      title: 'a title of some length',
      body: 'ü€'.repeat(5_000),
      lone: '\ud800 and some more text',
      end: 'é',
    }
    expectSame(createRowCodec(Object.keys(row)), row, {
      ...row,
      body: 'x'.repeat(5_000),
      lone: 'fifteen letters',
    })
  })

  test('dates made under a fake clock', () => {
    vi.useFakeTimers({ now: 1_000_000 })
    expectSame(createRowCodec(['at']), { at: new Date() })
  })

  test('the order of keys in a row does not matter', () => {
    const codec = createRowCodec(['a', 'b'])
    expect(codec.encodeRow({ b: 2, a: 1 })).toEqual(codec.encodeRow({ a: 1, b: 2 }))
  })

  test('a row that is decoded twice shares nothing', () => {
    const codec = createRowCodec(['at', 'raw', 'bytes', 'json', 'tagged'])
    const row = {
      at: new Date(1),
      raw: Buffer.from('a'),
      bytes: new Uint8Array([1]),
      json: { a: [1] },
      tagged: [1n],
    }
    const record = codec.encodeRow(row)
    const first = codec.decodeRow(record, 0) as typeof row
    first.at.setTime(5)
    first.raw.fill(0)
    first.bytes.fill(0)
    first.json.a.push(2)
    first.tagged.push(2n)
    expect(differences(codec.decodeRow(record, 0), row)).toEqual([])
    record.fill(0)
    expect(first.json).toEqual({ a: [1, 2] })
  })
})

describe('value types', () => {
  const same = (codec: RowCodec, row: Row) => codec.decodeRow(codec.encodeRow(row), 0)

  test('store classes of the application, alone and nested', () => {
    const codec = createRowCodec(['price', 'pattern', 'all'], { valueTypes: [regexp, decimal] })
    const row = {
      price: new Decimal('1.10'),
      pattern: /a+/gu,
      all: { prices: [new Decimal('2'), null], p: /x/ },
    }
    const back = same(codec, row) as typeof row
    expect(back.price).toBeInstanceOf(Decimal)
    expect(String(back.price)).toBe('1.10')
    expect(back.pattern).toEqual(/a+/gu)
    expect(String(back.all.prices[0])).toBe('2')
    expect(back.all.p).toEqual(/x/)
    expect(same(codec, { price: null, pattern: 'text', all: new Decimal('3') })).toMatchObject({
      price: null,
      pattern: 'text',
    })
  })

  test('come before what the codec learns by itself', () => {
    const iso: ValueType = {
      name: 'interval',
      is: (value) => value?.constructor.name === 'PostgresInterval',
      encode: (value) => (value as { toISOString(): string }).toISOString(),
      decode: () => interval('1 day'),
    }
    const sender = createRowCodec(['i'], { valueTypes: [iso] })
    const receiver = createRowCodec(['i'], { valueTypes: [iso] })
    expect(receiver.decodeRow(sender.encodeRow({ i: interval('1 day') }), 0)).toEqual({
      i: interval('1 day'),
    })
  })

  test('are part of the fingerprint by name, in any order', () => {
    const of = (...valueTypes: ValueType[]) => createRowCodec(['a'], { valueTypes }).fingerprint
    expect(of(decimal, regexp)).toBe(of(regexp, decimal))
    expect(of(decimal)).not.toBe(of(regexp))
    expect(of()).toBe(createRowCodec(['a']).fingerprint)
  })

  test('that fail make the row unstorable, or a miss', () => {
    const bad = (type: Partial<ValueType>) =>
      createRowCodec(['a'], { valueTypes: [{ ...(decimal as ValueType), ...type }] })
    const row = { a: new Decimal('1') }
    const thrower = () => {
      throw new RangeError('no')
    }
    for (const encode of [thrower, () => undefined, () => 1n, () => Number.NaN, () => new Date()]) {
      expect(() => bad({ encode }).encodeRow(row)).toThrow(UnstorableValueError)
      expect(() => bad({ encode }).encodeRow({ a: [row.a] })).toThrow(UnstorableValueError)
    }
    expect(() => bad({ is: thrower }).encodeRow(row)).toThrow(UnstorableValueError)
    for (const decode of [thrower, () => undefined, () => ({})]) {
      expect(same(bad({ decode }), row)).toBeUndefined()
      expect(same(bad({ decode }), { a: [row.a] })).toBeUndefined()
    }
  })

  test('may use a codec themselves', () => {
    const inner = createRowCodec(['digits'])
    const nested: ValueType<Decimal> = {
      ...decimal,
      encode: (value) =>
        codec.encodeRow({ a: 'x', b: inner.encodeRow({ digits: String(value) }) }).toString('base64'),
      decode: (data) => {
        const { b } = codec.decodeRow(Buffer.from(String(data), 'base64'), 0) as { b: Buffer }
        return new Decimal(String(inner.decodeRow(b, 0)?.digits))
      },
    }
    const codec = createRowCodec(['a', 'b'], { valueTypes: [nested] })
    for (let i = 0; i < 3; i++) {
      const back = same(codec, { a: 'some text', b: new Decimal('7') })
      expect([back?.a, String(back?.b)]).toEqual(['some text', '7'])
    }
  })

  test.each([
    ['a capital', [{ ...decimal, name: 'Decimal' }]],
    ['no name', [{ ...decimal, name: '' }]],
    ['a name twice', [decimal, { ...regexp, name: 'decimal' }]],
    ['too many', Array.from({ length: 27 }, (_, i) => ({ ...decimal, name: `type${i}` }))],
  ])('are refused: %s', (_, valueTypes) => {
    expect(() => createRowCodec(['a'], { valueTypes: valueTypes as ValueType[] })).toThrow(TypeError)
  })
})

describe('what cannot be stored faithfully is refused', () => {
  const deep = (levels: number, leaf: unknown) => {
    let value = leaf
    for (let i = 0; i < levels; i++) value = i % 2 ? { value } : [value]
    return value
  }
  const withHole = (list: unknown[]) => {
    delete list[1]
    return list
  }
  const circular: { self?: unknown; other?: unknown } = {}
  circular.self = circular
  circular.other = circular

  test.each<[string, unknown, RegExp]>([
    ['a function', () => 1, /function/],
    ['a symbol', Symbol('s'), /symbol/],
    ['a Map', new Map(), /an instance of Map; declare a ValueType/],
    ['a Set', new Set(), /Set/],
    ['a RegExp', /x/, /RegExp/],
    ['an Error', new Error('x'), /Error/],
    ['a Promise', Promise.resolve(), /Promise/],
    ['a boxed number', Object(1), /Number/],
    ['a boxed string', Object('x'), /String/],
    ['another typed array', new Float64Array(1), /Float64Array/],
    ['an ArrayBuffer', new ArrayBuffer(1), /ArrayBuffer/],
    ['a class', new (class Money {})(), /Money/],
    ['a Date of a subclass', new (class extends Date {})(), /unnamed|class/],
    ['an array of a subclass', new (class List extends Array {})(), /List/],
    ['a false Date', Object.create(Date.prototype), /Date/],
    ['a false Buffer', Object.create(Buffer.prototype), /Buffer/],
    ['a Date with a property', Object.assign(new Date(), { x: 1 }), /Date/],
    ['a false interval', new (class PostgresInterval extends Map {})(), /PostgresInterval/],
    [
      'an interval with an accessor',
      Object.defineProperty(interval('1 day'), 'x', { get: () => 1, enumerable: true }),
      /Interval/,
    ],
    ['holes', withHole([1, 2, 3]), /holes/],
    ['an array with a property', Object.assign([1], { index: 0 }), /extra properties/],
    ['a hole made up for by a property', Object.assign(withHole([1, 2, 3]), { x: 1 }), /holes/],
    ['a symbol key', { [Symbol('s')]: 1 }, /symbols/],
    ['a hidden key', Object.defineProperty({}, 'x', { value: 1 }), /hidden/],
    [
      'a throwing getter',
      Object.defineProperty({}, 'x', { get: () => JSON.parse('{'), enumerable: true }),
      /threw/,
    ],
    ['a circle', circular, /circular/],
    ['too deep json', deep(201, 1), /deeper than 200/],
    ['too deep', deep(201, 1n), /deeper than 200/],
  ])('%s', (_, value, reason) => {
    const codec = createRowCodec(['id', 'value'])
    for (const held of [value, { a: [value] }]) {
      const encode = () => codec.encodeRow({ id: 1, value: held })
      expect(encode).toThrow(UnstorableValueError)
      expect(encode).toThrow(
        expect.objectContaining({ column: 'value', reason: expect.stringMatching(reason) }),
      )
      expect(() =>
        codec.encodeRows([
          { id: 1, value: null },
          { id: 1, value: held },
        ]),
      ).toThrow(UnstorableValueError)
    }
    expectSame(codec, { id: 1, value: 'the codec still works' })
  })

  test('the message tells the place, and nothing of the value', () => {
    const codec = createRowCodec(['settings'])
    expect(() => codec.encodeRow({ settings: { a: [0, { b: new Map([['secret', 1]]) }] } })).toThrow(
      /^Column "settings" cannot be cached: an instance of Map; declare a ValueType for it \(at \.a\[1\]\.b\)$/,
    )
  })

  test('200 levels are fine', () => {
    for (const leaf of [1, 1n, -0, undefined, 'x'])
      expectSame(createRowCodec(['value']), { value: deep(200, leaf) })
  })

  test('a getter of the row that throws', () => {
    const row = {
      get a(): number {
        throw new RangeError('no')
      },
    }
    expect(() => createRowCodec(['a']).encodeRow(row)).toThrow(UnstorableValueError)
  })
})

describe('rows of another form are refused', () => {
  const codec = createRowCodec(['id', 'name'])
  test.each<[string, object, string | undefined]>([
    ['a column missing', { id: 1 }, 'name'],
    ['a column more', { id: 1, name: 'x', age: 3 }, 'age'],
    ['another column', { id: 1, nome: 'x' }, 'name'],
    ['an inherited column', Object.setPrototypeOf({ id: 1 }, { name: 'x' }), undefined],
    ['a symbol', { id: 1, name: 'x', [Symbol('s')]: 1 }, 'Symbol(s)'],
    ['no prototype', Object.assign(Object.create(null), { id: 1, name: 'x' }), undefined],
    ['an array', [1, 'x'], undefined],
  ])('%s', (_, row, column) => {
    expect(() => codec.encodeRow(row as Row)).toThrow(RowFormError)
    expect(() => codec.encodeRows([{ id: 1, name: 'x' }, row as Row])).toThrow(
      expect.objectContaining({ column }),
    )
  })

  test('names of Object.prototype are not found by themselves', () => {
    expect(() => createRowCodec(['toString']).encodeRow({})).toThrow(RowFormError)
    expect(() => createRowCodec(['__proto__']).encodeRow({})).toThrow(RowFormError)
  })

  test('so are column lists', () => {
    expect(() => createRowCodec([])).toThrow(RowFormError)
    expect(() => createRowCodec(['a', 'b', 'a'])).toThrow(expect.objectContaining({ column: 'a' }))
  })
})

const RECORD = '392d6b31726e736428da0404030068e5cf8b815a6feb'

describe('the fingerprint', () => {
  const of = (columns: string[], salt?: string) =>
    createRowCodec(columns, salt === undefined ? {} : { salt }).fingerprint

  test('is four ASCII characters and begins the record', () => {
    const codec = createRowCodec(['a'])
    expect(codec.fingerprint).toMatch(/^[\w-]{4}$/)
    expect(codec.encodeRow({ a: 1 }).toString('latin1', 0, 4)).toBe(codec.fingerprint)
    expect(codec.encodeRows([]).toString('latin1', 0, 4)).toBe(codec.fingerprint)
    expect(codec.columns).toEqual(['a'])
  })

  test('tells columns, their order and the salt apart', () => {
    const all = [of(['a', 'b']), of(['b', 'a']), of(['ab']), of(['a,b']), of(['a']), of(['a', 'b'], 'x')]
    expect(new Set(all).size).toBe(all.length)
    expect(of(['a', 'b'], '')).toBe(of(['a', 'b']))
  })

  test('is the same for ever: bytes of other processes and versions are read', () => {
    const codec = createRowCodec(['id', 'name', 'at'])
    const row = { id: 300, name: 'Zoë', at: new Date(1_700_000_000_000) }
    const record = Buffer.from(RECORD, 'hex')
    expect(codec.encodeRow(row).toString('hex')).toBe(RECORD)
    expect(codec.decodeRow(record, 0)).toEqual(row)
  })
})

describe('bytes that are not ours are a miss', () => {
  const codec = createRowCodec(['id', 'name', 'at', 'on', 'big', 'raw', 'json', 'any'])
  const row = {
    id: 300,
    name: 'Łódź, Poland',
    at: new Date(1_700_000_000_000),
    on: true,
    big: 2n ** 70n,
    raw: Buffer.from('raw'),
    json: { a: [1] },
    any: [1n, Buffer.from('x')],
  }
  const record = codec.encodeRow(row)
  const list = codec.encodeRows([row, row])

  test('each type truncated, or with something behind', () => {
    const one = createRowCodec(['value'])
    const all = [
      'text',
      'né',
      'Łódź',
      '\ud800x',
      1,
      1.5,
      true,
      2n ** 40n,
      2n ** 99n,
      new Date(1),
      new Date(8.64e15),
    ]
    for (const value of [...all, Buffer.from('abc'), new Uint8Array(3), { a: 1 }, [1n], '', null]) {
      const bytes = one.encodeRow({ value })
      const rows = one.encodeRows([{ value }])
      for (let cut = 1; cut < bytes.length; cut++)
        expect(one.decodeRow(bytes.subarray(0, -cut), 0)).toBeUndefined()
      for (let cut = 1; cut < rows.length; cut++)
        expect(one.decodeRows(rows.subarray(0, -cut), 0)).toBeUndefined()
      expect(one.decodeRow(Buffer.concat([bytes, Buffer.from(' ')]), 0)).toBeUndefined()
      expect(one.decodeRows(Buffer.concat([rows, Buffer.from(' ')]), 0)).toBeUndefined()
    }
  })

  test.each<[string, string, number[], string]>([
    ['a boolean of another code', 'o', [3], ''],
    ['a date of another code', 'd', [1, 0, 0, 0, 0, 0, 0], ''],
    ['a date of a fraction', 'd', [4, ...floatBytes(0.5)], ''],
    ['a date out of range', 'd', [4, ...floatBytes(9e15)], ''],
    ['a date of NaN', 'd', [4, ...floatBytes(Number.NaN)], ''],
    ['a hex bigint', 'i', [1, 5], '0x12'],
    ['a bigint of nothing', 'i', [1, 1], ''],
    ['a bigint of null', 'i', [1, 0], ''],
    ['a bigint of letters', 'i', [1, 2], 'x'],
    ['json cut short', 'j', [3], '{"'],
    ['json of another length', 'j', [2], '12'],
    ['text longer than told', 's', [2], 'abc'],
    ['text shorter than told', 's', [4], 'ab'],
    ['bytes longer than told', 'b', [2, 1, 1], ''],
    ['bytes shorter than told', 'b', [4, 1, 1], ''],
    ['fields left over', 'n', [4, 4], ''],
    ['a varint without an end', 'n', Array(40).fill(0xff), ''],
    ['a varint beyond all integers', 'n', [...Array(8).fill(0xff), 0x0f], ''],
    ['a value type not declared', 'A', [2], 'x'],
  ])('fields: %s', (_, tag, fields, text) => {
    const one = createRowCodec(['value'])
    const of = (mode: number) => {
      const header = Buffer.from(`${one.fingerprint}r${tag}`)
      return Buffer.concat([header, Buffer.from([fields.length * 4 + mode, ...fields]), Buffer.from(text)])
    }
    for (const mode of [0, 1, 2, 3]) expect(one.decodeRow(of(mode), 0)).toBeUndefined()
  })

  test('a text mode that does not exist', () => {
    const one = createRowCodec(['value'])
    const bytes = one.encodeRow({ value: '\ud800' })
    expect(bytes[6]).toBe(1 * 4 + 2)
    expect(one.decodeRow(bytes, 0)).toEqual({ value: '\ud800' })
    bytes[6] = 1 * 4 + 3
    expect(one.decodeRow(bytes, 0)).toBeUndefined()
  })

  test('truncated anywhere, or with something behind', () => {
    for (let size = 0; size < record.length; size++)
      expect(codec.decodeRow(record.subarray(0, size), 0)).toBeUndefined()
    for (let size = 0; size < list.length; size++)
      expect(codec.decodeRows(list.subarray(0, size), 0)).toBeUndefined()
    expect(codec.decodeRow(Buffer.concat([record, Buffer.from(' ')]), 0)).toBeUndefined()
    expect(codec.decodeRows(Buffer.concat([list, Buffer.from(' ')]), 0)).toBeUndefined()
  })

  test('a list is no row, and a row no list', () => {
    expect(codec.decodeRow(list, 0)).toBeUndefined()
    expect(codec.decodeRows(record, 0)).toBeUndefined()
  })

  test('another fingerprint', () => {
    const other = createRowCodec(codec.columns, { salt: 'other' })
    expect(other.decodeRow(record, 0)).toBeUndefined()
    expect(other.decodeRows(list, 0)).toBeUndefined()
  })

  test('offsets that lead nowhere', () => {
    for (const offset of [
      1,
      3,
      record.length,
      record.length + 1,
      2 ** 40,
      -1,
      -100,
      0.5,
      Number.POSITIVE_INFINITY,
    ]) {
      expect(() => codec.decodeRow(record, offset)).not.toThrow()
      expect(codec.decodeRow(record, offset)).toBeUndefined()
    }
  })

  test('not even a buffer', () => {
    for (const odd of [null, undefined, 'text', {}, []]) {
      expect(codec.decodeRow(odd as unknown as Buffer, 0)).toBeUndefined()
      expect(codec.decodeRows(odd as unknown as Buffer, 0)).toBeUndefined()
    }
  })

  test('the tag of another type', () => {
    const columns = {
      s: 'text',
      n: 1.5,
      o: true,
      i: 10n ** 30n,
      d: new Date(5),
      b: Buffer.from('abc'),
      j: { a: 1 },
    }
    for (const [tag, value] of Object.entries(columns)) {
      const one = createRowCodec(['value'])
      const bytes = one.encodeRow({ value })
      expect(String.fromCharCode(bytes[5] as number)).toBe(tag)
      for (const other of ['d', 'o', 'A', 'Z', '@', '[', 'x', '\0', '\xff', ' ']) {
        if (other === tag) continue
        bytes.write(other, 5, 'latin1')
        expect(one.decodeRow(bytes, 0)).toBeUndefined()
      }
    }
  })

  test('invalid UTF-8', () => {
    const one = createRowCodec(['value'])
    const bytes = one.encodeRow({ value: 'plain text with one € sign' })
    const at = bytes.indexOf('€')
    expect(at).toBeGreaterThan(0)
    for (const damage of ['ff', 'c0', '80']) {
      for (const place of [at, at - 2, bytes.length - 1]) {
        const copy = Buffer.from(bytes)
        copy.write(damage, place, 'hex')
        expect(one.decodeRow(copy, 0)).toBeUndefined()
      }
    }
  })

  test('lengths beyond all bounds', () => {
    const one = createRowCodec(['value'])
    const huge = Buffer.alloc(9, 0xff)
    for (const tag of 'snoidbujt') {
      for (const fields of [
        huge,
        Buffer.from([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        Buffer.from([0x80]),
      ]) {
        const head = Buffer.from([fields.length * 4])
        const bytes = Buffer.concat([Buffer.from(`${one.fingerprint}r${tag}`), head, fields])
        const back = one.decodeRow(bytes, 0)
        if (back !== undefined) expect(typeof back.value).toMatch(/number|bigint/)
      }
      expect(
        one.decodeRow(Buffer.concat([Buffer.from(`${one.fingerprint}r${tag}`), huge]), 0),
      ).toBeUndefined()
    }
    expect(one.decodeRows(Buffer.concat([Buffer.from(`${one.fingerprint}ls`), huge]), 0)).toBeUndefined()
    expect(
      one.decodeRows(Buffer.concat([Buffer.from(`${one.fingerprint}ls`), huge.fill(0x7f)]), 0),
    ).toBeUndefined()
  })

  test.each<[string, unknown]>([
    ['no code', []],
    ['an unknown code', ['z']],
    ['a code that is no string', [1, 2]],
    ['a bare object', { a: 1 }],
    ['a bare object inside', ['a', { __proto__: null, a: 1 }]],
    ['a date of text', ['d', 'x']],
    ['a date out of range', ['d', 9e15]],
    ['a date of a fraction', ['d', 0.5]],
    ['a date with more', ['d', 1, 2]],
    ['a date of null', ['d', null]],
    ['a bigint of letters', ['i', '12x']],
    ['a bigint of nothing', ['i', '']],
    ['a bigint of a number', ['i', 12]],
    ['a hex bigint', ['i', '0x12']],
    ['base64 with blanks', ['b', 'YW Jj']],
    ['base64 of another alphabet', ['b', '_-_-']],
    ['base64 cut short', ['b', 'YWJ']],
    ['base64 padded inside', ['u', 'YQ==YQ==']],
    ['base64 of nothing but padding', ['u', '====']],
    ['base64 that is no string', ['u', [1]]],
    ['an odd number of ours', ['f', '1']],
    ['a number by inheritance', ['f', 'constructor']],
    ['undefined with more', ['x', 1]],
    ['a key without a value', ['o', 'a']],
    ['a key that is no string', ['o', 1, 2]],
    ['a class not met yet', ['c', 'PostgresInterval', 'days', 1]],
    ['a class by inheritance', ['c', '__proto__']],
    ['a class without a name', ['c']],
    ['a value type not declared', ['v', 'decimal', '1']],
    ['damage deep inside', ['a', ['o', 'x', ['a', ['d', 'x']]]]],
  ])('tagged: %s', (_, data) => {
    const one = createRowCodec(['value'])
    expect(one.decodeRow(taggedRecord(one, data), 0)).toBeUndefined()
    expect(one.decodeRow(taggedRecord(one, ['a', data]), 0)).toBeUndefined()
  })

  test('tagged: a value type with more than its data', () => {
    const one = createRowCodec(['value'], { valueTypes: [decimal] })
    expect(String(one.decodeRow(taggedRecord(one, ['v', 'decimal', '1']), 0)?.value)).toBe('1')
    expect(one.decodeRow(taggedRecord(one, ['v', 'decimal', '1', '2']), 0)).toBeUndefined()
  })

  test('tagged: nested too deep', () => {
    const one = createRowCodec(['value'])
    const nested = (levels: number) => `${'["a",'.repeat(levels)}1${']'.repeat(levels)}`
    expect(one.decodeRow(taggedRecord(one, nested(200)), 0)).toBeDefined()
    expect(one.decodeRow(taggedRecord(one, nested(202)), 0)).toBeUndefined()
    expect(one.decodeRow(taggedRecord(one, nested(5_000)), 0)).toBeUndefined()
  })

  test('tagged: __proto__ and setters stay without effect', () => {
    const one = createRowCodec(['value'])
    const { value } = one.decodeRow(taggedRecord(one, ['o', '__proto__', ['o', 'polluted', 1]]), 0) as {
      value: object
    }
    expect(Object.getPrototypeOf(value)).toBe(Object.prototype)
    expect(Object.keys(value)).toEqual(['__proto__'])
    expect('polluted' in {}).toBe(false)
    one.encodeRow({ value: interval('1 day') })
    const learned = one.decodeRow(taggedRecord(one, ['c', 'PostgresInterval', '__proto__', ['o']]), 0) as {
      value: object
    }
    expect(Object.getPrototypeOf(learned.value)).toBe(Object.getPrototypeOf(interval('1 day')))
  })

  test('a class is known once it was encoded, in that column', () => {
    const sender = createRowCodec(['a', 'b'])
    const receiver = createRowCodec(['a', 'b'])
    const both = { a: interval('1 day'), b: interval('2 days') }
    const bytes = sender.encodeRow(both)
    expect(receiver.decodeRow(bytes, 0)).toBeUndefined()
    receiver.encodeRow({ a: interval('5 days'), b: null })
    expect(receiver.decodeRow(bytes, 0)).toBeUndefined()
    receiver.encodeRows([{ a: null, b: [interval('5 days')] }])
    expect(differences(receiver.decodeRow(bytes, 0), both)).toEqual([])
  })
})

describe('code generation', () => {
  const columns = ['__proto__', 'id', 'name', 'at']
  const row = Object.fromEntries([
    ['__proto__', { a: 1 }],
    ['id', 1],
    ['name', 'x'],
    ['at', new Date(1)],
  ])

  /** The sources compiled from now on, until the globals are put back. */
  function compiled(): string[] {
    const sources: string[] = []
    class Watched extends Function {
      constructor(...code: string[]) {
        super(...code)
        sources.push(code.at(-1) as string)
      }
    }
    vi.stubGlobal('Function', Watched)
    return sources
  }

  test('happens once per form', () => {
    const sources = compiled()
    const codec = createRowCodec(columns)
    const record = codec.encodeRow(row)
    for (let i = 0; i < 3; i++) codec.decodeRow(record, 0)
    vi.unstubAllGlobals()
    expect(sources.length).toBe(1)
  })

  test('is bounded, whatever forms the bytes ask for', () => {
    const values = ['s', 1, true, 1n, new Date(1), Buffer.from('b'), new Uint8Array(1), { j: 1 }, [1n]]
    const rows = values.flatMap((a) => values.map((b) => ({ a, b })))
    const codec = createRowCodec(['a', 'b'])
    const records = rows.map((each) => createRowCodec(['a', 'b']).encodeRow(each))
    const sources = compiled()
    const back = records.map((record) => codec.decodeRow(record, 0))
    const again = records.map((record) => codec.decodeRow(record, 0))
    vi.unstubAllGlobals()
    expect(differences(back, rows)).toEqual([])
    expect(differences(again, rows)).toEqual([])
    expect(sources.length).toBe(64)
  })

  test('is done without where it is forbidden', () => {
    class Forbidden {
      constructor() {
        throw new EvalError('Code generation from strings disallowed for this context')
      }
    }
    vi.stubGlobal('Function', Forbidden)
    const codec = createRowCodec(columns)
    const back = codec.decodeRow(codec.encodeRow(row), 0)
    const list = codec.decodeRows(codec.encodeRows([row, row]), 0)
    const damaged = codec.decodeRow(codec.encodeRow(row).subarray(0, -1), 0)
    vi.unstubAllGlobals()
    expect(differences(back, row)).toEqual([])
    expect(differences(list, [row, row])).toEqual([])
    expect(damaged).toBeUndefined()
  })

  test('is done without under the real flag of node', () => {
    const codec = new URL('../../src/models/codec.ts', import.meta.url).href
    const program = `
      const { createRowCodec } = await import('${codec}')
      try { new Function('return 1')() } catch (error) { process.stdout.write(error.name + ' ') }
      const codec = createRowCodec(['id', 'name'])
      process.stdout.write(JSON.stringify(codec.decodeRow(codec.encodeRow({ id: 1, name: 'x' }), 0)))`
    const flags = [
      '--disallow-code-generation-from-strings',
      '--import',
      'tsx',
      '--input-type=module',
      '-e',
      program,
    ]
    expect(execFileSync(process.execPath, flags, { encoding: 'utf8' })).toBe('EvalError {"id":1,"name":"x"}')
  })

  test('never sees anything but column names', () => {
    const sources = compiled()
    const codec = createRowCodec(['a"]: (() => { globalThis.hacked = 1 })(), ["b'])
    const back = codec.decodeRow(codec.encodeRow({ [codec.columns[0] as string]: 'x' }), 0)
    vi.unstubAllGlobals()
    expect(back).toEqual({ [codec.columns[0] as string]: 'x' })
    expect('hacked' in globalThis).toBe(false)
    expect(sources.length).toBe(1)
  })
})

test('nulls and strings of a json column do not multiply the forms', () => {
  const codec = createRowCodec(['json', 'at'])
  const header = (row: Row) => codec.encodeRow(row).toString('latin1', 5, 7)
  expect(header({ json: { a: 1 }, at: new Date(1) })).toBe('jd')
  for (const json of ['text', true, null, [1], {}]) {
    expect(header({ json, at: null })).toBe('jd')
    expectSame(codec, { json, at: null })
  }
})

test('a character takes a byte in Latin-1, and never more than in UTF-8 or UTF-16', () => {
  const codec = createRowCodec(['text'])
  const size = (text: string) => codec.encodeRow({ text }).length - codec.encodeRow({ text: '' }).length
  expect(size('plain')).toBe(5)
  expect(size('Müller ÿ')).toBe(8)
  expect(size('plain and €')).toBe(13)
  expect(size('日本語')).toBe(6)
})

test('a users row takes less than 60 % of its JSON', () => {
  const row = {
    id: 104_211,
    uuid: '1b671a64-40d5-491e-99b0-da01ff1f3341',
    email: 'ada.lovelace@example.com',
    first_name: 'Ada',
    last_name: 'Lovelace',
    created_at: new Date('2023-04-05T06:07:08.910Z'),
    updated_at: new Date('2024-05-06T07:08:09.101Z'),
    active: true,
    settings: { theme: 'dark', lang: 'en', page: 3 },
    deleted_at: null,
  }
  const codec = createRowCodec(Object.keys(row))
  expect(codec.encodeRow(row).length).toBeLessThan(JSON.stringify(row).length * 0.6)
  expect(codec.encodeRows([row, row, row]).length).toBeLessThan(JSON.stringify([row, row, row]).length * 0.6)
})
