import {
  answerRecord,
  type Intent,
  intentRecord,
  intentsOf,
  isAnswerRecord,
  isIntentRecord,
  isLeaseRecord,
  isOfOtherEpoch,
  leaseRecord,
  leaseToken,
} from '../../src/stores/entry.ts'
import type { Fill } from '../../src/stores/store.ts'

/**
 * The steps of a store on one record, as functions: what MemoryStore and the scripts do, without the promises. The
 * explorer has to take them inside one step of its own. `records.test.ts` compares them with MemoryStore.
 */
export type StoreRecord = Buffer | null

/** What `getMany` answers: values and leases of another epoch do not count. */
export function seen(record: StoreRecord, epoch: Buffer): StoreRecord {
  return record && isOfOtherEpoch(record, epoch) ? null : record
}

/** Whether a lease is granted on a key that holds `record`. */
export function mayAcquire(record: StoreRecord, schema: number, epoch: Buffer): boolean {
  if (!record || isOfOtherEpoch(record, epoch)) return true
  return isAnswerRecord(record) && record.readUInt16BE(1) < schema
}

export function acquired(token: string, epoch: Buffer): Buffer {
  return leaseRecord(token, epoch)
}

export function holdsLease(record: StoreRecord, token: string): boolean {
  return record !== null && isLeaseRecord(record) && leaseToken(record) === token
}

/** What a fill stores where it is let in. */
export function filled({ schema, payload }: Fill, epoch: Buffer, now: number): StoreRecord {
  if (payload === 'release') return null
  return answerRecord(schema, epoch, payload === 'absent' ? null : payload, now)
}

export function intended(record: StoreRecord, token: string, deadline: number, now: number): StoreRecord {
  return intentRecord([{ token, deadline }, ...othersIn(record, token, now)])
}

export function cleared(
  record: StoreRecord,
  token: string | null,
  committed: boolean,
  now: number,
): StoreRecord {
  if (!record) return null
  if (!isIntentRecord(record)) return committed ? null : record
  if (token === null) return record
  const others = othersIn(record, token, now)
  return others.length > 0 ? intentRecord(others) : null
}

function othersIn(record: StoreRecord, token: string, now: number): readonly Intent[] {
  if (!record || !isIntentRecord(record)) return []
  return intentsOf(record).filter((intent) => intent.deadline > now && intent.token !== token)
}
