import { randomBytes } from 'node:crypto'

/**
 * The shared cache: one record per key (see entry.ts), always with a ttl, changed only by the steps below, each
 * atomic for one key and for no more. A step that fails rejects StoreUnavailableError and may or may not have
 * happened; none is ever sent again by the store.
 */
export interface CacheStore {
  /** Stands for the connection to one master; another value, or undefined, when it is gone. To be compared only. */
  readonly session: unknown

  /**
   * One round trip. A value or lease from under another master, or from before a `clearPrefix`, comes back as null. Of
   * a store on several servers, what could not be asked for comes back as `UNREACHABLE` (entry.ts) while others answer.
   */
  getMany(keys: readonly string[]): Promise<(Buffer | null)[]>

  /**
   * Leases for keys that hold nothing usable: no record, a value of another epoch, or of a lower schema. Any other
   * record stays and is returned, null means granted, `UNREACHABLE` (entry.ts) is as for `getMany`.
   *
   * @param schemas per key; {@link EVERY_SCHEMA} takes over whatever value is there
   */
  acquire(keys: readonly string[], schemas: readonly number[], leaseMs: number): Promise<Acquired>

  /** Stores what was loaded where the key still holds the lease. Returns how many were stored. */
  fill(lease: Lease, fills: readonly Fill[]): Promise<number>

  /**
   * Puts a write intent on each key, or renews it. Whatever value or lease was there is gone. Resolves to the
   * {@link session} it was done in: in that one, the intents are in force until their ttl is over.
   */
  intend(keys: readonly string[], token: string, ttlMs: number): Promise<unknown>

  /**
   * Takes the intent of `token` away. With `committed`, a value or lease is deleted too: the value may be old, the
   * lease may belong to an old snapshot. The intents of others stay.
   *
   * @param token null: no intent of ours, as for a write that gave none
   */
  clear(keys: readonly string[], token: string | null, committed: boolean): Promise<void>

  /**
   * As `clear(key, null, true)`, but a value or absence is moved to `staleKeyOf(key)`, for so many ms. What is there
   * already stays, until its time is over, where nothing newer takes its place.
   */
  markStale(keys: ReadonlyMap<string, number>): Promise<void>

  /**
   * As `clear(key, null, true)` for every key that begins with `prefix`, in one round trip, however many there are:
   * entries may stay where they are, but are not believed any more.
   */
  clearPrefix(prefix: string): Promise<void>

  /**
   * The keys that begin with `prefix`, in portions and in no order. One that is there all the time is among them,
   * maybe more than once; one that comes or goes meanwhile may be. Stale copies may be left out.
   */
  scan(prefix: string): AsyncIterable<readonly string[]>

  /** What the server behind the store says of itself, or each of several; a store inside the process has none. */
  facts?(): Promise<StoreFacts | readonly NodeFacts[]>

  /**
   * What the user of the connection may not do: commands, `script|load` and the like, and keys, with `~` in front. A
   * store inside the process has no users. Undefined: nobody has looked.
   *
   * @param keys under which nothing is stored, one for each prefix that is used
   */
  missingRights?(keys: readonly string[]): Promise<readonly string[] | undefined>

  /**
   * Elects one of many: true when `candidate` leads under `name` from now on for `ttlMs`, because it did already, or
   * nobody does. For saving work only: a store that forgets may have two leaders for a while.
   */
  lead(name: string, candidate: string, ttlMs: number): Promise<boolean>

  close(): Promise<void>
}

/** For `cache.doctor()`. */
export interface StoreFacts {
  readonly version: string
  /** `master` or `slave`. */
  readonly role: string
  /** Undefined: the server does not show it, so nobody would notice that another one took its place. */
  readonly masterReplid: string | undefined
  /** Bytes; 0: no limit. */
  readonly maxMemory: number
  readonly evictionPolicy: string
  /** How long some round trips took, ms. */
  readonly latenciesMs: readonly number[]
  /** How long a step may take, ms. */
  readonly timeoutMs: number
  /** How far the server's clock is ahead of ours, ms; as exact as a round trip is short. */
  readonly clockAheadMs: number
}

/** Of one server of several. */
export interface NodeFacts {
  /** `host:port` */
  readonly node: string
  /** What is wrong, where it cannot be asked. */
  readonly facts: StoreFacts | Error
}

/** Higher than any schema number: as the schema of a request it calls every value that is there old. */
export const EVERY_SCHEMA = 0xffff

/** The right to fill some keys, good for one fill. */
export interface Lease {
  readonly token: string
  /** The connection the lease was granted on, for the store's own use. A fill goes through it or nowhere. */
  readonly session: unknown
}

export interface Acquired {
  readonly lease: Lease
  readonly records: readonly (Buffer | null)[]
}

export interface Fill {
  readonly key: string
  readonly schema: number
  /** The encoded value; `absent`: there is none; `release`: nothing was loaded, give the lease back. */
  readonly payload: Buffer | 'absent' | 'release'
  readonly ttlMs: number
}

/** A lease or intent token: 16 characters, 96 random bits. Never used twice, so an old fill can never match a new lease. */
export function newToken(): string {
  return randomBytes(12).toString('base64url')
}
