import type { Code, Program } from './machine.ts'
import type { Property } from './properties.ts'
import type { Item, KeyName, Write } from './rows.ts'
import type { StoreMutation } from './store.ts'
import type { Faults } from './world.ts'

/** What is explored. */
export interface Scenario {
  /** `proceed`: strict, with `onRedisDown: 'proceed'`. */
  readonly level: 'default' | 'strict' | 'proceed'
  /** The keys that are read. What writes do to others is nobody's concern. */
  readonly keys: readonly KeyName[]
  readonly initial: readonly Item[]
  readonly writes: readonly Write[]
  readonly programs: readonly Program[]
  readonly faults: Faults
  /** What is checked beyond {@link ALWAYS}. */
  readonly promises: readonly Property[]
  /** How often a reader looks again at a key that is busy. Default 1. */
  readonly looks?: number
  /** A writer deletes its outbox rows some time after its call. Otherwise at once. */
  readonly deletesLater?: true
  /** Time passes between the snapshot of a load and its answer. Otherwise none does: it matters only to who joins. */
  readonly slowSql?: true
  /** An intent is taken only when the replica has it. */
  readonly waitsForReplica?: true
  readonly mutation?: Mutation
}

/** A guard that is taken out. */
export interface Mutation extends StoreMutation {
  readonly code?: Partial<Code>
  /** Lease tokens are those of the process, not of the load. */
  readonly reusesLeaseTokens?: true
  /** SQL answers with what was committed when the read began. */
  readonly readsOldSnapshot?: true
  /**
   * Without merging of states that differ only in what nobody can notice any more. Needed where the guard that is
   * taken out is the reason why nobody can.
   */
  readonly exact?: true
}

/** The numbers of the callers, per program. */
export function callersOf({ programs }: Scenario): readonly (readonly number[])[] {
  let first = 0
  return programs.map(({ callers }) => {
    const numbers = callers.map((_, i) => first + i)
    first += callers.length
    return numbers
  })
}

/** The write that an intent token stands for: tokens begin with the caller and the number of its call. */
export function writeOfToken(scenario: Scenario, token: string): number {
  const [caller, at] = token.split('.').map(Number)
  const action = scenario.programs.flatMap(({ callers }) => callers)[caller as number]?.[at as number]
  if (!action || !('write' in action)) throw new Error(`${token} is no token of an intent`)
  return action.write
}
