import { DAMAGED, UnstorableValueError } from './codec-errors.ts'
import {
  type ColumnContext,
  decodeValueType,
  encodeValueType,
  findValueType,
  hasOnlyItems,
  hasOnlyKeys,
  kindOf,
  MAX_DEPTH,
} from './codec-values.ts'

/*
 * Any storable value as JSON: what JSON has stands for itself (but -0 and the like), all else is an array that begins
 * with one of these codes. Objects are lists of keys and values, so no key of theirs is ever a key of ours.
 */
const Code = {
  array: 'a', // ...items
  object: 'o', // ...key, value
  nullObject: 'n', // ...key, value
  instance: 'c', // class name, ...key, value
  valueType: 'v', // type name, data
  date: 'd', // ms; none: invalid
  bigint: 'i', // digits
  buffer: 'b', // base64
  uint8Array: 'u', // base64
  number: 'f', // NaN, Infinity, -Infinity, -0
  undefined: 'x',
} as const

// pg's own class for `interval`, a bag of numbers with methods. Any other class may have private fields, which
// nobody can see from outside; its owner must tell how to store it.
const LEARNED_CLASSES: ReadonlySet<string> = new Set(['PostgresInterval'])

const ODD_NUMBERS: ReadonlyMap<string, number> = new Map(
  [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -0].map((number) => [
    oddName(number),
    number,
  ]),
)

function oddName(number: number): string {
  return Object.is(number, -0) ? '-0' : String(number)
}

/** @throws UnstorableValueError with the path of the first part that cannot be stored. */
export function encodeTagged(value: unknown, context: ColumnContext, path = '', depth = 0): unknown {
  switch (typeof value) {
    case 'string':
    case 'boolean':
      return value
    case 'number':
      return ODD_NUMBERS.has(oddName(value)) ? [Code.number, oddName(value)] : value
    case 'bigint':
      return [Code.bigint, String(value)]
    case 'undefined':
      return [Code.undefined]
    case 'object':
      return value === null ? null : encodeObject(value, context, path, depth)
    default:
      throw unstorable(context, path, `a ${typeof value} cannot be stored`)
  }
}

function encodeObject(value: object, context: ColumnContext, path: string, depth: number): unknown {
  if (depth >= MAX_DEPTH) throw unstorable(context, path, `nested deeper than ${MAX_DEPTH}, or circular`)
  switch (kindOf(value)) {
    case 'date': {
      const ms = (value as Date).getTime()
      return Number.isNaN(ms) ? [Code.date] : [Code.date, ms]
    }
    case 'buffer':
      return [Code.buffer, (value as Buffer).toString('base64')]
    case 'uint8Array': {
      const { buffer, byteOffset, byteLength } = value as Uint8Array
      return [Code.uint8Array, Buffer.from(buffer, byteOffset, byteLength).toString('base64')]
    }
    case 'array': {
      const items = value as readonly unknown[]
      if (!hasOnlyItems(items)) throw unstorable(context, path, 'an array with holes or extra properties')
      const encode = (item: unknown, i: number) => encodeTagged(item, context, `${path}[${i}]`, depth + 1)
      return [Code.array, ...items.map(encode)]
    }
    case 'object':
      return [Code.object, ...encodeProperties(value, context, path, depth)]
    case 'nullObject':
      return [Code.nullObject, ...encodeProperties(value, context, path, depth)]
    case 'other':
      return encodeOther(value, context, path, depth)
  }
}

function encodeOther(value: object, context: ColumnContext, path: string, depth: number): unknown {
  const type = findValueType(value, context)
  if (type !== undefined) return [Code.valueType, type.name, encodeValueType(type, value, context)]
  const prototype: object = Object.getPrototypeOf(value)
  const name = className(prototype)
  if (!LEARNED_CLASSES.has(name) || !isPlainBag(value, prototype)) {
    const what = `an instance of ${name || 'an unnamed class'}; declare a ValueType for it`
    throw unstorable(context, path, what)
  }
  const encoded = [Code.instance, name, ...encodeProperties(value, context, path, depth)]
  context.learned.set(name, prototype)
  return encoded
}

function isPlainBag(value: object, prototype: object): boolean {
  return (
    Object.getPrototypeOf(prototype) === Object.prototype &&
    Object.prototype.toString.call(value) === '[object Object]' &&
    Object.values(Object.getOwnPropertyDescriptors(value)).every((property) => 'value' in property)
  )
}

function className(prototype: object): string {
  const made: unknown = Object.getOwnPropertyDescriptor(prototype, 'constructor')?.value
  return typeof made === 'function' ? made.name : ''
}

function encodeProperties(value: object, context: ColumnContext, path: string, depth: number): unknown[] {
  const object = value as Readonly<Record<string, unknown>>
  const keys = Object.keys(object)
  if (!hasOnlyKeys(object, keys)) throw unstorable(context, path, 'an object with symbols or hidden keys')
  const list: unknown[] = []
  for (const key of keys) list.push(key, encodeTagged(object[key], context, `${path}.${key}`, depth + 1))
  return list
}

function unstorable({ column }: ColumnContext, path: string, reason: string): UnstorableValueError {
  return new UnstorableValueError(column, path === '' ? reason : `${reason} (at ${path})`)
}

/** @throws {@link DAMAGED} for what {@link encodeTagged} never gives, or for a class not met yet. */
export function decodeTagged(data: unknown, context: ColumnContext, depth = 0): unknown {
  if (data === null || typeof data !== 'object') return data
  if (!Array.isArray(data) || depth > MAX_DEPTH) throw DAMAGED
  const list: readonly unknown[] = data
  switch (list[0]) {
    case Code.array:
      return list.slice(1).map((item) => decodeTagged(item, context, depth + 1))
    case Code.object:
      return decodeProperties({}, list, 1, context, depth)
    case Code.nullObject:
      return decodeProperties(Object.create(null), list, 1, context, depth)
    case Code.instance: {
      const prototype = context.learned.get(stringAt(list, 1))
      if (prototype === undefined) throw DAMAGED
      return decodeProperties(Object.create(prototype), list, 2, context, depth)
    }
    case Code.valueType: {
      const type = context.valueTypes.find(({ name }) => name === list[1])
      if (type === undefined || list.length !== 3) throw DAMAGED
      return decodeValueType(type, list[2])
    }
    case Code.date:
      return decodeDate(list)
    case Code.bigint: {
      const digits = stringAt(list, 1, 2)
      if (!/^-?\d+$/.test(digits)) throw DAMAGED
      return BigInt(digits)
    }
    case Code.buffer:
      return decodeBase64(stringAt(list, 1, 2))
    case Code.uint8Array:
      return new Uint8Array(decodeBase64(stringAt(list, 1, 2)))
    case Code.number: {
      const number = ODD_NUMBERS.get(stringAt(list, 1, 2))
      if (number === undefined) throw DAMAGED
      return number
    }
    case Code.undefined:
      if (list.length !== 1) throw DAMAGED
      return undefined
    default:
      throw DAMAGED
  }
}

// Properties are defined, not assigned: '__proto__' or a setter of the prototype must stay without effect.
function decodeProperties(
  target: object,
  list: readonly unknown[],
  from: number,
  context: ColumnContext,
  depth: number,
) {
  if ((list.length - from) % 2 !== 0) throw DAMAGED
  for (let i = from; i < list.length; i += 2) {
    const value = decodeTagged(list[i + 1], context, depth + 1)
    Object.defineProperty(target, stringAt(list, i), {
      value,
      writable: true,
      enumerable: true,
      configurable: true,
    })
  }
  return target
}

function decodeDate(list: readonly unknown[]): Date {
  if (list.length === 1) return new Date(Number.NaN)
  const [, ms] = list
  if (typeof ms !== 'number' || list.length !== 2) throw DAMAGED
  const date = new Date(ms)
  if (date.getTime() !== ms) throw DAMAGED
  return date
}

function stringAt(list: readonly unknown[], index: number, length = list.length): string {
  const string = list[index]
  if (typeof string !== 'string' || list.length !== length) throw DAMAGED
  return string
}

// Node skips what is not base64, which shows in the length, and takes the URL alphabet too.
function decodeBase64(base64: string): Buffer {
  const padding = base64.endsWith('==') ? 2 : base64.endsWith('=') ? 1 : 0
  const bytes = Buffer.from(base64, 'base64')
  if (bytes.length !== (base64.length / 4) * 3 - padding || /[-_]/.test(base64)) throw DAMAGED
  return bytes
}
