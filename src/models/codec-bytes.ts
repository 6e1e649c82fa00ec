import { DAMAGED } from './codec-errors.ts'

const FIRST_CAPACITY = 1_024
const KEPT_CAPACITY = 64 * 1_024
const TWO_28 = 2 ** 28

const float = new Float64Array(1)
const floatBytes = new Uint8Array(float.buffer)

export type TextEncoding = 'latin1' | 'utf8' | 'utf16le'

/** A growing, reusable buffer. */
export class ByteSink {
  bytes = Buffer.allocUnsafeSlow(FIRST_CAPACITY)
  length = 0

  clear(): void {
    this.length = 0
    if (this.bytes.length > KEPT_CAPACITY) this.bytes = Buffer.allocUnsafeSlow(FIRST_CAPACITY)
  }

  /** Makes sure that `size` more bytes fit. */
  room(size: number): void {
    const needed = this.length + size
    if (needed <= this.bytes.length) return
    const larger = Buffer.allocUnsafeSlow(Math.max(this.bytes.length * 2, needed))
    larger.set(this.bytes.subarray(0, this.length))
    this.bytes = larger
  }

  byte(value: number): void {
    this.room(1)
    this.bytes[this.length++] = value
  }

  /** A non-negative safe integer, seven bits a byte, lowest first. */
  varint(value: number): void {
    this.room(8)
    let rest = value
    while (rest >= 128) {
      this.bytes[this.length++] = (rest % 128) | 128
      rest = Math.floor(rest / 128)
    }
    this.bytes[this.length++] = rest
  }

  uint24(value: number): void {
    this.room(3)
    this.bytes[this.length++] = value
    this.bytes[this.length++] = value >>> 8
    this.bytes[this.length++] = value >>> 16
  }

  float(value: number): void {
    float[0] = value
    this.append(floatBytes, 8)
  }

  append(source: Uint8Array, length: number): void {
    this.room(length)
    const { bytes } = this
    let at = this.length
    if (length > 64) bytes.set(source.length === length ? source : source.subarray(0, length), at)
    else for (let i = 0; i < length; i++) bytes[at++] = source[i] as number
    this.length += length
  }

  /** `size`: bytes that `value` takes in `encoding`. */
  text(value: string, size: number, encoding: TextEncoding): void {
    this.room(size)
    this.bytes.write(value, this.length, size, encoding)
    this.length += size
  }

  /** A copy of what was written. */
  finish(): Buffer {
    return Buffer.from(this.bytes.subarray(0, this.length))
  }
}

/** Bytes and the position in them; the read functions move it. */
export interface ByteCursor {
  readonly bytes: Buffer
  at: number
}

// Past the last byte an index gives undefined, which counts as 0 here: whoever reads checks afterwards where the
// cursor stands. That is once per row instead of once per byte.
export function readByte(cursor: ByteCursor): number {
  return cursor.bytes[cursor.at++] as number
}

export function readVarint(cursor: ByteCursor): number {
  const { bytes } = cursor
  const first = bytes[cursor.at++] as number
  if (first < 128) return first
  let next = bytes[cursor.at++] as number
  let value = (first & 127) | ((next & 127) << 7)
  if (next < 128) return value
  next = bytes[cursor.at++] as number
  value |= (next & 127) << 14
  if (next < 128) return value
  next = bytes[cursor.at++] as number
  value |= (next & 127) << 21
  return next < 128 ? value : readLongVarint(cursor, value)
}

function readLongVarint(cursor: ByteCursor, low: number): number {
  let value = low
  for (let scale = TWO_28; ; scale *= 128) {
    const next = cursor.bytes[cursor.at++]
    if (next === undefined) throw DAMAGED
    value += (next & 127) * scale
    if (value > Number.MAX_SAFE_INTEGER) throw DAMAGED
    if (next < 128) return value
  }
}

export function readUint24(cursor: ByteCursor): number {
  const { bytes, at } = cursor
  cursor.at = at + 3
  return (bytes[at] as number) | ((bytes[at + 1] as number) << 8) | ((bytes[at + 2] as number) << 16)
}

export function readFloat(cursor: ByteCursor): number {
  const { bytes } = cursor
  for (let i = 0; i < 8; i++) floatBytes[i] = bytes[cursor.at++] as number
  return float[0] as number
}
