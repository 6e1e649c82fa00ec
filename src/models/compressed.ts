import { deflateSync, inflateSync } from 'node:zlib'
import { checkOptionNames, integerOption } from '../options.ts'
import type { Codec } from './codec-layer.ts'

export interface CompressedOptions {
  /** Shorter values stay as they are, bytes. Default 1024. Lower: time for little; higher: longer values take more room. */
  readonly threshold?: number | undefined
  /**
   * 1 (fastest) to 9 (smallest). Default 3. A 10 kB list of rows comes to 28 % in 36 us with 1, 27 % in 40 us with 3,
   * 26 % in 65 us with 6, and is read in 15 us. Any level reads what another one wrote.
   */
  readonly level?: number | undefined
  /** No value is longer before compression, bytes: a longer one is not cached, and no more is ever unpacked. Default 16 MiB. */
  readonly maxBytes?: number | undefined
}

/** The first byte: what follows. */
const RAW = 0
const DEFLATED = 1

/**
 * A codec that compresses longer values, with `node:zlib`.
 *
 * The format is zlib's own, whose checksum tells damaged bytes from good ones. JSON-like rows of 1, 10 and 100 kB come to
 * 42, 27 and 25 % in 13, 40 and 660 us, and are read in 7, 15 and 85 us. Brotli at its fastest comes to 45, 29 and 24 % in
 * 13, 34 and 480 us, and is read in 8, 22 and 144 us: reading counts, as a cached value is read more often than written.
 *
 * @throws OptionError
 */
export function compressed(options: CompressedOptions = {}): Codec {
  checkOptionNames('compressed', options, ['threshold', 'level', 'maxBytes'])
  const threshold = integerOption('compressed.threshold', options.threshold ?? 1024, 0)
  const level = integerOption('compressed.level', options.level ?? 3, 1, 9)
  const maxBytes = integerOption('compressed.maxBytes', options.maxBytes ?? 16 * 1024 * 1024, 1, 0x7fff_ffff)
  return Object.freeze({
    name: 'deflate',
    encode(bytes: Buffer): Buffer {
      if (bytes.length > maxBytes) throw new RangeError(`${bytes.length} bytes are more than maxBytes`)
      if (bytes.length >= threshold) {
        const packed = deflateSync(bytes, { level })
        if (packed.length < bytes.length) return flagged(DEFLATED, packed)
      }
      return flagged(RAW, bytes)
    },
    decode(bytes: Buffer): Buffer {
      const rest = bytes.subarray(1)
      if (bytes[0] === RAW) return rest
      if (bytes[0] !== DEFLATED) throw new TypeError('not bytes of this codec')
      return inflateSync(rest, { maxOutputLength: maxBytes })
    },
  })
}

function flagged(flag: number, bytes: Buffer): Buffer {
  const result = Buffer.allocUnsafe(bytes.length + 1)
  result[0] = flag
  result.set(bytes, 1)
  return result
}
