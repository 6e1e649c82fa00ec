import { LoadError, messageOf, NotUniqueError, OverloadedError, SourceError } from '../errors.ts'
import { CodecFailedError, RowFormError, UnstorableValueError } from '../models/codec.ts'
import { DoNotCache } from '../models/custom.ts'
import { staleKeyOf } from '../models/key.ts'
import type { BoundModel } from '../models/model.ts'
import type { Shape } from '../models/shape.ts'
import type { Answer, Target } from '../models/target.ts'
import type { KeyTexts, ResultRow } from '../sources/source.ts'
import { type EntryState, HEADER_BYTES, leaseToken, stateOf } from '../stores/entry.ts'
import { type Acquired, EVERY_SCHEMA, type Fill, type Lease } from '../stores/store.ts'
import type { Flight, FlightResult, Flights, QueuedLoads } from './flight.ts'
import { Lookup } from './lookup.ts'

/**
 * The read path without I/O: a wave yields what it needs and is resumed with the answer, or has the error thrown
 * into it. The async driver asks the store and the source; a test can answer in any order it likes.
 */
export type Wave = Generator<Step, void, never>

export type Step =
  /** → `(Buffer | null)[]` */
  | { readonly op: 'getMany'; readonly keys: readonly string[] }
  /** → {@link Acquired} */
  | {
      readonly op: 'acquire'
      readonly keys: readonly string[]
      readonly schemas: readonly number[]
      readonly leaseMs: number
    }
  /** → `ResultRow[][]` */
  | {
      readonly op: 'select'
      readonly model: BoundModel
      readonly shape: Shape
      readonly keys: readonly KeyTexts[]
      readonly fallback: FallbackLoad | undefined
    }
  /** For custom caches. → a result per key, see CustomLoad */
  | {
      readonly op: 'load'
      readonly target: Target
      readonly keys: readonly KeyTexts[]
      readonly values: readonly Readonly<Record<string, unknown>>[]
      readonly fallback: FallbackLoad | undefined
    }
  /** → nothing of interest; whether it was refused is for the counters */
  | { readonly op: 'fill'; readonly lease: Lease; readonly fills: readonly Fill[] }
  | { readonly op: 'sleep'; readonly ms: number }
  /** → {@link FlightResult} */
  | { readonly op: 'join'; readonly flight: Flight }
  /**
   * Runs the waves side by side; named again, they go on. → true when all are done, false when `patienceMs` have
   * passed since one was.
   */
  | { readonly op: 'tasks'; readonly tasks: readonly Wave[]; readonly patienceMs: number }

/** A load that the store would have spared, or had others share: it goes through the bulkhead, which may refuse it. */
export interface FallbackLoad {
  /** To be called right before its statement is sent. */
  begins(): void
}

export interface WaveSettings {
  /** How long a lease lasts, ms. */
  readonly leaseMs: number
  /** How long to look again, in ms, for a key that somebody else loads or writes; then SQL without a fill. */
  readonly waitsMs: readonly number[]
  /** How long a loaded value may wait for the slower statements of its wave, ms, before it is filled without them. */
  readonly fillPatienceMs: number
  /** A longer payload is answered, but not cached. */
  readonly maxValueBytes: number
  /** From 0 up to 1: jitter for ttl and waits. */
  readonly random: () => number
}

/** What a wave did, counted per key. */
export interface WaveCounts {
  lookups: number
  /** Distinct keys asked of the store. */
  keys: number
  hits: number
  absents: number
  /** Keys answered with what a write had marked stale, while one process loads anew. */
  stale: number
  misses: number
  /** Lookups whose canonical text only the database knows: SQL, past the store. */
  bypassed: number
  /** Keys that joined a load in this process. */
  joined: number
  /** Keys that somebody else was loading or writing for longer than the wait. */
  waitedOut: number
  /** Keys whose record was no record of ours, or could not be decoded. */
  damaged: number
  /** Loaded values that were answered but not cached: too large, too many rows, or not to be encoded. */
  uncached: number
  /** Keys for which the store was not asked, as its breaker was open. */
  away: number
  /** Keys whose load was refused by the bulkhead: their lookups were rejected with OverloadedError. */
  overloaded: number
  storeErrors: number
  sourceErrors: number
}

export const NO_COUNTS: WaveCounts = Object.freeze({
  lookups: 0,
  keys: 0,
  hits: 0,
  absents: 0,
  stale: 0,
  misses: 0,
  bypassed: 0,
  joined: 0,
  waitedOut: 0,
  damaged: 0,
  uncached: 0,
  away: 0,
  overloaded: 0,
  storeErrors: 0,
  sourceErrors: 0,
})

export interface WaveEnvironment {
  /** False: rows come from SQL alone, and nothing is filled, as inside a transaction. */
  readonly useStore: boolean
  /** True: the store need not be asked, as it is known to be away. */
  readonly isAway: boolean
  /** False: no two lookups are of one key. */
  readonly twins: boolean
  readonly settings: WaveSettings
  readonly flights: Flights
  /** Undefined: loads without the store are not shared. */
  readonly queued: QueuedLoads | undefined
  readonly counts: WaveCounts
  /** Rows came back with other columns than the model was bound with. */
  tableChanged(model: BoundModel): void
}

/** The lookups of one key; more than one only where no memo has made them one, and each gets rows of its own. */
class Entry {
  readonly key: string
  first: Lookup
  others: Lookup[] | undefined = undefined
  readonly target: Target
  state: EntryState = 'none'
  /** The record behind `leased`. */
  record: Buffer | null = null
  /** Whether its lookups are answered, and it is only loaded for the next ones, by who gets the lease. */
  isRefresh = false
  /** Flights that end with what this entry comes to. */
  flights: Flight[] | undefined = undefined

  constructor(lookup: Lookup) {
    this.key = lookup.address.key
    this.first = lookup
    this.target = lookup.target
  }

  add(lookup: Lookup): void {
    let other = lookup
    // A lookup that SQL may answer is first, as the first one gets the rows.
    if (this.first.isOnlyCache && !lookup.isOnlyCache) {
      other = this.first
      this.first = lookup
    }
    if (this.others) this.others.push(other)
    else this.others = [other]
  }

  /** Leaves without an answer what asks only the cache, where nobody asks for more. False: somebody does. */
  leave(): boolean {
    if (!this.first.isOnlyCache) return false
    this.first.leave()
    if (this.others) for (const lookup of this.others) lookup.leave()
    return true
  }

  /** @param record of the store, if it is that which tells */
  answerAbsent(record?: Buffer): void {
    const { target } = this
    if (record) {
      this.first.seenIn(record)
      if (this.others) for (const lookup of this.others) lookup.seenIn(record)
    }
    this.first.answer(target.absent())
    if (this.others) for (const lookup of this.others) lookup.answer(target.absent())
  }

  /** What those who joined are told. */
  land(result: FlightResult): void {
    if (this.flights) for (const flight of this.flights) flight.settle(result)
  }

  fail(error: Error): void {
    this.first.fail(error)
    if (!this.others) return
    // Whoever asks only the cache did not ask for what failed.
    for (const lookup of this.others) {
      if (lookup.isOnlyCache) lookup.leave()
      else lookup.fail(error)
    }
  }
}

/**
 * So many entries are asked of the store and answered in one go. What is left of a large wave comes after what others
 * have asked meanwhile, and the event loop gets its turn.
 */
const LOOK_CHUNK = 1000

/** More keys than this in one statement are split, so that none runs too long. */
const SELECT_CHUNK = 5000

export function* wave(lookups: readonly Lookup[], env: WaveEnvironment): Wave {
  const { counts } = env
  counts.lookups += lookups.length
  const entries: Entry[] = []
  let uncertain: Entry[] = []
  let unstored: Entry[] = []
  let onlyCache = false
  const byKey = env.twins ? new Map<string, Entry>() : undefined
  for (const lookup of lookups) {
    const { key, route } = lookup.address
    if (route === 'nowhere') {
      lookup.answer(lookup.target.absent())
      continue
    }
    if (lookup.isOnlyCache) onlyCache = true
    const twin = byKey?.get(key)
    if (twin) {
      twin.add(lookup)
      continue
    }
    const entry = new Entry(lookup)
    byKey?.set(key, entry)
    if (route !== 'store') uncertain.push(entry)
    else if (lookup.target.usesStore) entries.push(entry)
    else unstored.push(entry)
  }
  counts.keys += entries.length

  let open = entries
  let way: Way = env.useStore ? 'store' : 'past'
  if (env.useStore && env.isAway) {
    way = 'fallback'
    counts.away += entries.length
  } else if (env.useStore && entries.length > 0) {
    try {
      open = yield* look(entries, env)
      for (const entry of open) if (!entry.isRefresh) counts.misses++
    } catch {
      way = 'fallback'
      counts.storeErrors++
    }
  }
  if (onlyCache) {
    open = open.filter((entry) => !entry.leave())
    uncertain = uncertain.filter((entry) => !entry.leave())
    unstored = unstored.filter((entry) => !entry.leave())
  }
  counts.bypassed += uncertain.length
  if (open.length + uncertain.length + unstored.length === 0) return
  yield* new Load(env).run(open, uncertain, unstored, way)
}

/** How what is open is loaded: under leases; from SQL alone, as the application wants it; or so because the store is away. */
type Way = 'store' | 'past' | 'fallback'

/** Asks the store; answers what it has, and returns the rest. */
function* look(entries: readonly Entry[], env: WaveEnvironment): Generator<Step, Entry[], never> {
  if (entries.length <= LOOK_CHUNK) return yield* lookAtOnce(entries, env)
  const open: Entry[] = []
  for (let from = 0; from < entries.length; from += LOOK_CHUNK) {
    try {
      for (const entry of yield* lookAtOnce(entries.slice(from, from + LOOK_CHUNK), env)) open.push(entry)
    } catch (error) {
      // While none is answered, they are all as they were.
      if (from === 0) throw error
      env.counts.storeErrors++
      for (const entry of entries.slice(from)) {
        entry.state = 'unreachable'
        open.push(entry)
      }
      break
    }
  }
  return open
}

function* lookAtOnce(entries: readonly Entry[], env: WaveEnvironment): Generator<Step, Entry[], never> {
  const keys = entries.map(keyOfEntry)
  const staleAt = new Map<Entry, number>()
  for (const entry of entries) {
    if (entry.target.staleForMs === 0) continue
    staleAt.set(entry, keys.length)
    keys.push(staleKeyOf(entry.key))
  }
  const records: (Buffer | null)[] = yield { op: 'getMany', keys }
  const open: Entry[] = []
  for (let i = 0; i < entries.length; i++) {
    const entry = entries[i] as Entry
    if (believe(entry, records[i] as Buffer | null, env)) continue
    const at = staleAt.get(entry)
    open.push((at !== undefined && refreshOf(entry, records[at] as Buffer | null, env)) || entry)
  }
  if (open.some(isUnreachable)) env.counts.storeErrors++
  return open
}

/** Answers an entry from what a write has marked stale. The entry that loads it anew; undefined: there is nothing to answer. */
function refreshOf(entry: Entry, record: Buffer | null, { counts }: WaveEnvironment): Entry | undefined {
  const state = stateOf(record, entry.target.schema)
  if (state === 'absent') entry.answerAbsent(record as Buffer)
  else if (state !== 'value' || !answerFrom(entry, record as Buffer, HEADER_BYTES)) return undefined
  entry.first.isStale = true
  if (entry.others) for (const lookup of entry.others) lookup.isStale = true
  counts.stale++
  const { target, values, address } = entry.first
  // With a lookup that nobody waits for.
  const refresh = new Entry(new Lookup(target, values, address, 'null', undefined))
  refresh.isRefresh = true
  refresh.state = entry.state
  refresh.flights = entry.flights
  return refresh
}

function isUnreachable({ state }: Entry): boolean {
  return state === 'unreachable'
}

function keyOfEntry(entry: Entry): string {
  return entry.key
}

/** Answers an entry from its record, if that is an answer. */
function believe(entry: Entry, record: Buffer | null, { counts }: WaveEnvironment): boolean {
  const state = stateOf(record, entry.target.schema)
  entry.record = state === 'leased' ? record : null
  entry.state = state
  if (state === 'value') {
    if (answerFrom(entry, record as Buffer, HEADER_BYTES)) {
      if (entry.flights) entry.land((record as Buffer).subarray(HEADER_BYTES))
      counts.hits++
      return true
    }
    entry.state = 'damaged'
  } else if (state === 'absent') {
    entry.answerAbsent(record as Buffer)
    entry.land('absent')
    counts.absents++
    return true
  }
  if (entry.state === 'damaged') counts.damaged++
  return false
}

/** Each lookup decodes for itself: rows of one are nobody else's. False: the bytes cannot be read. */
function answerFrom(entry: Entry, bytes: Buffer, offset: number): boolean {
  if (!answerOne(entry, entry.first, bytes, offset)) return false
  return entry.others?.every((lookup) => answerOne(entry, lookup, bytes, offset)) ?? true
}

function answerOne({ target }: Entry, lookup: Lookup, bytes: Buffer, offset: number): boolean {
  if (!lookup.pending) return true
  const answer = target.decode(bytes, offset)
  if (answer === undefined) return false
  if (offset === HEADER_BYTES) lookup.seenIn(bytes)
  lookup.answer(answer)
  return true
}

function groupBy<Key>(entries: readonly Entry[], keyOf: (entry: Entry) => Key): Map<Key, Entry[]> {
  const groups = new Map<Key, Entry[]>()
  for (const entry of entries) {
    const key = keyOf(entry)
    const group = groups.get(key)
    if (group) group.push(entry)
    else groups.set(key, [entry])
  }
  return groups
}

/** Everything of a wave that goes beyond the store's first answer. */
class Load {
  readonly #env: WaveEnvironment
  /** Loaded and not yet given to the store, per lease. */
  readonly #fills = new Map<Lease, Fill[]>()
  readonly #opened: { key: string; flight: Flight }[] = []

  constructor(env: WaveEnvironment) {
    this.#env = env
  }

  *run(open: readonly Entry[], uncertain: readonly Entry[], unstored: readonly Entry[], way: Way): Wave {
    const tasks = uncertain.map((entry) => this.#select([entry], null))
    tasks.push(...this.#selects(unstored, null))
    if (way === 'past') tasks.push(...this.#selects(open, null))
    else if (way === 'fallback') tasks.push(...this.#fallBack(open))
    else if (open.length > 0) tasks.push(this.#settle(open, 0))
    try {
      yield* this.#each(tasks)
      yield* this.#fill()
    } finally {
      for (const { key, flight } of this.#opened) {
        this.#env.queued?.leave(key, flight)
        this.#env.flights.end(key, flight)
      }
    }
  }

  /** Takes leases for what may be taken, waits for what others hold, and loads. */
  *#settle(entries: readonly Entry[], attempt: number): Wave {
    const { settings, flights, counts } = this.#env
    const tasks: Wave[] = []
    const free = entries.filter(({ state }) => state === 'none' || state === 'damaged')
    // What others hold, they load anew.
    let taken = entries.filter(
      (entry) => entry.state !== 'none' && entry.state !== 'damaged' && !entry.isRefresh,
    )
    if (free.length > 0) {
      try {
        const acquired: Acquired = yield {
          op: 'acquire',
          keys: free.map(keyOfEntry),
          schemas: free.map(({ state, target }) => (state === 'damaged' ? EVERY_SCHEMA : target.schema)),
          leaseMs: settings.leaseMs,
        }
        const granted = free.filter((_, i) => acquired.records[i] === null)
        const refused = free.filter((entry, i) => {
          const record = acquired.records[i] as Buffer | null
          return record !== null && !entry.isRefresh && !believe(entry, record, this.#env)
        })
        if (refused.some(isUnreachable)) counts.storeErrors++
        // Damaged even now: what is there came from somebody who writes other bytes than we can read.
        tasks.push(
          ...this.#selects(
            refused.filter(({ state }) => state === 'none' || state === 'damaged'),
            null,
          ),
        )
        taken = [...taken, ...refused.filter(({ state }) => state !== 'none' && state !== 'damaged')]
        tasks.push(...this.#selects(granted, acquired.lease))
      } catch {
        counts.storeErrors++
        tasks.push(...this.#fallBack(free.filter(({ isRefresh }) => !isRefresh)))
      }
    }
    const waiting: Entry[] = []
    const unfilled: Entry[] = []
    for (const entry of taken) {
      const token = entry.state === 'leased' ? leaseToken(entry.record as Buffer) : undefined
      const flight = token && flights.get(entry.key, token)
      if (flight && !entry.flights?.includes(flight)) tasks.push(this.#join(entry, flight))
      // Newer code's values stay for newer code, and a server that is away stays away; waiting would not change them.
      else if (entry.state === 'newer' || entry.state === 'unreachable') unfilled.push(entry)
      else {
        waiting.push(entry)
        // Another process loads it. Whoever sees that token too waits with us, and not each for a statement of its own.
        if (token && !flight) this.#begin(entry, token)
      }
    }
    tasks.push(...this.#fallBack(unfilled.filter(isUnreachable)))
    tasks.push(
      ...this.#selects(
        unfilled.filter((entry) => !isUnreachable(entry)),
        null,
      ),
    )
    if (waiting.length > 0) tasks.push(this.#wait(waiting, attempt))
    yield* this.#each(tasks)
  }

  *#wait(entries: readonly Entry[], attempt: number): Wave {
    const { settings, counts } = this.#env
    const ms = settings.waitsMs[attempt]
    if (ms === undefined) {
      counts.waitedOut += entries.length
      yield* this.#each(this.#selects(entries, null))
      return
    }
    // Half to one and a half times: those who wait for one key do not all come back together.
    yield { op: 'sleep', ms: ms * (0.5 + settings.random()) }
    let open: readonly Entry[] = entries
    try {
      open = yield* look(entries, this.#env)
    } catch {
      counts.storeErrors++
      yield* this.#each(this.#fallBack(entries))
      return
    }
    if (open.length > 0) yield* this.#settle(open, attempt + 1)
  }

  /** @param isFallback whether it is loaded so if there is nothing to be shared */
  *#join(entry: Entry, flight: Flight, isFallback = false): Wave {
    this.#env.counts.joined++
    const result = (yield { op: 'join', flight }) as FlightResult
    if (result instanceof Error) entry.fail(result)
    else if (result === 'absent') entry.answerAbsent()
    else if (result === 'unshared' || !answerFrom(entry, result, 0)) {
      yield* this.#select([entry], null, isFallback)
      return
    }
    // Or those who wait with it for somebody else's load would each send a statement of their own.
    if (isFallback) entry.land(result)
  }

  /** Loads without the store, together with whoever waits for the same rows and has not sent a statement yet. */
  #fallBack(entries: readonly Entry[]): Wave[] {
    const tasks: Wave[] = []
    const own = entries.filter((entry) => {
      const flight = this.#env.queued?.join(entry.key)
      if (flight) tasks.push(this.#join(entry, flight, true))
      return !flight
    })
    return [...tasks, ...this.#selects(own, null, true)]
  }

  /** Runs tasks side by side. What they load is filled in one trip, which does not wait for the slow ones for long. */
  *#each(tasks: Wave[]): Wave {
    for (;;) {
      const finished: boolean = yield { op: 'tasks', tasks, patienceMs: this.#env.settings.fillPatienceMs }
      if (finished) return
      yield* this.#fill()
    }
  }

  /**
   * One statement per shape. What the application loads is apart for each scope, as one that it throws for fails all with
   * it.
   */
  #selects(entries: readonly Entry[], lease: Lease | null, isFallback = false): Wave[] {
    const byTarget = groupBy(entries, ({ target }) => target)
    const groups = [...byTarget].flatMap(([{ shape }, group]) =>
      shape.custom?.load.kind === 'load' ? [...groupBy(group, ({ first }) => first.memo).values()] : [group],
    )
    const tasks: Wave[] = []
    for (const group of groups) {
      for (let from = 0; from < group.length; from += SELECT_CHUNK) {
        tasks.push(this.#select(group.slice(from, from + SELECT_CHUNK), lease, isFallback))
      }
    }
    return tasks
  }

  /**
   * Loads entries of one shape. The statement is sent after the lease was granted, never before: a snapshot from
   * before the lease could be older than a write that had no lease to take away.
   *
   * @param lease null: nothing is filled
   * @param isFallback through the bulkhead, for lack of the store
   */
  *#select(entries: readonly Entry[], lease: Lease | null, isFallback = false): Wave {
    const [{ target }] = entries as readonly [Entry, ...Entry[]]
    if (lease) for (const entry of entries) this.#begin(entry, lease.token)
    const fallback = isFallback ? this.#queue(entries) : undefined
    let results: readonly unknown[]
    try {
      results = yield this.#stepFor(target, entries, fallback)
    } catch (cause) {
      fallback?.begins()
      const error = this.#errorOf(target, cause)
      if (error instanceof OverloadedError) this.#env.counts.overloaded += entries.length
      else this.#env.counts.sourceErrors++
      for (const entry of entries) {
        entry.fail(error)
        entry.land(error)
        if (lease) this.#give(lease, entry, 'release')
      }
      return
    }
    const apart: Wave[] = []
    entries.forEach((entry, i) => {
      const result = target.shape.custom
        ? this.#answerCustom(entry, results[i], apart, isFallback)
        : this.#answer(entry, results[i] as ResultRow[], apart, isFallback)
      entry.land(result)
      if (lease) this.#give(lease, entry, Buffer.isBuffer(result) || result === 'absent' ? result : 'release')
    })
    if (apart.length > 0) yield* this.#each(apart)
  }

  #stepFor(target: Target, entries: readonly Entry[], fallback: FallbackLoad | undefined): Step {
    const keys = entries.map(({ first }) => first.address.texts)
    const { model, shape } = target
    if (!shape.custom) return { op: 'select', model, shape, keys, fallback }
    return { op: 'load', target, keys, values: entries.map(({ first }) => first.values), fallback }
  }

  #errorOf({ name, shape }: Target, cause: unknown): Error {
    if (cause instanceof LoadError || cause instanceof OverloadedError) return cause
    return new SourceError(name, shape.fields, cause)
  }

  /** Others may join the load of these entries until it begins. */
  #queue(entries: readonly Entry[]): FallbackLoad {
    const { queued } = this.#env
    const begun = entries.map((entry) => {
      const flight = queued?.begin(entry.key)
      if (flight) this.#follow(entry, flight)
      return { key: entry.key, flight }
    })
    return {
      begins() {
        for (const { key, flight } of begun) if (flight) queued?.leave(key, flight)
      },
    }
  }

  #begin(entry: Entry, token: string): void {
    this.#follow(entry, this.#env.flights.begin(entry.key, token))
  }

  /** What becomes of the entry, becomes of the flight. */
  #follow(entry: Entry, flight: Flight): void {
    if (entry.flights) entry.flights.push(flight)
    else entry.flights = [flight]
    this.#opened.push({ key: entry.key, flight })
  }

  /** Answers an entry with its rows, and says what others may be given. Lookups that could not get rows of their own go to `apart`. */
  #answer(entry: Entry, rows: readonly ResultRow[], apart: Wave[], isFallback: boolean): FlightResult {
    const { target, first } = entry
    const { model, shape } = target
    const [row] = rows
    if (!row) {
      entry.answerAbsent()
      return 'absent'
    }
    if (shape.kind === 'key' && rows.length > 1) {
      const error = new NotUniqueError(target.name, shape.fields, first.values)
      entry.fail(error)
      return error
    }
    const answer = shape.kind === 'key' ? row : rows
    // Encoded before the caller gets the row, which is theirs to change from then on.
    const isWanted = entry.others !== undefined || entry.flights?.some((flight) => flight.isWanted)
    const payload =
      isWanted && !this.#isTooLong(model, rows) ? this.#encode(target, answer, this.#unstorable) : undefined
    return this.#share(entry, answer, payload instanceof Error ? undefined : payload, apart, isFallback)
  }

  /** As `#answer`, for what a custom cache has loaded. */
  #answerCustom(entry: Entry, result: unknown, apart: Wave[], isFallback: boolean): FlightResult {
    const { target } = entry
    const fail = (error: Error) => {
      entry.fail(error)
      return error
    }
    if (result === null || result === undefined) {
      entry.answerAbsent()
      return 'absent'
    }
    if (result instanceof LoadError) return fail(result)
    if (result instanceof Error) return fail(new LoadError(target.name, messageOf(result), { cause: result }))
    if (result instanceof DoNotCache)
      return this.#share(entry, result.value as Answer, undefined, apart, isFallback)
    // Also where nobody is to have it: whether it can be stored must not depend on how it came to be loaded.
    const payload = this.#encode(target, result, (error) => error)
    if (payload instanceof Error) return fail(new LoadError(target.name, payload.message, { cause: payload }))
    return this.#share(entry, result, payload, apart, isFallback)
  }

  #share(
    entry: Entry,
    answer: Answer,
    payload: Buffer | undefined,
    apart: Wave[],
    isFallback: boolean,
  ): FlightResult {
    const { first, others = [] } = entry
    first.answer(answer)
    if (others.length > 0 && !(payload && answerFrom(entry, payload, 0))) {
      for (const lookup of others) {
        if (!lookup.pending) continue
        if (lookup.isOnlyCache) lookup.leave()
        else apart.push(this.#select([new Entry(lookup)], null, isFallback))
      }
    }
    return payload ?? 'unshared'
  }

  #isTooLong({ definition }: BoundModel, rows: readonly ResultRow[]): boolean {
    if (rows.length <= definition.maxListRows) return false
    this.#env.counts.uncached++
    return true
  }

  readonly #unstorable = () => {
    this.#env.counts.uncached++
    return undefined
  }

  /** @param unstorable what a value that cannot be stored comes to */
  #encode<Unstorable>(
    target: Target,
    answer: Answer,
    unstorable: (error: UnstorableValueError) => Unstorable,
  ): Buffer | Unstorable | undefined {
    const { settings, counts } = this.#env
    try {
      const payload = target.encode(answer)
      if (payload.length <= settings.maxValueBytes) return payload
      counts.uncached++
    } catch (error) {
      if (error instanceof UnstorableValueError) return unstorable(error)
      const isTableChanged = error instanceof RowFormError
      if (!isTableChanged && !(error instanceof CodecFailedError)) throw error
      counts.uncached++
      if (isTableChanged) this.#env.tableChanged(target.model)
    }
    return undefined
  }

  #give(lease: Lease, { key, target }: Entry, payload: Fill['payload']): void {
    const { settings } = this.#env
    const ttlMs = payload === 'absent' ? target.negativeTtlMs : target.ttlMs
    const fill = {
      key,
      schema: target.schema,
      payload,
      ttlMs: Math.ceil(ttlMs * (1 - settings.random() / 10)),
    }
    const fills = this.#fills.get(lease)
    if (fills) fills.push(fill)
    else this.#fills.set(lease, [fill])
  }

  *#fill(): Wave {
    const { flights, counts } = this.#env
    for (const [lease, fills] of this.#fills) {
      this.#fills.delete(lease)
      try {
        yield { op: 'fill', lease, fills }
      } catch {
        // Nobody waits for a fill, and what it would have stored is loaded again when it is asked for.
        counts.storeErrors++
      }
      for (const { key } of fills) {
        const flight = flights.get(key, lease.token)
        if (flight) flights.end(key, flight)
      }
    }
  }
}
