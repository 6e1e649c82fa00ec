import {
  HEADER_BYTES,
  intentRecord,
  intentsOf,
  isIntentRecord,
  isLeaseRecord,
  leaseEpoch,
  leaseRecord,
  leaseToken,
} from '../../src/stores/entry.ts'
import type { Fill, Lease } from '../../src/stores/store.ts'
import type { Blocked } from './machine.ts'
import {
  acquired,
  cleared,
  filled,
  holdsLease,
  intended,
  mayAcquire,
  type StoreRecord,
  seen,
} from './records.ts'
import { addressOf, ITEMS, type KeyName, type Table } from './rows.ts'
import type { Message } from './world.ts'

/** The clock stands still: what a clock would do is a fault of its own, so that it can come at any moment. */
const NOW = 1_000
const INTENT_TTL_MS = 30_000
/** The tokens of leases that nobody can fill any more. */
const nobody = (i: number) => `nobody ${i}`.padEnd(16, '-')

/** What goes wrong in a store that does not keep to the protocol. */
export interface StoreMutation {
  readonly fillsWithoutLease?: true
  readonly fillsInAnySession?: true
  readonly believesAnyEpoch?: true
  readonly leasesOfAnyEpochCount?: true
  readonly intentsReplaceOthers?: true
  readonly clearsOthersIntents?: true
}

/** A record, with what the explorer asks of it. */
export interface Stored {
  readonly record: StoreRecord
  readonly kind: 'none' | 'value' | 'lease' | 'intents'
  /** Of the lease, or of the intents. */
  readonly tokens: readonly string[]
  /** Which writes the value shows, per key; undefined: it is no value the table ever had. */
  readonly shown: readonly (number | undefined)[]
}

/**
 * The store: records by number, so that states are small and quickly compared, and the messages that change them.
 * Number 0 is no record.
 */
export class Store {
  readonly #table: Table
  readonly #keys: readonly KeyName[]
  readonly #indexes: ReadonlyMap<string, number>
  readonly #mutation: StoreMutation
  readonly #stored: Stored[] = []
  readonly #numbers = new Map<string, number>()
  readonly #messages = new WeakMap<Blocked, readonly Message[]>()

  constructor(table: Table, keys: readonly KeyName[], mutation: StoreMutation) {
    this.#table = table
    this.#keys = keys
    this.#indexes = new Map(keys.map((key, i) => [addressOf(key).key, i]))
    this.#mutation = mutation
    this.numberOf(null)
  }

  of(number: number): Stored {
    return this.#stored[number] as Stored
  }

  /** @param record its intents are put in order: they are a set */
  numberOf(record: StoreRecord): number {
    const normal = record && isIntentRecord(record) ? intentRecord(intentsOf(record).sort(byToken)) : record
    const name = normal ? normal.toString('latin1') : ''
    let number = this.#numbers.get(name)
    if (number === undefined) {
      number = this.#stored.length
      this.#numbers.set(name, number)
      this.#stored.push(this.#describe(normal))
    }
    return number
  }

  /**
   * Leases that nobody knows any more are one like another: they get the first name that nobody knows either.
   *
   * @param isKnown whether a token matters to anybody
   */
  settled(records: readonly number[], isKnown: (token: string) => boolean): readonly number[] {
    const isForgotten = (number: number) => {
      const { kind, tokens } = this.of(number)
      return kind === 'lease' && !isKnown(tokens[0] as string)
    }
    if (!records.some(isForgotten)) return records
    let i = 0
    while (isKnown(nobody(i))) i++
    const renamed = (number: number) =>
      this.numberOf(leaseRecord(nobody(i), leaseEpoch(this.of(number).record as Buffer)))
    return records.map((number) => (isForgotten(number) ? renamed(number) : number))
  }

  without(number: number, token: string): number {
    return this.numberOf(cleared(this.of(number).record, token, false, NOW))
  }

  epochOf(session: number): Buffer {
    return Buffer.from(String(session).padStart(4, '0'), 'latin1')
  }

  /** Whether a reader would believe the value. */
  isBelieved(number: number, session: number): boolean {
    return this.#seen(this.of(number).record, session) !== null
  }

  /** Whether a key still holds a lease. */
  holds(records: readonly number[], key: number, token: string): boolean {
    const { kind, tokens } = this.of(records[key] as number)
    return kind === 'lease' && tokens[0] === token
  }

  /** Whether the client sends a fill at all. */
  canFill({ session }: Lease, now: number): boolean {
    return session === now || this.#mutation.fillsInAnySession === true
  }

  /** What a step sends, in the order of its keys; keys that nobody reads are left out. */
  messagesOf(blocked: Blocked): readonly Message[] {
    let messages = this.#messages.get(blocked)
    if (!messages) {
      messages = this.#makeMessages(blocked)
      this.#messages.set(blocked, messages)
    }
    return messages
  }

  #makeMessages({ step, leaseToken }: Blocked): readonly Message[] {
    switch (step.op) {
      case 'getMany':
        return this.#each(step.keys, 'getMany', (record, session) => [record, this.#seen(record, session)])
      case 'acquire':
        return this.#each(step.keys, `acquire ${leaseToken} ${step.schemas}`, (record, session, i) =>
          !this.#countsAnyway(record) && mayAcquire(record, step.schemas[i] as number, this.epochOf(session))
            ? [acquired(leaseToken, this.epochOf(session)), null]
            : [record, record],
        )
      case 'fill':
        return this.#fills(step.lease, step.fills)
      case 'intend':
        return this.#each(step.keys, `intend ${step.token}`, (record) => [
          this.#intended(record, step.token),
          null,
        ])
      case 'clear': {
        const { token, committed } = 'party' in step ? step : { token: null, committed: true }
        const { keys, prefixes } = step.touched
        const wiped = [...this.#indexes.keys()].filter((key) =>
          prefixes.some((prefix) => key.startsWith(prefix)),
        )
        const messages = (names: readonly string[], by: string | null) =>
          this.#each(names, `clear ${by} ${committed}`, (record) => [
            this.#cleared(record, by, committed),
            null,
          ])
        return [...messages(keys, token), ...messages(wiped, null)]
      }
      default:
        return []
    }
  }

  #fills(lease: Lease, fills: readonly Fill[]): readonly Message[] {
    const byKey = new Map(fills.map((fill) => [fill.key, fill]))
    const text = `fill ${lease.token} ${fills.map(({ payload }) => payload.toString('latin1'))}`
    return this.#each([...byKey.keys()], text, (record, session, i) => {
      const letIn = this.#mutation.fillsWithoutLease || holdsLease(record, lease.token)
      return [letIn ? filled(fills[i] as Fill, this.epochOf(session), NOW) : record, null]
    })
  }

  #each(
    keys: readonly string[],
    text: string,
    run: (
      record: StoreRecord,
      session: number,
      i: number,
    ) => readonly [after: StoreRecord, reply: StoreRecord],
  ): readonly Message[] {
    return keys.flatMap((name, i) => {
      const key = this.#indexes.get(name)
      if (key === undefined) return []
      const known = new Map<number, { record: number; reply: number }>()
      return {
        text,
        key,
        run: (number: number, session: number) => {
          const name = number * 16 + session
          let result = known.get(name)
          if (!result) {
            const [after, reply] = run(this.of(number).record, session, i)
            result = { record: this.numberOf(after), reply: this.numberOf(reply) }
            known.set(name, result)
          }
          return result
        },
      }
    })
  }

  #countsAnyway(record: StoreRecord): boolean {
    return this.#mutation.leasesOfAnyEpochCount === true && record !== null && isLeaseRecord(record)
  }

  #seen(record: StoreRecord, session: number): StoreRecord {
    if (this.#mutation.believesAnyEpoch || this.#countsAnyway(record)) return record
    return seen(record, this.epochOf(session))
  }

  #intended(record: StoreRecord, token: string): StoreRecord {
    const others = this.#mutation.intentsReplaceOthers ? null : record
    return intended(others, token, NOW + INTENT_TTL_MS, NOW)
  }

  #cleared(record: StoreRecord, token: string | null, committed: boolean): StoreRecord {
    if (this.#mutation.clearsOthersIntents && committed) return null
    return cleared(record, token, committed, NOW)
  }

  #describe(record: StoreRecord): Stored {
    if (!record) return { record, kind: 'none', tokens: [], shown: [] }
    if (isLeaseRecord(record)) return { record, kind: 'lease', tokens: [leaseToken(record)], shown: [] }
    if (isIntentRecord(record)) {
      return { record, kind: 'intents', tokens: intentsOf(record).map(({ token }) => token), shown: [] }
    }
    return { record, kind: 'value', tokens: [], shown: this.#keys.map((key) => this.#shownBy(key, record)) }
  }

  #shownBy(key: KeyName, record: Buffer): number | undefined {
    const isRow = key.startsWith('#')
    if (record[0] === 'N'.charCodeAt(0)) return this.#table.shownBy(key, isRow ? null : [])
    const { codec } = ITEMS
    const answer = isRow ? codec.decodeRow(record, HEADER_BYTES) : codec.decodeRows(record, HEADER_BYTES)
    return answer && this.#table.shownBy(key, answer)
  }
}

function byToken(a: { readonly token: string }, b: { readonly token: string }): number {
  return a.token < b.token ? -1 : 1
}
