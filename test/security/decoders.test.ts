import { describe, expect, test } from 'vitest'
import type { ValueType } from '../../src/models/codec.ts'
import type { Codec } from '../../src/models/codec-layer.ts'
import type { ColumnInfo, TableInfo } from '../../src/models/column.ts'
import { compressed } from '../../src/models/compressed.ts'
import { defineCustom } from '../../src/models/custom.ts'
import { textsOf } from '../../src/models/key.ts'
import { bindModel, defineModel, withShape } from '../../src/models/model.ts'
import type { Answer, Target } from '../../src/models/target.ts'
import {
  answerRecord,
  filledAt,
  HEADER_BYTES,
  intentRecord,
  intentsOf,
  isOfOtherEpoch,
  leaseEpoch,
  leaseRecord,
  leaseToken,
  stateOf,
} from '../../src/stores/entry.ts'
import { Marks } from '../../src/stores/marks.ts'
import { mutate, randomFrom } from '../support/mutations.ts'

/** How many mutated records. `FUZZ_RUNS=1000000` asks for more of them, `FUZZ_SEED` for others. */
const RUNS = Number(process.env.FUZZ_RUNS ?? 100_000)
const SEED = Number(process.env.FUZZ_SEED ?? 20_261_120)

const EPOCH = Buffer.from('e90c')
const SCHEMA = 7
const NAMES = ['id', '__proto__', 'constructor', 'at', 'raw', 'big', 'json', 'any', 'price']

/** A class of the application, whose type believes what it is given. */
class Price {
  constructor(readonly text: string) {}
}
const PRICE: ValueType<Price> = {
  name: 'price',
  is: (value) => value instanceof Price,
  encode: ({ text }) => text,
  decode: (data) => new Price(data as string),
}

const ROWS = [
  [
    42,
    'Ada',
    'x'.repeat(40),
    new Date(5),
    Buffer.from('raw'),
    5n,
    { a: [1, { b: null }] },
    [1n, new Date(1)],
  ],
  [1.5, 'Łódź', null, null, new Uint8Array(5), 10n ** 30n, [1, 2, 3], { x: undefined, y: [-0] }],
  [
    -7,
    '名前',
    true,
    new Date(Number.NaN),
    null,
    null,
    'text',
    { nested: [Buffer.from('abc')], ['__proto__']: { x: 1n } },
  ],
  [null, '\ud800', false, new Date(8.64e15), Buffer.alloc(300), 1n, { ['__proto__']: { c: 1 } }, null],
].map((row) => Object.fromEntries(NAMES.map((name, i) => [name, i === 8 ? new Price('1.5') : row[i]])))

/** The targets of a model: a row, a list, and a custom cache. */
function targets(codec?: Codec): Target[] {
  const columns: ColumnInfo[] = NAMES.map((name) => ({
    field: name,
    name,
    type: name === 'id' ? 'int4' : 'text',
    sqlType: name === 'id' ? 'integer' : 'text',
    labels: undefined,
    deterministic: true,
    nullable: true,
  }))
  const table: TableInfo = {
    schema: 'public',
    name: 'things',
    columns,
    byField: new Map(columns.map((column) => [column.field, column])),
    dates: { date: 'utc', timestamp: 'utc' },
  }
  const rows = defineModel('things', { keyFields: [['id']], filterFields: [['constructor']], codec })
  const load = async () => []
  const custom = defineCustom(rows, { name: 'Made', keyFields: ['id'] }, { kind: 'load', load, timeoutMs: 1 })
  const bound = bindModel(
    'shop',
    withShape(rows, custom),
    table,
    SCHEMA,
    [PRICE],
    new Map([[custom, SCHEMA]]),
  )
  return [...bound.targets.values()]
}

interface Sample {
  readonly target: Target
  /** What is stored, and what it is before the codec of the application. */
  readonly record: Buffer
}

/** A few records of each kind. */
function samplesOf([row, list, custom]: readonly Target[]): Sample[] {
  const sampleOf = (target: Target | undefined, answer: Answer) => ({
    target: target as Target,
    record: answerRecord(SCHEMA, EPOCH, (target as Target).encode(answer), 1_700_000_000_000),
  })
  return [
    ...ROWS.map((each) => sampleOf(row, each)),
    sampleOf(list, ROWS),
    sampleOf(list, ROWS.slice(1, 3)),
    sampleOf(custom, { any: ['thing', 1n, new Date(7)], __of: ROWS[1]?.json as object }),
    sampleOf(custom, 'a short text'),
  ]
}

const BUILTINS = [Object, Array, Function, String, Number, Date, Buffer, Uint8Array, Promise, Price]
const shapeOfBuiltins = () =>
  BUILTINS.map((each) => [Reflect.ownKeys(each).length, Reflect.ownKeys(each.prototype).length])

const PROTOTYPES = new Set<unknown>([
  null,
  ...[Object, Array, Date, Buffer, Uint8Array, Price].map(({ prototype }) => prototype),
])

/** How many values, characters and bytes there are in an answer; throws where it is made of something strange. */
function sizeOf(value: unknown, depth = 0): number {
  if (typeof value === 'string') return value.length
  if (typeof value === 'bigint') return value.toString(16).length
  if (typeof value !== 'object' || value === null) return 1
  if (depth > 202) throw new Error('nested too deep')
  if (!PROTOTYPES.has(Object.getPrototypeOf(value))) throw new Error('a strange prototype')
  if (value instanceof Uint8Array) return value.length
  let size = 1
  for (const key of Reflect.ownKeys(value)) {
    if (typeof key !== 'string') throw new Error('a symbol')
    if (Array.isArray(value) && key === 'length') continue
    size += sizeOf(Object.getOwnPropertyDescriptor(value, key)?.value, depth + 1) + key.length
  }
  return size
}

/** All that reading an entry comes to. The answer, if it has one. */
function read(target: Target, record: Buffer): Answer | undefined {
  isOfOtherEpoch(record, EPOCH)
  const state = stateOf(record, target.schema)
  if (state === 'leased') expect([leaseToken(record).length, leaseEpoch(record).length]).toEqual([16, 4])
  if (state === 'intended') expect(intentsOf(record).length).toBeLessThanOrEqual(record.length / 29)
  if (state === 'absent') return target.absent()
  if (state !== 'value') return undefined
  filledAt(record)
  return target.decode(record, HEADER_BYTES)
}

/** An answer is of the right form, and no larger than its bytes warrant. */
function check(target: Target, answer: Answer | undefined, bytes: number): boolean {
  if (answer === undefined) return false
  const rows = target.shape.kind === 'filter' ? (answer as object[]) : [answer as object]
  if (!target.shape.custom) {
    for (const row of rows) {
      if (row === null) continue
      const names = Object.keys(row)
      if (Object.getPrototypeOf(row) !== Object.prototype || names.join() !== NAMES.join())
        throw new Error(`not a row: ${names}`)
    }
  }
  // A NULL takes a byte, and here the name of its column as well.
  const size = sizeOf(answer)
  if (size > 20 * bytes + 100) throw new Error(`${size} from ${bytes} bytes`)
  return true
}

describe('whatever is in Redis', () => {
  test(`${RUNS} mutated entries: each is an answer of the right form, or a miss`, {
    timeout: 600_000,
  }, () => {
    const random = randomFrom(SEED)
    const codec = compressed({ threshold: 100, maxBytes: 100_000 })
    const plain = samplesOf(targets())
    const packed = targets(codec)
    const records = [
      ...plain.map(({ record }) => record),
      answerRecord(SCHEMA, EPOCH, null, 1),
      leaseRecord('t'.repeat(16), EPOCH),
      intentRecord([{ token: 't'.repeat(16), deadline: 1_700_000_000_000 }]),
    ]
    const before = shapeOfBuiltins()
    let answers = 0
    let misses = 0
    for (let run = 0; run < RUNS; run++) {
      const { target } = plain[run % plain.length] as Sample
      // Those that are no answer are mutated less often: there is less to them.
      const record = run % 10 === 0 ? records[random(records.length)] : plain[run % plain.length]?.record
      const at = random(8) === 0 ? 0 : HEADER_BYTES
      const head = (record as Buffer).subarray(0, at)
      const body = mutate((record as Buffer).subarray(at), records, random, HEADER_BYTES - at + 5)
      const bytes = Buffer.concat([head, body])
      try {
        if (check(target, read(target, bytes), bytes.length)) answers++
        else misses++
        // The same behind a codec: mutated before it, which its checksum does not see, or after it.
        if (run % 4 === 0 && at === HEADER_BYTES) {
          const behind = packed.find(({ shape }) => shape.name === target.shape.name) as Target
          const payload = run % 8 === 0 ? codec.encode(body) : mutate(codec.encode(body), records, random)
          const stored = answerRecord(SCHEMA, EPOCH, payload, 1)
          check(behind, read(behind, stored), run % 8 === 0 ? bytes.length : 100_000)
        }
      } catch (error) {
        expect.fail(`seed ${SEED}, run ${run}: ${(error as Error).message}\n${bytes.toString('hex')}`)
      }
    }
    expect(shapeOfBuiltins()).toEqual(before)
    expect('polluted' in {}).toBe(false)
    // Else the mutations would only ever test the header.
    expect(answers).toBeGreaterThan(RUNS / 20)
    expect(misses).toBeGreaterThan(RUNS / 4)
  })

  test('mutated marks forget entries, or do not', { timeout: 600_000 }, () => {
    const random = randomFrom(SEED)
    const text = (prefix: string) => `markmark${String(prefix.length).padStart(4, '0')}${prefix}`
    const record = Buffer.from(`basebase${text('shop:users:')}${text('shop:orders:')}${text('shop:')}`)
    for (let run = 0; run < RUNS / 10; run++) {
      const bytes = mutate(record, [record], random)
      const marks = new Marks(EPOCH, bytes)
      for (const key of ['shop:users:id:1', 'shop:things:id:1', '__proto__']) {
        const epoch = marks.epochOf(key)
        if (epoch.length !== 4 || !marks.epochOf(key).equals(epoch)) expect.fail(bytes.toString('hex'))
      }
    }
  })

  test('a key that nobody of us has made is not taken for one', { timeout: 600_000 }, () => {
    const random = randomFrom(SEED)
    const key = Buffer.from('shop:users:org_id,role[]:7,adm%3Ain~')
    let read = 0
    for (let run = 0; run < RUNS / 10; run++) {
      const mutated = mutate(key, [key], random).toString('latin1')
      const texts = textsOf('shop:users:org_id,role[]:', mutated)
      if (texts === undefined) continue
      read++
      for (const each of texts) expect(each === null || typeof each === 'string').toBe(true)
    }
    expect(read).toBeGreaterThan(RUNS / 1000)
  })
})

describe('a length that claims more than there is', () => {
  const GIGABYTES = [2 ** 28, 2 ** 32, 2 ** 40, Number.MAX_SAFE_INTEGER]

  function varint(value: number): Buffer {
    const bytes: number[] = []
    let rest = value
    for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128)
    return Buffer.from([...bytes, rest])
  }

  /** The most memory held at once, looked at after every decode: nothing is freed within one. */
  function growth(decode: () => void, times: number): number {
    const used = () => {
      const { arrayBuffers, heapUsed } = process.memoryUsage()
      return arrayBuffers + heapUsed
    }
    const before = used()
    let most = 0
    for (let i = 0; i < times; i++) {
      decode()
      most = Math.max(most, used() - before)
    }
    return most
  }

  test.each(GIGABYTES)('%d: nothing is set aside for it', (claimed) => {
    const [row, list] = targets() as [Target, Target]
    const header = (target: Target) =>
      target.encode(target === list ? ROWS : (ROWS[0] as object)).subarray(0, 4)
    const records: [Target, Buffer][] = []
    for (const tag of 'snoidbujtA') {
      const tags = tag.repeat(NAMES.length)
      const length = varint(claimed)
      const fields = Buffer.concat([length, Buffer.alloc(30)])
      const head = (target: Target, kind: string) => Buffer.concat([header(target), Buffer.from(kind + tags)])
      records.push(
        [row, Buffer.concat([head(row, 'r'), length, fields])],
        [row, Buffer.concat([head(row, 'r'), varint(fields.length * 4), fields])],
        [list, Buffer.concat([head(list, 'l'), length, fields])],
        [list, Buffer.concat([head(list, 'l'), varint(2), length, fields])],
      )
    }
    for (const [target, payload] of records) {
      const bytes = answerRecord(SCHEMA, EPOCH, payload, 1)
      expect(growth(() => read(target, bytes), 3)).toBeLessThan(16 * 1024 * 1024)
    }
  })

  test('a bomb is not unpacked beyond maxBytes', () => {
    const [row] = targets(compressed({ maxBytes: 1_000_000 })) as [Target]
    const bomb = compressed({ maxBytes: 500_000_000 }).encode(Buffer.alloc(200_000_000))
    const record = answerRecord(SCHEMA, EPOCH, bomb, 1)
    expect(record.length).toBeLessThan(1_000_000)
    expect(growth(() => expect(read(row, record)).toBeUndefined(), 3)).toBeLessThan(32 * 1024 * 1024)
  })

  test('nesting is not handed on to who would run out of stack', () => {
    const [row] = targets() as [Target]
    const nested = (levels: number) => '['.repeat(levels) + ']'.repeat(levels)
    /** As it would be encoded without a limit: a text of this length, told to be JSON. */
    const forge = (levels: number) => {
      const bytes = row.encode({ ...ROWS[0], json: nested(levels) })
      bytes.write('j', 5 + NAMES.indexOf('json'))
      return row.decode(bytes, 0) as { json: unknown } | undefined
    }
    expect(forge(200)?.json).toEqual(JSON.parse(nested(200)))
    expect(forge(100_000)).toBeUndefined()
  })
})
