import { isDeepStrictEqual } from 'node:util'
import { CodecFailedError, RowFormError, UnstorableValueError } from '../models/codec.ts'
import type { BoundModel } from '../models/model.ts'
import type { Shape } from '../models/shape.ts'
import type { Answer, Target } from '../models/target.ts'
import type { ResultRow } from '../sources/source.ts'
import { HEADER_BYTES, stateOf } from '../stores/entry.ts'

export interface Unchecked {
  /** Gone by the time they were read, cleared with their model, or filled under another Redis master: nobody reads them. */
  gone: number
  /** Stored by older or newer code. */
  otherSchema: number
  /** Being loaded. */
  leased: number
  /** About to be written. */
  intended: number
  /** No record of ours, or one that cannot be decoded: a lookup takes it for a miss. */
  damaged: number
  /** The key tells its values only as a hash, or not as this version writes them. */
  unverifiable: number
  /** Of shapes that this cache does not declare. */
  undeclared: number
}

/** What became of a key that was looked at. */
export type Verdict = 'right' | 'wrong' | keyof Unchecked

/**
 * @param rows what the database has for the key; undefined when it cannot be asked for it
 */
export function verdictOf(
  bound: BoundModel,
  shape: Shape,
  record: Buffer | null,
  rows: readonly ResultRow[] | undefined,
): Verdict {
  const state = stateOf(record, bound.schema)
  switch (state) {
    case 'none':
      return record ? 'otherSchema' : 'gone'
    case 'newer':
      return 'otherSchema'
    case 'unreachable':
      return 'gone'
    case 'value':
    case 'absent':
      if (!rows) return 'unverifiable'
      if (state === 'absent') return rows.length === 0 ? 'right' : 'wrong'
      return compare(bound, shape, record as Buffer, rows)
    default:
      return state
  }
}

/**
 * As {@link verdictOf}, for an entry of a custom cache.
 *
 * @param answer what it would be filled with; undefined when that cannot be loaded for a key alone
 */
export function customVerdictOf(target: Target, record: Buffer | null, answer: Answer | undefined): Verdict {
  const state = stateOf(record, target.schema)
  if (state === 'none') return record ? 'otherSchema' : 'gone'
  if (state === 'newer') return 'otherSchema'
  if (state === 'unreachable') return 'gone'
  if (state !== 'value' && state !== 'absent') return state
  if (answer === undefined) return 'unverifiable'
  if (state === 'absent' || answer === null) return state === 'absent' && answer === null ? 'right' : 'wrong'
  const stored = target.decode(record as Buffer, HEADER_BYTES)
  if (stored === undefined) return 'damaged'
  return isDeepStrictEqual(stored, target.decode(target.encode(answer), 0)) ? 'right' : 'wrong'
}

/** Compares what a lookup would return with what it would return after a fresh fill. */
function compare(
  { codec }: BoundModel,
  { kind }: Shape,
  record: Buffer,
  rows: readonly ResultRow[],
): Verdict {
  const decode = (bytes: Buffer, offset: number) =>
    kind === 'key' ? codec.decodeRow(bytes, offset) : codec.decodeRows(bytes, offset)
  let fresh: unknown = kind === 'key' ? undefined : []
  try {
    // Before the stored one is decoded: of some classes a codec must have met a value before it can make one.
    if (rows.length > 0) {
      fresh = decode(kind === 'key' ? codec.encodeRow(rows[0] as ResultRow) : codec.encodeRows(rows), 0)
    }
  } catch (error) {
    // The table has other columns than when the model was bound to it, or a codec of the application fails.
    if (error instanceof RowFormError || error instanceof CodecFailedError) return 'unverifiable'
    if (!(error instanceof UnstorableValueError)) throw error
  }
  const stored = decode(record, HEADER_BYTES)
  if (stored === undefined) return 'damaged'
  if (kind === 'key' && rows.length !== 1) return 'wrong'
  return isDeepStrictEqual(stored, fresh) ? 'right' : 'wrong'
}
