import { isUtf8 } from 'node:buffer'
import { ByteSink, readByte, readFloat, readUint24, readVarint, type TextEncoding } from './codec-bytes.ts'
import { DAMAGED } from './codec-errors.ts'
import { MAX_DEPTH } from './codec-values.ts'

/*
 * One row is: varint (size of the fields × 4 + text mode), the fields, the text.
 * The fields hold numbers, dates, raw bytes and the lengths of strings. The characters of all strings stand
 * together in the text: one native call decodes them, and each string is a cheap cut out of it.
 * A field that begins with byte 0 is null, whatever its type.
 */
const TEXT_MODES: readonly TextEncoding[] = ['latin1', 'utf8', 'utf16le']
const LATIN1 = 0
const UTF8 = 1
const UTF16 = 2

const NULL = 0
const FALSE = 1
const TRUE = 2
const FLOAT = 1 // the codes of numbers and bigints; whole numbers are zigzag + 2
const DIGITS = 1
const SHORT_DATE = 3 // not the codes of booleans: a tag gone wrong should show
const LONG_DATE = 4
const INVALID_DATE = 5

const TWO_24 = 2 ** 24
const SHORT_DATE_LIMIT = 2 ** 47 // ms either side of 1970: six bytes
const INTEGER_LIMIT = 2 ** 51 // zigzag doubles it: still exact, and eight bytes at most

// A cut of 13 characters or more keeps the whole text alive in V8. Beyond this many characters that is too much to
// make somebody pay who keeps one short string of the row.
const LARGE_TEXT = 1_024
const SHORTEST_CUT = 13

const isLatin1 = (text: string) => !/[^\0-\xff]/.test(text)
const zigzag = (value: number) => (value < 0 ? -2 * value - 1 : 2 * value)
const unzigzag = (code: number) => (code % 2 === 0 ? code / 2 : -(code + 1) / 2)

/** Writes rows, one after the other. The values must be of the kind each method names. */
export class RowWriter {
  readonly #fields = new ByteSink()
  #text = ''

  begin(): void {
    this.#fields.clear()
    this.#text = ''
  }

  null(): void {
    this.#fields.byte(NULL)
  }

  boolean(value: boolean): void {
    this.#fields.byte(value ? TRUE : FALSE)
  }

  number(value: number): void {
    if (Number.isInteger(value) && Math.abs(value) < INTEGER_LIMIT && !Object.is(value, -0)) {
      this.#fields.varint(zigzag(value) + 2)
    } else {
      this.#fields.byte(FLOAT)
      this.#fields.float(value)
    }
  }

  bigint(value: bigint): void {
    const near = Number(value)
    if (Math.abs(near) < INTEGER_LIMIT) {
      this.#fields.varint(zigzag(near) + 2)
    } else {
      this.#fields.byte(DIGITS)
      this.string(String(value))
    }
  }

  date(value: Date): void {
    const fields = this.#fields
    const ms = value.getTime()
    if (Number.isNaN(ms)) {
      fields.byte(INVALID_DATE)
    } else if (Math.abs(ms) < SHORT_DATE_LIMIT) {
      const low = (ms + SHORT_DATE_LIMIT) % TWO_24
      fields.byte(SHORT_DATE)
      fields.uint24(low)
      fields.uint24((ms + SHORT_DATE_LIMIT - low) / TWO_24)
    } else {
      fields.byte(LONG_DATE)
      fields.float(ms)
    }
  }

  binary(value: Uint8Array): void {
    this.#fields.varint(value.length + 1)
    this.#fields.append(value, value.length)
  }

  string(value: string): void {
    this.#fields.varint(value.length + 1)
    this.#text += value
  }

  /** A string with a bit of the caller's beside it. */
  flagged(value: string, flag: boolean): void {
    this.#fields.varint(value.length * 2 + (flag ? 2 : 1))
    this.#text += value
  }

  /** Appends the row to `sink`; `sized`: with its size in front. */
  end(sink: ByteSink, sized: boolean): void {
    const fields = this.#fields
    const text = this.#text
    const utf8Size = Buffer.byteLength(text)
    let mode = LATIN1
    let size = text.length
    if (utf8Size !== size && !isLatin1(text)) {
      // UTF-8 would lose a lone surrogate; and for most East Asian text UTF-16 is the shorter of the two.
      mode = utf8Size < size * 2 && text.isWellFormed() ? UTF8 : UTF16
      size = mode === UTF8 ? utf8Size : size * 2
    }
    const head = fields.length * 4 + mode
    if (sized) sink.varint(varintSize(head) + fields.length + size)
    sink.varint(head)
    sink.append(fields.bytes, fields.length)
    sink.text(text, size, TEXT_MODES[mode] as TextEncoding)
  }
}

function varintSize(value: number): number {
  let size = 1
  for (let rest = value; rest >= 128; rest = Math.floor(rest / 128)) size++
  return size
}

/** One row's bytes, and how far its fields and its text are read. */
export class RowReader {
  readonly bytes: Buffer
  at: number
  readonly end: number
  readonly text: string
  cut = 0

  constructor(bytes: Buffer, start: number, end: number) {
    this.bytes = bytes
    this.at = start
    const head = readVarint(this)
    const mode = head % 4
    this.end = this.at + (head - mode) / 4
    if (!(this.end <= end)) throw DAMAGED
    this.text =
      this.end === end
        ? ''
        : mode === LATIN1
          ? bytes.toString('latin1', this.end, end)
          : wideText(this, end, mode)
  }
}

function wideText({ bytes, end: start }: RowReader, end: number, mode: number): string {
  if (mode === UTF8) {
    const text = bytes.toString('utf8', start, end)
    // U+FFFD: either there are invalid bytes, or it was written.
    if (text.includes('\ufffd') && !isUtf8(bytes.subarray(start, end))) throw DAMAGED
    return text
  }
  if (mode !== UTF16 || (end - start) % 2 !== 0) throw DAMAGED
  return bytes.toString('utf16le', start, end)
}

/** Everything must be used up: lengths changed by damage show here at the latest. */
export function finishRow(reader: RowReader): void {
  if (reader.at !== reader.end || reader.cut !== reader.text.length) throw DAMAGED
}

export function readBoolean(reader: RowReader): boolean | null {
  const code = readByte(reader)
  if (code === TRUE) return true
  if (code === FALSE) return false
  if (code === NULL) return null
  throw DAMAGED
}

export function readNumber(reader: RowReader): number | null {
  const code = readVarint(reader)
  if (code > FLOAT) return unzigzag(code - 2)
  return code === NULL ? null : readFloat(reader)
}

export function readBigint(reader: RowReader): bigint | null {
  const code = readVarint(reader)
  if (code > DIGITS) return BigInt(unzigzag(code - 2))
  if (code === NULL) return null
  const digits = readString(reader)
  if (digits === null || !/^-?\d+$/.test(digits)) throw DAMAGED
  return BigInt(digits)
}

export function readDate(reader: RowReader): Date | null {
  const code = readByte(reader)
  if (code === SHORT_DATE) {
    const low = readUint24(reader)
    return new Date(readUint24(reader) * TWO_24 + low - SHORT_DATE_LIMIT)
  }
  if (code === NULL) return null
  if (code === LONG_DATE) {
    const ms = readFloat(reader)
    const date = new Date(ms)
    if (date.getTime() !== ms) throw DAMAGED
    return date
  }
  if (code === INVALID_DATE) return new Date(Number.NaN)
  throw DAMAGED
}

export function readBuffer(reader: RowReader): Buffer | null {
  const slice = readSlice(reader)
  return slice === null ? null : Buffer.from(slice)
}

export function readUint8Array(reader: RowReader): Uint8Array | null {
  const slice = readSlice(reader)
  return slice === null ? null : new Uint8Array(slice)
}

function readSlice(reader: RowReader): Buffer | null {
  const code = readVarint(reader)
  if (code === NULL) return null
  const start = reader.at
  reader.at += code - 1
  return reader.bytes.subarray(start, reader.at)
}

export function readString(reader: RowReader): string | null {
  const code = readVarint(reader)
  if (code === NULL) return null
  const { text } = reader
  const string = takeText(reader, code - 1)
  return text.length > LARGE_TEXT && string.length >= SHORTEST_CUT && string.length * 2 < text.length
    ? Buffer.from(string, 'utf16le').toString('utf16le')
    : string
}

export function readJson(reader: RowReader): unknown {
  const code = readVarint(reader)
  return code === NULL ? null : parseJson(takeText(reader, code - 1))
}

/**
 * What JSON.parse takes may be nested so deep that whoever goes through it runs out of stack.
 *
 * @throws {@link DAMAGED}, or what JSON.parse throws
 */
export function parseJson(text: string): unknown {
  const value: unknown = JSON.parse(text)
  // A level takes two characters. What is tagged may have one level more: a date in the innermost object is a list.
  if (text.length > 2 * MAX_DEPTH && isDeeper(value, MAX_DEPTH + 1)) throw DAMAGED
  return value
}

function isDeeper(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null) return false
  if (levels === 0) return true
  const items = Array.isArray(value) ? value : Object.values(value)
  for (let i = 0; i < items.length; i++) if (isDeeper(items[i], levels - 1)) return true
  return false
}

/** What {@link RowWriter.flagged} wrote; null for null. */
export function readFlagged(reader: RowReader): { text: string; flag: boolean } | null {
  const code = readVarint(reader)
  if (code === NULL) return null
  const flag = code % 2 === 0
  return { text: takeText(reader, (code - (flag ? 2 : 1)) / 2), flag }
}

function takeText(reader: RowReader, length: number): string {
  const start = reader.cut
  reader.cut = start + length
  return reader.text.substring(start, reader.cut)
}
