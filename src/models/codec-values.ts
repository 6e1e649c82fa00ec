import { isDate, isUint8Array } from 'node:util/types'
import { DAMAGED, UnstorableValueError } from './codec-errors.ts'

/** How a class of the application is stored, e.g. a `Decimal` that a type parser of pg makes of `numeric`. */
export interface ValueType<T = unknown> {
  /** One lower-case word, unique among the types. It stands in stored bytes: a new meaning wants a new name. */
  readonly name: string
  /** Asked for objects only, and only for those the codec does not know by itself. */
  is(value: unknown): boolean
  /** JSON-safe data (strings are the shortest) that tells the whole value. May throw: the row is not stored. */
  encode(value: T): unknown
  /** A fresh value, equal to the one encoded. May throw, or give what `is` refuses: the record is a miss. */
  decode(data: unknown): T
}

/** How deep values may nest, in arrays and objects. Deeper ones, and circular ones, are not stored. */
export const MAX_DEPTH = 200

/** One tag character per column tells how its fields are written. */
export const Tag = {
  string: 's',
  number: 'n',
  boolean: 'o',
  bigint: 'i',
  date: 'd',
  buffer: 'b',
  uint8Array: 'u',
  /** Plain JSON. */
  json: 'j',
  /** Any value, as codec-tagged.ts writes it. */
  tagged: 't',
} as const

// A number may be one that JSON has no word for, so it is not among these.
const JSON_TAGS: ReadonlySet<string> = new Set([Tag.json, Tag.string, Tag.boolean])

// The tags of value types are capitals.
const FIRST_CAPITAL = 65
export const MAX_VALUE_TYPES = 26

/** What encoding and decoding the values of one column takes. */
export interface ColumnContext {
  readonly column: string
  readonly valueTypes: readonly ValueType[]
  /** Prototypes met while encoding, by constructor name. Bytes can name them but not add to them. */
  readonly learned: Map<string, object>
}

/** The tag that fits `value`; undefined for null, which fits every tag. A tag is no promise that writing succeeds. */
export function tagOf(value: unknown, context: ColumnContext): string | undefined {
  switch (typeof value) {
    case 'string':
      return Tag.string
    case 'number':
      return Tag.number
    case 'boolean':
      return Tag.boolean
    case 'bigint':
      return Tag.bigint
    case 'object':
      return value === null ? undefined : tagOfObject(value, context)
    default:
      return Tag.tagged
  }
}

function tagOfObject(value: object, context: ColumnContext): string {
  switch (kindOf(value)) {
    case 'date':
      return Tag.date
    case 'buffer':
      return Tag.buffer
    case 'uint8Array':
      return Tag.uint8Array
    case 'array':
    case 'object':
      return isPlainJson(value, 0) ? Tag.json : Tag.tagged
    case 'other': {
      const type = findValueType(value, context)
      return type === undefined
        ? Tag.tagged
        : String.fromCharCode(FIRST_CAPITAL + context.valueTypes.indexOf(type))
    }
    default:
      return Tag.tagged
  }
}

/** The value type that `tag` stands for. */
export function valueTypeOf(tag: string, { valueTypes }: ColumnContext): ValueType | undefined {
  return valueTypes[tag.charCodeAt(0) - FIRST_CAPITAL]
}

/** The tag under which values of both tags can stand; undefined: only nulls so far. */
export function mergeTags(a: string | undefined, b: string | undefined): string | undefined {
  if (a === undefined || a === b) return b
  if (b === undefined) return a
  return JSON_TAGS.has(a) && JSON_TAGS.has(b) ? Tag.json : Tag.tagged
}

export type Kind = 'array' | 'object' | 'nullObject' | 'date' | 'buffer' | 'uint8Array' | 'other'

// The globals are looked up at each call, so that a Date made under a test's fake clock is still a Date.
export function kindOf(value: object): Kind {
  const prototype = Object.getPrototypeOf(value)
  if (prototype === Object.prototype) return 'object'
  if (prototype === Date.prototype && isDate(value) && Object.keys(value).length === 0) return 'date'
  if (prototype === Array.prototype && Array.isArray(value)) return 'array'
  if (prototype === Buffer.prototype && isUint8Array(value)) return 'buffer'
  if (prototype === Uint8Array.prototype && isUint8Array(value)) return 'uint8Array'
  return prototype === null ? 'nullObject' : 'other'
}

/** Whether JSON.parse(JSON.stringify(value)) gives an equal value of the same types. */
export function isPlainJson(value: unknown, depth: number): boolean {
  switch (typeof value) {
    case 'string':
    case 'boolean':
      return true
    case 'number':
      return Number.isFinite(value) && !Object.is(value, -0)
    case 'object':
      break
    default:
      return false
  }
  if (value === null) return true
  if (depth >= MAX_DEPTH) return false
  switch (kindOf(value)) {
    case 'array': {
      const items = value as readonly unknown[]
      return hasOnlyItems(items) && items.every((item) => isPlainJson(item, depth + 1))
    }
    case 'object': {
      const object = value as Readonly<Record<string, unknown>>
      const keys = Object.keys(object)
      return hasOnlyKeys(object, keys) && keys.every((key) => isPlainJson(object[key], depth + 1))
    }
    default:
      return false
  }
}

export const hasOnlyKeys = (value: object, keys: readonly string[]) =>
  Reflect.ownKeys(value).length === keys.length

// 'length' is the one own key that is not enumerable; a hole is one key too few.
export function hasOnlyItems(items: readonly unknown[]): boolean {
  const keys = Reflect.ownKeys(items)
  return keys.length === items.length + 1 && keys[items.length] === 'length'
}

export function findValueType(value: object, { valueTypes }: ColumnContext): ValueType | undefined {
  return valueTypes.find((type) => type.is(value))
}

/** @throws UnstorableValueError when what the type makes of the value is not JSON-safe, or what it throws. */
export function encodeValueType(type: ValueType, value: unknown, { column }: ColumnContext): unknown {
  const data = type.encode(value)
  if (isPlainJson(data, 0)) return data
  throw new UnstorableValueError(column, `value type '${type.name}' must encode to plain JSON data`)
}

/** @throws {@link DAMAGED}, or what the type throws. */
export function decodeValueType(type: ValueType, data: unknown): unknown {
  const value = type.decode(data)
  if (!type.is(value)) throw DAMAGED
  return value
}
