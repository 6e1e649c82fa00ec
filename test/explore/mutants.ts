import {
  INSIDE,
  type Named,
  NEVER,
  named,
  ONE_SCOPE,
  ONE_WRITER,
  SMALL_PROCESS,
  STRICT,
  TWO_AND_TWO,
  withDefault,
  withStrict,
} from './configurations.ts'
import * as bend from './mutations.ts'
import type { Property } from './properties.ts'

export interface Mutant extends Named {
  /** What the mutation breaks. */
  readonly breaks: Property
  /** The shortest trace has no more steps than this. */
  readonly within: number
  /** For those that are classics. */
  readonly trace?: readonly string[]
}

/** Each has one guard less, and breaks a promise. */
export const MUTANTS: readonly Mutant[] = [
  {
    ...named('a fill that needs no lease', NEVER, { ...withDefault(), ...ONE_WRITER }),
    mutation: { fillsWithoutLease: true, exact: true },
    breaks: 'P1',
    within: 6,
    trace: [
      'R1: getMany A: finds nothing',
      'R1: acquire A -> lease of R1',
      'R1: SQL says A = [9], R1 gets A = [9]',
      'W1: COMMIT',
      'W1: clear A -> nothing, its call returns',
      'R1: fill A -> [9]',
      'end: A: database [1 9], store [9]',
    ],
  },
  {
    ...named('SQL before the lease', NEVER, { ...withDefault(), ...ONE_WRITER }),
    mutation: { readsOldSnapshot: true },
    breaks: 'P1',
    within: 6,
  },
  {
    ...named('lease tokens used again', NEVER, { ...withDefault(), ...ONE_WRITER }),
    mutation: { reusesLeaseTokens: true, exact: true },
    breaks: 'P1',
    within: 10,
  },
  {
    ...named('no clear after COMMIT', NEVER, { ...withDefault(), ...ONE_WRITER }),
    mutation: { code: bend.noClear },
    breaks: 'P1',
    within: 6,
  },
  {
    ...named('clear before COMMIT only', NEVER, { ...withDefault(), ...ONE_WRITER }),
    mutation: { code: bend.clearsBeforeCommit },
    breaks: 'P1',
    within: 7,
  },
  {
    ...named('a failed clear counts as done', { loss: 1 }, { ...withDefault([]), ...ONE_WRITER }),
    mutation: { code: bend.forgivesLostClears },
    breaks: 'P1',
    within: 6,
  },
  {
    ...named('the relay deletes first', { crash: 1, relayCrash: 1 }, { ...withDefault(), ...ONE_WRITER }),
    mutation: { code: bend.relayDeletesFirst },
    breaks: 'P1',
    within: 9,
    trace: [
      'R1: getMany A: finds nothing',
      'R1: acquire A -> lease of R1',
      'R1: SQL says A = [9], R1 gets A = [9]',
      'R1: fill A -> [9]',
      'W1: COMMIT',
      'relay: takes the outbox rows of W1',
      'relay: deletes the rows it took',
      'W1: dies',
      'relay: dies; another one takes over',
      'end: A: database [1 9], store [9]',
    ],
  },
  {
    ...named('a lookup in a transaction fills', NEVER, { ...withDefault(), ...INSIDE }),
    mutation: { code: { insideUsesStore: true } },
    breaks: 'P5',
    within: 4,
  },
  {
    ...named('joins any load', NEVER, { ...withDefault(), ...SMALL_PROCESS }),
    mutation: { code: bend.joinsAnyLoad, exact: true },
    breaks: 'P3',
    within: 8,
  },
  {
    ...named('leases of any master count', { failover: 1 }, { ...withDefault(), ...SMALL_PROCESS }),
    mutation: { leasesOfAnyEpochCount: true, exact: true },
    breaks: 'P3',
    within: 8,
  },
  {
    ...named('a load nobody hears of', NEVER, { ...withDefault(), ...SMALL_PROCESS }),
    mutation: { code: bend.neverTellsThoseWhoJoined, exact: true },
    breaks: 'ends',
    within: 8,
  },
  {
    ...named('the memo keeps what was written', NEVER, { ...withDefault(['P2']), ...ONE_SCOPE }),
    mutation: { code: bend.remembersWhatWasWritten },
    breaks: 'P2',
    within: 6,
  },
  {
    ...named('takes unknown for committed', { unknown: 1 }, { ...withDefault(), ...ONE_WRITER }),
    mutation: { code: bend.takesUnknownForCommitted },
    breaks: 'told',
    within: 3,
  },
  {
    ...named('believes any epoch', { failover: 1 }, { ...withDefault(), ...ONE_WRITER }),
    mutation: { believesAnyEpoch: true },
    breaks: 'P1',
    within: 8,
  },
  {
    ...named('fills in any session', { failover: 1 }, { ...withDefault(), ...ONE_WRITER }),
    mutation: { fillsInAnySession: true, exact: true },
    breaks: 'P1',
    within: 8,
  },
  {
    ...named('no intents', NEVER, { ...withDefault(STRICT), ...ONE_WRITER }),
    breaks: 'P3s',
    within: 8,
    trace: [
      'R1: getMany A: finds nothing',
      'R1: acquire A -> lease of R1',
      'R1: SQL says A = [9], R1 gets A = [9]',
      'R2: getMany A: finds lease of R1',
      'R2: getMany A: finds lease of R1',
      'W1: COMMIT',
      'R2: SQL says A = [1 9], R2 gets A = [1 9]',
      'R1: getMany A: finds lease of R1, R1 gets A = [9]',
      'end: A: database [1 9], store lease of R1',
    ],
  },
  {
    ...named('goes on without intents', { loss: 1 }, { level: 'proceed', promises: STRICT, ...ONE_WRITER }),
    breaks: 'P3s',
    within: 10,
  },
  {
    ...named('intents replace others', NEVER, { ...withStrict(), ...TWO_AND_TWO }),
    mutation: { intentsReplaceOthers: true },
    breaks: 'P3s',
    within: 13,
  },
  {
    ...named("clears others' intents", NEVER, { ...withStrict(), ...TWO_AND_TWO }),
    mutation: { clearsOthersIntents: true },
    breaks: 'P3s',
    within: 13,
  },
  {
    ...named('withdraws on unknown outcome', { unknown: 1 }, { ...withStrict(), ...ONE_WRITER }),
    mutation: { code: bend.withdrawsOnUnknownOutcome },
    breaks: 'P3s',
    within: 13,
  },
  {
    ...named('trusts its intents', { restart: 1, loss: 1 }, { ...withStrict(['P3']), ...ONE_WRITER }),
    mutation: { code: bend.trustsItsIntents },
    breaks: 'P3',
    within: 10,
  },
]
