import { messageOf, OptionError, show } from '../errors.ts'
import type { RowCodec } from './codec.ts'
import { CodecFailedError } from './codec-errors.ts'

/**
 * What is done to encoded values before they are stored, and undone when they are read: compression, encryption.
 * Both functions are called with every value, synchronously, so they hold up everything else for as long as they take.
 */
export interface Codec {
  /** Part of the stored form: under another name, what was stored before is loaded anew and never given to `decode`. */
  readonly name: string
  /** What it throws has the value answered, but not cached; `stats().uncached` counts it. */
  encode(bytes: Buffer): Buffer
  /** Has to throw for bytes that `encode` did not make. What it throws is a miss; `stats().damaged` counts it. */
  decode(bytes: Buffer): Buffer
}

/** @throws OptionError */
export function checkCodec(option: string, given: unknown): Codec {
  const { name, encode, decode } = (given ?? {}) as Partial<Codec>
  if (typeof name !== 'string' || name === '') {
    throw new OptionError(`${option}.name`, 'a text that is not empty', name)
  }
  if (typeof encode !== 'function') throw new OptionError(`${option}.encode`, 'a function', encode)
  if (typeof decode !== 'function') throw new OptionError(`${option}.decode`, 'a function', decode)
  return given as Codec
}

/** A row codec whose bytes go through `codec`. */
export function throughCodec(rows: RowCodec, codec: Codec | undefined): RowCodec {
  if (!codec) return rows
  const encode = (bytes: Buffer): Buffer => {
    let encoded: unknown
    try {
      encoded = codec.encode(bytes)
    } catch (cause) {
      throw new CodecFailedError(`codec '${codec.name}': ${messageOf(cause)}`, { cause })
    }
    if (Buffer.isBuffer(encoded)) return encoded
    throw new CodecFailedError(
      `codec '${codec.name}': encode must return a Buffer, but gave ${show(encoded)}`,
    )
  }
  const decode = (record: Buffer, offset: number): Buffer | undefined => {
    try {
      const bytes: unknown = codec.decode(record.subarray(offset))
      return Buffer.isBuffer(bytes) ? bytes : undefined
    } catch {
      return undefined
    }
  }
  return {
    columns: rows.columns,
    fingerprint: rows.fingerprint,
    encodeRow: (row) => encode(rows.encodeRow(row)),
    encodeRows: (list) => encode(rows.encodeRows(list)),
    decodeRow(record, offset) {
      const bytes = decode(record, offset)
      return bytes && rows.decodeRow(bytes, 0)
    },
    decodeRows(record, offset) {
      const bytes = decode(record, offset)
      return bytes && rows.decodeRows(bytes, 0)
    },
  }
}
