/** Repeatable numbers from 0 up to, without, `below` (mulberry32). */
export function randomFrom(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below)
  }
}

/** What decoders are likely to take for something else: lengths beyond all bounds, names of prototypes, other forms. */
const INTERESTING = [
  '__proto__',
  '["o","__proto__",["o","polluted",1]]',
  '{"__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}}}',
  'rttttttt',
  'null',
  '[]',
  '['.repeat(500) + ']'.repeat(500),
  '\xff\xff\xff\xff\x7f',
  '\xff\xff\xff\xff\x0f', // 4 GB
  '\xff\xff\xff\xff\xff\xff\xff\x0f',
  '\0',
]

/** The tags of columns, those of value types included. */
const TAGS = 'snoidbujtAB'

/**
 * A record changed in one to four places: bits, bytes, cut out, put in, and joined to a piece of another one.
 *
 * @param tagsFrom where the tags of its columns begin
 */
export function mutate(
  record: Buffer,
  others: readonly Buffer[],
  random: (below: number) => number,
  tagsFrom = 5,
): Buffer {
  let bytes = Buffer.from(record)
  for (let left = 1 + random(4); left > 0 && bytes.length > 0; left--) {
    const at = random(bytes.length)
    const rest = bytes.subarray(at + random(8))
    const other = others[random(others.length)] as Buffer
    switch (random(7)) {
      case 0:
        bytes[at] = (bytes[at] as number) ^ (1 << random(8))
        break
      case 1:
        bytes[at] = random(256)
        break
      case 2:
        bytes = Buffer.from(bytes.subarray(0, at))
        break
      case 3:
        bytes = Buffer.concat([bytes.subarray(0, at), rest])
        break
      case 4:
        bytes = Buffer.concat([
          bytes.subarray(0, at),
          Buffer.from(INTERESTING[random(INTERESTING.length)] as string, 'latin1'),
          rest,
        ])
        break
      case 5:
        bytes = Buffer.concat([bytes.subarray(0, at), other.subarray(random(other.length + 1))])
        break
      default:
        bytes.write(TAGS.charAt(random(TAGS.length)), Math.min(tagsFrom + random(7), bytes.length - 1))
    }
  }
  return bytes
}
