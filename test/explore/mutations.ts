import { CommitOutcomeUnknownError } from '../../src/errors.ts'
import {
  type Commit,
  type CommitParty,
  type CommitStep,
  commitTransaction,
  type OwnRows,
} from '../../src/invalidation/commit.ts'
import type { RelayStep } from '../../src/invalidation/relay.ts'
import { type Flight, Flights } from '../../src/loaders/flight.ts'
import type { OutboxRow } from '../../src/models/touched.ts'
import { touchedKeys } from '../../src/models/touched.ts'
import type { Code } from './machine.ts'

/**
 * Code of the library with one guard taken out. The steps of the real generators are left out, added to or put in
 * another order; nothing of the library is written anew.
 */

type Taking = Generator<CommitStep<CommitParty>, unknown, never>
type Take = (step: CommitStep<CommitParty>) => Taking

function* asItIs(step: CommitStep<CommitParty>): Taking {
  return yield step
}

/** The real commit, with each of its steps taken by `take`. */
function* taken(inner: Commit<CommitParty>, take: Take): Commit<CommitParty> {
  let resume = () => inner.next()
  for (;;) {
    const { done, value: step } = resume()
    if (done) return
    try {
      const answer = yield* take(step)
      resume = () => inner.next(answer as never)
    } catch (error) {
      resume = () => inner.throw(error)
    }
  }
}

function commitWith(take: () => Take): Partial<Code> {
  return { commit: (parties, token) => taken(commitTransaction(parties, token), take()) }
}

const isClearAfterCommit = (step: CommitStep<CommitParty>) => step.op === 'clear' && step.committed

/** Nothing is cleared after COMMIT, and the outbox rows are deleted. */
export const noClear = commitWith(
  () =>
    function* (step): Taking {
      return isClearAfterCommit(step) ? undefined : yield* asItIs(step)
    },
)

/** What is to be cleared after COMMIT is cleared right before it. */
export const clearsBeforeCommit = commitWith(() => {
  let rows: readonly OutboxRow[] = []
  return function* (step): Taking {
    if (isClearAfterCommit(step)) return undefined
    if (step.op === 'ownRows') {
      const own = (yield* asItIs(step)) as OwnRows
      rows = own.rows
      return own
    }
    if (step.op === 'commit') {
      const party = { namespace: '', hasStrict: false, strictness: () => undefined }
      yield { op: 'clear', party, touched: touchedKeys(rows), token: null, committed: true }
    }
    return yield* asItIs(step)
  }
})

/** A clear that failed counts as done: the outbox rows are deleted. */
export const forgivesLostClears = commitWith(
  () =>
    function* (step): Taking {
      try {
        return yield* asItIs(step)
      } catch (error) {
        if (isClearAfterCommit(step)) return undefined
        throw error
      }
    },
)

/** After a clear that failed, the intents are taken to be in force without asking. */
export const trustsItsIntents = commitWith(
  () =>
    function* (step): Taking {
      return step.op === 'inForce' ? true : yield* asItIs(step)
    },
)

/** The memo keeps what was written. */
export const remembersWhatWasWritten = commitWith(
  () =>
    function* (step): Taking {
      return step.op === 'forget' ? undefined : yield* asItIs(step)
    },
)

/** Whoever does not hear of a COMMIT says that it was done. */
export const takesUnknownForCommitted = commitWith(
  () =>
    function* (step): Taking {
      return step.op === 'outcome' ? 'committed' : yield* asItIs(step)
    },
)

/** When nobody can tell whether a COMMIT was done, its intents are withdrawn. */
export const withdrawsOnUnknownOutcome: Partial<Code> = {
  *commit(parties, token): Commit<CommitParty> {
    let intents: Extract<CommitStep<CommitParty>, { op: 'commit' }>['intents'] = []
    try {
      yield* taken(commitTransaction(parties, token), function* (step): Taking {
        if (step.op === 'commit') intents = step.intents
        return yield* asItIs(step)
      })
    } catch (error) {
      if (error instanceof CommitOutcomeUnknownError) {
        for (const { party, keys, token: mine } of intents) {
          yield { op: 'clear', party, touched: { keys, prefixes: [] }, token: mine, committed: false }
        }
      }
      throw error
    }
  },
}

/** The relay deletes the outbox rows, and then clears what they name. */
export const relayDeletesFirst: Partial<Code> = {
  *relayTurn(): Generator<RelayStep, number, never> {
    const rows: readonly OutboxRow[] = yield { op: 'take' }
    yield { op: 'delete', rows }
    yield { op: 'clear', touched: touchedKeys(rows) }
    return rows.length
  },
}

/** Any load of the key may be joined, whatever lease was seen. */
class FlightsByKey extends Flights {
  readonly #tokens = new Map<string, string>()

  override get(key: string): Flight | undefined {
    return super.get(key, this.#tokens.get(key) ?? '')
  }

  override begin(key: string, token: string): Flight {
    this.#tokens.set(key, token)
    return super.begin(key, token)
  }
}

export const joinsAnyLoad: Partial<Code> = { flights: () => new FlightsByKey() }

/** A load is never told to those who joined it. */
class SilentFlights extends Flights {
  override begin(key: string, token: string): Flight {
    const flight = super.begin(key, token)
    flight.settle = () => undefined
    return flight
  }
}

export const neverTellsThoseWhoJoined: Partial<Code> = { flights: () => new SilentFlights() }
