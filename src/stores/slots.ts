/** How many hash slots a Redis Cluster divides its keys into. */
export const SLOTS = 16_384

/** CRC16 of XMODEM: polynomial 0x1021, most significant bit first. */
const TABLE = Uint16Array.from({ length: 256 }, (_, byte) => {
  let crc = byte << 8
  for (let bit = 0; bit < 8; bit++) crc = crc & 0x8000 ? (crc << 1) ^ 0x1021 : crc << 1
  return crc
})

/** The slot of a key, as the Redis Cluster specification has it: of what is within its first `{}`, or of all of it. */
export function slotOf(key: string): number {
  const hashed = hashTagOf(key) ?? key
  let crc = 0
  for (let i = 0; i < hashed.length; i++) {
    const code = hashed.charCodeAt(i)
    if (code > 0x7f) return slotOfBytes(Buffer.from(hashed))
    crc = next(crc, code)
  }
  return crc % SLOTS
}

function slotOfBytes(bytes: Buffer): number {
  let crc = 0
  for (const byte of bytes) crc = next(crc, byte)
  return crc % SLOTS
}

function next(crc: number, byte: number): number {
  return ((crc << 8) & 0xffff) ^ (TABLE[((crc >> 8) ^ byte) & 0xff] as number)
}

/** What is within the first `{}` of a key; undefined where there is none, or nothing in it. */
export function hashTagOf(key: string): string | undefined {
  const open = key.indexOf('{')
  if (open === -1) return undefined
  const close = key.indexOf('}', open + 1)
  return close > open + 1 ? key.slice(open + 1, close) : undefined
}
