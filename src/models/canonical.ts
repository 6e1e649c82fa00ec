import type { ColumnInfo, DateReading, TableInfo } from './column.ts'

/**
 * No value of the column's type equals this one, so no row can: answered without asking anybody.
 * Postgres would say the same of `WHERE int_column = 4.2`.
 */
export const IMPOSSIBLE = Symbol('impossible')

/**
 * A value whose canonical text only the database knows. It is looked up in a statement of its own, past the store:
 * two texts of one value would be two cache keys, and a write would invalidate only one of them.
 */
export class Uncertain {
  constructor(readonly text: string) {}
}

/** A refusal: the rest of the sentence "field 'x' ...". */
export class Refusal {
  constructor(readonly problem: string) {}
}

export type Canonical = string | typeof IMPOSSIBLE | Uncertain | Refusal

/**
 * Turns a lookup value, or the text Postgres prints for a column (ISO dates in UTC, hex bytea), into the one text
 * that stands for all values Postgres compares as equal: 42, 42n, '42' and '042' are '42' for an integer column.
 * Never sees `null`.
 */
export type Canonicalize = (value: unknown) => Canonical

/** The canonicaliser for a column. Where no text of ours can stand for its values, all of them are {@link Uncertain}. */
export function canonicalizerOf(column: ColumnInfo, dates: TableInfo['dates']): Canonicalize {
  if (column.deterministic) return exactCanonicalizerOf(column, dates) ?? uncertainly(plainText)
  // Which letters such a column calls the same is not for us to say, so they go to the database as they are.
  return uncertainly(column.type === 'citext' ? text : (exactCanonicalizerOf(column, dates) ?? plainText))
}

function uncertainly(canonicalize: Canonicalize): Canonicalize {
  return (value) => {
    const canonical = canonicalize(value)
    return typeof canonical === 'string' ? new Uncertain(canonical) : canonical
  }
}

function exactCanonicalizerOf(column: ColumnInfo, dates: TableInfo['dates']): Canonicalize | undefined {
  if (column.labels) return enumLabel(new Set(column.labels))
  switch (column.type) {
    case 'int2':
      return integer(-32_768n, 32_767n)
    case 'int4':
      return integer(-2_147_483_648n, 2_147_483_647n)
    case 'int8':
      return integer(-9_223_372_036_854_775_808n, 9_223_372_036_854_775_807n)
    case 'oid':
      return objectId
    case 'numeric':
      return decimal
    case 'float4':
      return (value) => float(value, Math.fround)
    case 'float8':
      return (value) => float(value, Number)
    case 'bool':
      return boolean
    case 'text':
    case 'varchar':
      return text
    case 'name':
      return shortText
    case 'bpchar':
      return paddedText
    case 'citext':
      return caseInsensitiveText
    case 'uuid':
      return uuid
    case 'bytea':
      return bytes
    case 'date':
      return (value) => date(value, dates.date)
    case 'timestamp':
      return (value) => timestamp(value, dates.timestamp)
    case 'timestamptz':
      return timestamptz
    default:
      return undefined
  }
}

const PLAIN_INTEGER = /^(?:0|-?[1-9]\d{0,8})$/
const INTEGER = /^\s*[+-]?\d+\s*$/
/** `0x1F` and `1_000`, which only Postgres 16 and later read. */
const NEWER_NUMBER = /^\s*[+-]?(?:0[xob]_?[\da-f]|\d[\d.]*_\d)/i
/** Beyond it `String(number)` is no longer a row of digits. */
const MAX_PRINTED_INTEGER = 1e21
/** Longer texts are either padded with zeros or out of every range: not worth a BigInt of a million digits. */
const MAX_INTEGER_LENGTH = 25

function integer(min: bigint, max: bigint): Canonicalize {
  const low = Math.max(Number(min), Number.MIN_SAFE_INTEGER)
  const high = Math.min(Number(max), Number.MAX_SAFE_INTEGER)
  const big = (value: bigint) => (value < min || value > max ? IMPOSSIBLE : String(value))
  return (value) => {
    if (typeof value === 'number') {
      // `+ 0` folds -0, which Postgres knows no integer for, into 0.
      if (value >= low && value <= high && Number.isInteger(value)) return `${value + 0}`
      if (Number.isNaN(value)) return new Refusal('must not be NaN')
      if (!Number.isInteger(value) || Math.abs(value) >= MAX_PRINTED_INTEGER) return IMPOSSIBLE
      // Beyond the safe integers the digits a number is printed with are not its exact value, but what a driver sends.
      return big(BigInt(String(value)))
    }
    if (typeof value === 'string') {
      if (min < -32_768n && PLAIN_INTEGER.test(value)) return value
      if (value.length <= MAX_INTEGER_LENGTH && INTEGER.test(value))
        return big(BigInt(value.trim().replace(/^\+/, '')))
      const number = NUMBER_WORD.test(value) ? notA('an integer', value) : decimal(value)
      if (typeof number !== 'string') return number
      return number.length > MAX_INTEGER_LENGTH || number.includes('.') ? IMPOSSIBLE : big(BigInt(number))
    }
    if (typeof value === 'bigint') return big(value)
    return notA('an integer', value)
  }
}

const anyObjectId = integer(-(2n ** 64n), 4_294_967_295n)

/** Postgres counts a negative oid from the end (-1 is 4294967295), and from 16 on reads 010 as octal. */
function objectId(value: unknown): Canonical {
  const canonical = anyObjectId(value)
  return typeof canonical === 'string' && /^\s*[+-]?0\d|-/.test(String(value))
    ? new Uncertain(String(value).trim())
    : canonical
}

const DECIMAL = /^\s*([+-]?)(\d*)(?:\.(\d*))?(?:e([+-]?\d{1,6}))?\s*$/i
/** A longer text is not worth expanding. */
const MAX_DECIMAL_EXPONENT = 20_000
/** What `numeric` holds. Beyond it Postgres fails, which must not happen in a statement that serves other lookups. */
const MAX_WHOLE_DIGITS = 131_072
const MAX_FRACTION_DIGITS = 16_383
/** What Postgres reads as a number without being made of digits. No key, as NaN and the like are hardly meant as one. */
const NUMBER_WORD = /^\s*(?:[+-]?inf(?:inity)?|nan)\s*$/i

function decimal(value: unknown): Canonical {
  if (Number.isNaN(value)) return new Refusal('must not be NaN')
  if (!isNumeral(value)) return notA('a number', value)
  const given = String(value).trim()
  if (NUMBER_WORD.test(given) || NEWER_NUMBER.test(given)) return new Uncertain(given)
  const match = DECIMAL.exec(given)
  if (!match || (match[2] === '' && !match[3])) return notA('a number', value)
  const [, sign, whole = '', fraction = '', exponent = '0'] = match
  const shift = Number(exponent)
  if (Math.abs(shift) > MAX_DECIMAL_EXPONENT) return new Uncertain(given)
  const digits = whole + fraction
  const point = whole.length + shift
  const left = (point > 0 ? digits.slice(0, point).padEnd(point, '0') : '').replace(/^0+/, '')
  const right = trimEnd(point >= 0 ? digits.slice(point) : '0'.repeat(-point) + digits, '0')
  if (left.length > MAX_WHOLE_DIGITS || right.length > MAX_FRACTION_DIGITS) return new Uncertain(given)
  if (left === '' && right === '') return '0'
  return `${sign === '-' ? '-' : ''}${left || '0'}${right && `.${right}`}`
}

const FLOAT = /^[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?$/i

function float(value: unknown, round: (value: number) => number): Canonical {
  if (Number.isNaN(value)) return new Refusal('must not be NaN')
  if (!isNumeral(value)) return notA('a number', value)
  const given = String(value).trim()
  if (given === 'Infinity' || given === '-Infinity') return given
  if (NUMBER_WORD.test(given) || NEWER_NUMBER.test(given)) return new Uncertain(given)
  if (!FLOAT.test(given)) return notA('a number', value)
  const number = Number(given)
  const rounded = round(number)
  if (isHalfway(number, rounded, round)) return new Uncertain(given)
  // What is too large or too small for the type is an error in Postgres, neither infinity nor zero.
  if (!Number.isFinite(rounded) || (rounded === 0 && /^[^e]*[1-9]/i.test(given))) return IMPOSSIBLE
  return `${rounded + 0}`
}

/** Halfway between two values of the type, digits that a JS number has no room for decide which one is meant. */
function isHalfway(number: number, rounded: number, round: (value: number) => number): boolean {
  if (!Number.isFinite(rounded)) return Number.isFinite(round(number * (1 - 2 ** -25)))
  const opposite = 2 * number - rounded
  return opposite !== rounded && round(opposite) === opposite
}

function isNumeral(value: unknown): value is number | bigint | string {
  return typeof value === 'number' || typeof value === 'bigint' || typeof value === 'string'
}

function boolean(value: unknown): Canonical {
  if (value === true || value === 'true' || value === 't') return 'true'
  if (value === false || value === 'false' || value === 'f') return 'false'
  if (typeof value === 'string') return new Uncertain(value)
  return notA('a boolean', value)
}

function text(value: unknown): Canonical {
  const plain = plainText(value)
  if (typeof plain !== 'string') return plain
  // Postgres cannot store a NUL, and a lone surrogate has no UTF-8: both would become another text on the way.
  if (plain.includes('\0')) return IMPOSSIBLE
  return plain.isWellFormed() ? plain : new Refusal('must be well-formed Unicode, but has a lone surrogate')
}

function plainText(value: unknown): Canonical {
  if (typeof value === 'string') return value
  if (typeof value === 'number') return Number.isNaN(value) ? new Refusal('must not be NaN') : String(value)
  if (typeof value === 'bigint' || typeof value === 'boolean') return String(value)
  return notA('a text', value)
}

/** What `name` has room for. Postgres cuts a longer text off, and so takes it for another one. */
const MAX_NAME_BYTES = 63

function shortText(value: unknown): Canonical {
  const plain = text(value)
  return typeof plain === 'string' && Buffer.byteLength(plain) > MAX_NAME_BYTES ? new Uncertain(plain) : plain
}

/** `char(n)`: trailing spaces do not count. */
function paddedText(value: unknown): Canonical {
  const plain = text(value)
  return typeof plain === 'string' ? trimEnd(plain, ' ') : plain
}

/** A loop, as `/ +$/` takes quadratic time for long runs that are not at the end. */
function trimEnd(text: string, char: string): string {
  let end = text.length
  while (end > 0 && text[end - 1] === char) end--
  return text.slice(0, end)
}

/** Beyond ASCII, what counts as the same letter depends on the database's locale. */
function caseInsensitiveText(value: unknown): Canonical {
  const plain = text(value)
  if (typeof plain !== 'string') return plain
  return isAscii(plain) ? plain.toLowerCase() : new Uncertain(plain)
}

/** Two letters beyond ASCII are in some locales the same as an ASCII one: a lookup of 'k' finds the Kelvin sign. */
function printedCaseInsensitiveText(value: unknown): Canonical {
  const folded = String(value).replaceAll('\u212a', 'k').replaceAll('\u0130', 'i')
  return isAscii(folded) ? folded.toLowerCase() : String(value)
}

function isAscii(text: string): boolean {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the ASCII range is what is meant
  return /^[\x01-\x7f]*$/.test(text)
}

function enumLabel(labels: ReadonlySet<string>): Canonicalize {
  // An unknown label may have been added since the type was read: Postgres decides, alone, as its error would
  // otherwise take the other lookups of the shape with it.
  return (value) => {
    if (typeof value !== 'string') return notA('a text', value)
    return labels.has(value) ? value : new Uncertain(value)
  }
}

function uuid(value: unknown): Canonical {
  if (typeof value !== 'string') return notA('a uuid', value)
  const hex = value
    .trim()
    .replace(/^\{(.*)\}$/, '$1')
    .replaceAll('-', '')
    .toLowerCase()
  if (!/^[0-9a-f]{32}$/.test(hex)) return notA('a uuid', value)
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}

function bytes(value: unknown): Canonical {
  if (value instanceof Uint8Array)
    return `\\x${Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('hex')}`
  if (typeof value === 'string' && /^\\x(?:[0-9a-f]{2})*$/i.test(value)) return value.toLowerCase()
  return typeof value === 'string' ? new Uncertain(value) : notA('a Buffer', value)
}

const DAY = /^(\d{4}|[1-9]\d{4,5})-(\d\d)-(\d\d)( BC)?$/
const MOMENT =
  /^(\d{4}|[1-9]\d{4,5})-(\d\d)-(\d\d)[ T]([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d{1,6}))?(Z|\+00(?::?00)?)?( BC)?$/

function date(value: unknown, reading: DateReading): Canonical {
  if (value instanceof Date) return dateText(value, reading, (day, _time, era) => day + era)
  if (typeof value !== 'string') return infinityOr('a date', value)
  const match = DAY.exec(value)
  return match && isDay(match[1], match[2], match[3], match[4]) ? value : new Uncertain(value)
}

function timestamp(value: unknown, reading: DateReading): Canonical {
  if (value instanceof Date) return dateText(value, reading, (day, time, era) => `${day} ${time}${era}`)
  if (typeof value !== 'string') return infinityOr('a timestamp', value)
  return momentText(value, false)
}

function timestamptz(value: unknown): Canonical {
  if (value instanceof Date) return dateText(value, 'utc', (day, time, era) => `${day} ${time}+00${era}`)
  if (typeof value !== 'string') return infinityOr('a timestamp', value)
  return momentText(value, true)
}

/** As Postgres prints it. Without an offset a timestamptz depends on the session's time zone, so it is uncertain. */
function momentText(given: string, offset: boolean): Canonical {
  const match = MOMENT.exec(given)
  if (!match) return new Uncertain(given)
  const [, year, month, day, hours, minutes, seconds, fraction, zone, era = ''] = match
  if ((zone !== undefined) !== offset || !isDay(year, month, day, era)) return new Uncertain(given)
  return `${year}-${month}-${day} ${hours}:${minutes}:${seconds}${fractionOf(fraction)}${offset ? '+00' : ''}${era}`
}

/** The driver reads `infinity` as a number. */
function infinityOr(wanted: string, value: unknown): Canonical {
  if (value === Number.POSITIVE_INFINITY) return new Uncertain('infinity')
  return value === Number.NEGATIVE_INFINITY ? new Uncertain('-infinity') : notA(wanted, value)
}

/** A day that is in no calendar is an error in Postgres, and must not reach a statement that serves other lookups. */
function isDay(year = '', month = '', day = '', era = ''): boolean {
  const [y, m, d] = [era ? 1 - Number(year) : Number(year), Number(month), Number(day)]
  if (m < 1 || m > 12 || d < 1 || Number(year) === 0 || !isYear(y)) return false
  const leap = y % 4 === 0 && (y % 100 !== 0 || y % 400 === 0)
  return d <= (m === 2 ? (leap ? 29 : 28) : m === 4 || m === 6 || m === 9 || m === 11 ? 30 : 31)
}

/** Postgres takes days from 4714 BC to the year 294276 as timestamps, and others as dates; here every type agrees. */
function isYear(year: number): boolean {
  return year > -4_700 && year <= 200_000
}

function dateText(
  value: Date,
  reading: DateReading,
  print: (day: string, time: string, era: string) => string,
): Canonical {
  if (Number.isNaN(value.getTime())) return new Refusal('must not be an invalid Date')
  // With a type parser of its own, only the application knows which day or hour a Date stands for.
  if (reading === 'none') {
    return new Refusal(
      'is not read as a Date through this connection; give the value as the driver returns it',
    )
  }
  // A Date whose UTC parts are the wall time that is meant.
  const wall = reading === 'utc' ? value : new Date(localAsUtc(value))
  if (Number.isNaN(wall.getTime())) return new Refusal('is too far off to be told in this time zone')
  const year = wall.getUTCFullYear()
  const iso = wall.toISOString()
  const rest = iso.slice(iso.indexOf('T') - 6)
  // There is no year 0: JS's year 0 is 1 BC.
  const printed = String(year > 0 ? year : 1 - year).padStart(4, '0')
  const text = print(
    printed + rest.slice(0, 6),
    rest.slice(7, 15) + fractionOf(rest.slice(16, 19)),
    year > 0 ? '' : ' BC',
  )
  return isYear(year) ? text : new Uncertain(text)
}

function localAsUtc(value: Date): number {
  const wall = new Date(0)
  wall.setUTCFullYear(value.getFullYear(), value.getMonth(), value.getDate())
  return wall.setUTCHours(value.getHours(), value.getMinutes(), value.getSeconds(), value.getMilliseconds())
}

function fractionOf(digits: string | undefined): string {
  const kept = trimEnd(digits ?? '', '0')
  return kept ? `.${kept}` : ''
}

function notA(wanted: string, value: unknown): Refusal {
  const given =
    value === undefined
      ? 'undefined'
      : typeof value === 'object'
        ? `a ${value?.constructor?.name ?? 'object'}`
        : `the ${typeof value} ${String(value).slice(0, 60)}`
  return new Refusal(`must be ${wanted}, but is ${given}`)
}

/**
 * The canonical text of a value Postgres has printed (ISO dates in UTC, hex bytea): what every exact lookup that finds
 * it comes to. A text that no lookup is exact for stays as it is: nothing is cached under it.
 *
 * @param type the base type, as {@link ColumnInfo.type}
 */
export function canonicalPrint(type: string, printed: string): string {
  const canonicalize = PRINTED[type]
  const canonical = canonicalize?.(printed)
  return typeof canonical === 'string' ? canonical : printed
}

/** The types whose equal values Postgres prints differently, or prints otherwise than JS. */
const PRINTED: Readonly<Record<string, Canonicalize>> = Object.assign(Object.create(null), {
  numeric: decimal,
  float4: (value: unknown) => float(value, Math.fround),
  float8: (value: unknown) => float(value, Number),
  bpchar: paddedText,
  citext: printedCaseInsensitiveText,
  bool: boolean,
})
