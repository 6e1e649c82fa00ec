import { CommitOutcomeUnknownError, StrictWriteError } from '../errors.ts'
import { type OutboxRow, type TouchedKeys, touchedKeys } from '../models/touched.ts'
import { newToken } from '../stores/store.ts'

/**
 * The write path without I/O, from the last statement of a transaction until its call may return. As a wave, it
 * yields what it needs and is resumed with the answer, or has the error thrown into it.
 */
export type Commit<Party> = Generator<CommitStep<Party>, void, never>

export type CommitStep<Party> =
  /** The outbox rows of this very transaction. → {@link OwnRows} */
  | { readonly op: 'ownRows'; readonly strict: boolean }
  /** → nothing; throws when any key did not get its intent */
  | { readonly op: 'intend'; readonly party: Party; readonly keys: readonly string[]; readonly token: string }
  /**
   * Sends COMMIT, and renews the intents until it is answered. → nothing. Throws UnknownOutcome when it cannot be
   * told whether it happened, anything else when it did not.
   */
  | { readonly op: 'commit'; readonly intents: readonly Intents<Party>[] }
  | { readonly op: 'rollback' }
  /** After COMMIT: the keys of dependent shapes. → {@link TouchedKeys}, all resolved */
  | { readonly op: 'resolve'; readonly touched: TouchedKeys }
  /** → {@link Outcome} of the transaction, asked on another connection */
  | { readonly op: 'outcome'; readonly xid: string }
  | {
      readonly op: 'clear'
      readonly party: Party
      readonly touched: TouchedKeys
      readonly token: string | null
      readonly committed: boolean
    }
  /** Whether intents given before `COMMIT` are known to be in force still. → boolean */
  | { readonly op: 'inForce'; readonly party: Party }
  /** The current scope's memo forgets the keys. */
  | { readonly op: 'forget'; readonly party: Party; readonly touched: TouchedKeys }
  /** Deletes outbox rows that were applied. Not awaited. */
  | { readonly op: 'delete'; readonly party: Party; readonly rows: readonly OutboxRow[] }
  | { readonly op: 'sleep'; readonly ms: number }

export interface Intents<Party> {
  readonly party: Party
  readonly keys: readonly string[]
  readonly token: string
}

export interface OwnRows {
  /** Null: the transaction wrote nothing. */
  readonly xid: string | null
  readonly rows: readonly OutboxRow[]
}

export type Outcome = 'committed' | 'aborted' | 'in progress' | 'unknown'

/** Thrown into a commit whose connection broke before COMMIT was answered. */
export class UnknownOutcome extends Error {
  constructor(cause: unknown) {
    super('the connection broke during COMMIT', { cause })
  }
}

/** A cache that is told of commits. */
export interface CommitParty {
  readonly namespace: string
  /** Whether any of its models is strict. */
  readonly hasStrict: boolean
  /** How a strict model behaves when the store cannot take an intent; undefined for a model that is not strict. */
  strictness(model: string): 'abort' | 'proceed' | undefined
}

/** How often the outcome of a COMMIT is asked for, and how often a clear of strict keys is tried, in ms of waiting. */
const OUTCOME_WAITS = [10, 50, 100, 250, 500, 1000, 2000]
const CLEAR_WAITS = [50, 100, 250, 500, 1000]

/**
 * @param parties the caches on this database
 * @param token makes intent tokens; tests give their own
 */
export function* commitTransaction<Party extends CommitParty>(
  parties: readonly Party[],
  token: () => string = newToken,
): Commit<Party> {
  const own: OwnRows = yield { op: 'ownRows', strict: parties.some(({ hasStrict }) => hasStrict) }
  const plans = parties.map((party) => planOf(party, own.rows)).filter(({ rows }) => rows.length > 0)
  const intents = yield* intend(plans, token)
  try {
    yield { op: 'commit', intents }
  } catch (error) {
    const outcome = error instanceof UnknownOutcome ? yield* learnOutcome(own.xid) : 'aborted'
    if (outcome === 'aborted') {
      yield* withdraw(intents)
      throw error instanceof UnknownOutcome ? error.cause : error
    }
    // The intents stay: should the COMMIT still land, no reader may have filled the old row by then.
    if (outcome !== 'committed') throw new CommitOutcomeUnknownError(own.xid, error)
  }
  for (const plan of plans)
    yield* settle(plan, intents.find(({ party }) => party === plan.party)?.token ?? null)
}

/** What a transaction means to one cache. */
interface Plan<Party> {
  readonly party: Party
  readonly rows: readonly OutboxRow[]
  readonly touched: TouchedKeys
  readonly strictKeys: readonly string[]
  readonly strictModels: readonly string[]
  /** More was written of a strict model than can be given intents. */
  readonly tooMuch: boolean
  /** Whether all strict models that were written may go on without intents. */
  readonly mayProceed: boolean
}

function planOf<Party extends CommitParty>(party: Party, all: readonly OutboxRow[]): Plan<Party> {
  const rows = all.filter(({ namespace }) => namespace === party.namespace)
  const strict = rows.filter(({ model }) => party.strictness(model) !== undefined)
  const { keys, prefixes } = touchedKeys(strict)
  return {
    party,
    rows,
    touched: touchedKeys(rows),
    strictKeys: keys,
    strictModels: [...new Set(strict.map(({ model }) => model))],
    tooMuch: prefixes.length > 0,
    mayProceed: strict.every(({ model }) => party.strictness(model) === 'proceed'),
  }
}

/** Before COMMIT: an intent on every key of a strict model. With any one missing, a reader could fill the old row. */
function* intend<Party>(
  plans: readonly Plan<Party>[],
  token: () => string,
): Generator<CommitStep<Party>, readonly Intents<Party>[], never> {
  const intents: Intents<Party>[] = []
  for (const { party, strictKeys, strictModels, tooMuch, mayProceed } of plans) {
    if (tooMuch && !mayProceed) {
      yield* withdraw(intents)
      yield { op: 'rollback' }
      throw new StrictWriteError(
        strictModels,
        'the transaction writes more rows than intents can be given for; split it',
      )
    }
    if (strictKeys.length === 0) continue
    const mine = { party, keys: strictKeys, token: token() }
    intents.push(mine)
    try {
      yield { op: 'intend', ...mine }
    } catch (cause) {
      if (mayProceed) continue
      yield* withdraw(intents)
      yield { op: 'rollback' }
      throw new StrictWriteError(strictModels, 'the store did not take the write intents', { cause })
    }
  }
  return intents
}

/** Nothing was committed: the intents go, and what they stand on stays forgotten. */
function* withdraw<Party>(intents: readonly Intents<Party>[]): Commit<Party> {
  for (const { party, keys, token } of intents) {
    try {
      yield { op: 'clear', party, touched: { keys, prefixes: [] }, token, committed: false }
    } catch {
      // They end by themselves, at their deadline.
    }
  }
}

function* learnOutcome<Party>(xid: string | null): Generator<CommitStep<Party>, Outcome, never> {
  // Without a transaction id nothing was written, so there is nothing that could have been committed.
  if (xid === null) return 'aborted'
  for (const ms of OUTCOME_WAITS) {
    try {
      const outcome: Outcome = yield { op: 'outcome', xid }
      if (outcome !== 'in progress') return outcome
    } catch {
      // The database may be restarting.
    }
    yield { op: 'sleep', ms }
  }
  return 'unknown'
}

/** After COMMIT, before the call returns: no reader gets the old row from now on. */
function* settle<Party>({ party, touched: own, rows }: Plan<Party>, token: string | null): Commit<Party> {
  let touched = own
  for (const ms of [0, ...CLEAR_WAITS]) {
    if (ms > 0) yield { op: 'sleep', ms }
    try {
      if (touched.unresolved?.length) touched = yield { op: 'resolve', touched }
      yield { op: 'clear', party, touched, token, committed: true }
      yield { op: 'delete', party, rows }
      break
    } catch {
      // The outbox rows stay, for the relay. Without intents there is nothing more to do, and with them in force no
      // reader can take the old row for the new one; if that is not sure, only a clear makes it so.
      if (token === null) break
      const inForce: boolean = yield { op: 'inForce', party }
      if (inForce) break
    }
  }
  yield { op: 'forget', party, touched }
}
