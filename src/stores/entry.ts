/**
 * The record of a cache key, one string, first byte its kind:
 *
 * | record | meaning |
 * |---|---|
 * | (none) | nothing known |
 * | `V` schema(2) epoch(4) filled(6) payload | a value; schema: big-endian number of the stored form; epoch: see marks.ts; filled: ms since 1970 |
 * | `N` schema(2) epoch(4) filled(6) | known not to exist |
 * | `L` token(16) epoch(4) | a reader is loading it |
 * | `W` (token(16) deadline(13))+ | write intents: transactions about to commit, each with its own deadline |
 */
const VALUE = 0x56
const ABSENT = 0x4e
const LEASE = 0x4c
const INTENT = 0x57

/** Bytes before the payload of a value; all that an absence has. */
export const HEADER_BYTES = 13
const FILLED_AT = 7
const EPOCH_BYTES = 4
export const TOKEN_BYTES = 16
const LEASE_BYTES = 1 + TOKEN_BYTES + EPOCH_BYTES
const DEADLINE_BYTES = 13
export const INTENT_BYTES = TOKEN_BYTES + DEADLINE_BYTES

/**
 * What a record means to a reader of stored form `schema`:
 * `none` nothing to use, may be acquired; `value` and `absent` an answer; `leased` somebody loads it; `intended`
 * somebody is about to write it; `newer` stored by newer code, to be left alone; `damaged` no record of ours;
 * `unreachable` nobody knows, see {@link UNREACHABLE}.
 */
export type EntryState =
  | 'none'
  | 'value'
  | 'absent'
  | 'leased'
  | 'intended'
  | 'newer'
  | 'damaged'
  | 'unreachable'

/**
 * In the place of a record that could not be asked for, where others could: one of several servers is away. Told by
 * its identity, so that nothing that is stored can pass for it.
 */
export const UNREACHABLE: Buffer = Buffer.from('unreachable')

export function stateOf(record: Buffer | null, schema: number): EntryState {
  if (record === null) return 'none'
  const kind = record[0]
  if (kind === VALUE || kind === ABSENT) {
    if (kind === VALUE ? record.length < HEADER_BYTES : record.length !== HEADER_BYTES) return 'damaged'
    const stored = ((record[1] as number) << 8) | (record[2] as number)
    if (stored === schema) return kind === VALUE ? 'value' : 'absent'
    return stored < schema ? 'none' : 'newer'
  }
  if (kind === LEASE) return record.length === LEASE_BYTES ? 'leased' : 'damaged'
  if (kind === INTENT)
    return record.length > 1 && (record.length - 1) % INTENT_BYTES === 0 ? 'intended' : 'damaged'
  return record === UNREACHABLE ? 'unreachable' : 'damaged'
}

/** Whether a record is of another epoch than `epoch`. Such values are not believed, and such leases do not count. */
export function isOfOtherEpoch(record: Buffer, epoch: Buffer): boolean {
  const kind = record[0]
  if (kind === LEASE)
    return (
      record.length === LEASE_BYTES && record.compare(epoch, 0, EPOCH_BYTES, LEASE_BYTES - EPOCH_BYTES) !== 0
    )
  if (kind !== VALUE && kind !== ABSENT) return false
  return record[3] !== epoch[0] || record[4] !== epoch[1] || record[5] !== epoch[2] || record[6] !== epoch[3]
}

export function isLeaseRecord(record: Buffer): boolean {
  return record[0] === LEASE
}

export function isIntentRecord(record: Buffer): boolean {
  return record[0] === INTENT
}

export function isAnswerRecord(record: Buffer): boolean {
  return record[0] === VALUE || record[0] === ABSENT
}

export function leaseToken(record: Buffer): string {
  return record.toString('latin1', 1, 1 + TOKEN_BYTES)
}

export function leaseEpoch(record: Buffer): Buffer {
  return record.subarray(1 + TOKEN_BYTES)
}

export function leaseRecord(token: string, epoch: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`L${token}`, 'latin1'), epoch])
}

/**
 * When a value or absence was filled, ms since 1970, by the clock of the process that filled it. It also tells two
 * fills of the same bytes apart: `verify` asks whether an entry is still the very same.
 */
export function filledAt(record: Buffer): number {
  return record.readUIntBE(FILLED_AT, 6)
}

/** @param payload null: the row or list is known not to exist */
export function answerRecord(schema: number, epoch: Buffer, payload: Buffer | null, now: number): Buffer {
  const record = Buffer.allocUnsafe(HEADER_BYTES + (payload?.length ?? 0))
  record[0] = payload ? VALUE : ABSENT
  record.writeUInt16BE(schema, 1)
  epoch.copy(record, 3, 0, EPOCH_BYTES)
  record.writeUIntBE(now, FILLED_AT, 6)
  payload?.copy(record, HEADER_BYTES)
  return record
}

export interface Intent {
  readonly token: string
  /** Milliseconds since 1970, by the store's clock. */
  readonly deadline: number
}

export function intentsOf(record: Buffer): Intent[] {
  const intents: Intent[] = []
  for (let at = 1; at + INTENT_BYTES <= record.length; at += INTENT_BYTES) {
    const deadline = Number(record.toString('latin1', at + TOKEN_BYTES, at + INTENT_BYTES))
    intents.push({ token: record.toString('latin1', at, at + TOKEN_BYTES), deadline })
  }
  return intents
}

export function intentRecord(intents: readonly Intent[]): Buffer {
  const text = intents
    .map(({ token, deadline }) => token + String(deadline).padStart(DEADLINE_BYTES, '0'))
    .join('')
  return Buffer.from(`W${text}`, 'latin1')
}
