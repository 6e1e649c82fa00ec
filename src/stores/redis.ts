import { messageOf, StoreUnavailableError } from '../errors.ts'
import { staleKeyOf } from '../models/key.ts'
import { checkOptionNames, type Duration, durationMs, integerOption } from '../options.ts'
import {
  chunks,
  escapeGlob,
  MARKS_TTL_MS,
  masterOf,
  OWN_CONNECTION,
  PATIENCE_MS,
  readFacts,
  WRITE_CHUNK,
  WRITE_PATIENCE_MS,
  within,
} from './connection.ts'
import { answerRecord, isOfOtherEpoch } from './entry.ts'
import type { ProbedStore } from './guarded.ts'
import { Marks, newMark } from './marks.ts'
import { ACQUIRE, CLEAR, FILL, INTEND, LEAD, MARK, RIGHTS, SCRIPTS, type Script, STALE } from './scripts.ts'
import { type Acquired, type Fill, type Lease, newToken, type StoreFacts } from './store.ts'

/** What Loadstone needs of an ioredis `Redis` (5.x or 6.x): where to connect, and how to make a connection of its own. */
export interface RedisClient {
  readonly options: object
  duplicate(override?: object): unknown
}

type Argument = string | number | Buffer

/** The part of an ioredis client that is used on Loadstone's own connection. */
interface Connection {
  readonly status: string
  readonly options: { readonly keyPrefix?: string }
  connect(): Promise<void>
  disconnect(reconnect?: boolean): void
  on(event: 'connect' | 'ready' | 'close' | 'end' | 'error', listener: (error?: unknown) => void): unknown
  info(section: string): Promise<string>
  time(): Promise<readonly (string | number)[]>
  script(command: 'LOAD', source: string): Promise<unknown>
  mgetBuffer(keys: readonly string[]): Promise<(Buffer | null)[]>
  evalshaBuffer(sha: string, keyCount: number, ...args: Argument[]): Promise<unknown>
  evalBuffer(source: string, keyCount: number, ...args: Argument[]): Promise<unknown>
  pexpire(key: string, ms: number): Promise<unknown>
  wait(replicas: number, timeoutMs: number): Promise<number>
  scan(
    cursor: string,
    match: 'MATCH',
    pattern: string,
    count: 'COUNT',
    size: number,
  ): Promise<[string, string[]]>
}

export interface RedisStoreOptions {
  /** How long a step may take before it counts as failed. Default 50 ms. */
  readonly timeout?: Duration
  /** How many replicas must have an intent before it counts, and how long that may take. Default 0. */
  readonly intentReplicas?: number
  /** How often the master is asked whether it is still the same. Default 2 s. */
  readonly epochCheck?: Duration
  /** Where the marks are, see marks.ts. Default `'~marks'`. */
  readonly marksKey?: string
}

/** A connection to one master from `ready` to `close`, as long as nothing is marked. Leases are good within one session only. */
interface Session {
  /** First four bytes of `master_replid`, which changes with every restart and every promotion. One buffer per connection. */
  readonly master: Buffer
  readonly marks: Marks
}

/** One command takes at most so many keys, so that a huge wave does not hold up the server for everybody else. */
const GET_CHUNK = 1000
const SCRIPT_CHUNK = 500
const SCAN_COUNT = 1000
/** A connection that has nothing to say to a probe for so long is made anew, ms: TCP would try for many minutes. */
const STUCK_MS = 1000

/**
 * The store on one Redis (or Valkey) server, through a connection of its own: a cache must not queue commands while
 * the server is away, and must never send a command again, which the defaults of a shared client do.
 */
export class RedisStore implements ProbedStore {
  readonly #connection: Connection
  readonly #timeoutMs: number
  readonly #intentReplicas: number
  readonly #epochCheck: NodeJS.Timeout
  readonly #keyPrefix: string
  readonly #marksKey: string
  /** Nothing is ever stored under it. */
  readonly #unusedKey: string
  #session: Session | undefined
  /** Settles when the connection that is being made for the first time is usable, or has failed. */
  #opening: Promise<void>
  /** While a session is being begun. */
  #beginning: Promise<void> | undefined
  /** When the connection was made, by `performance.now()`. */
  #connectedAt = 0
  /** When a probe was sent that is not answered yet. */
  #probedAt: number | undefined
  #closed = false
  #lastError: unknown

  /** @throws OptionError */
  constructor(client: RedisClient, options: RedisStoreOptions = {}) {
    checkOptionNames('redis', options, ['timeout', 'intentReplicas', 'epochCheck', 'marksKey'])
    this.#marksKey = options.marksKey ?? '~marks'
    this.#unusedKey = `${this.#marksKey}~rights`
    this.#timeoutMs = durationMs('redis.timeout', options.timeout ?? 50)
    this.#intentReplicas = integerOption('redis.intentReplicas', options.intentReplicas ?? 0, 0)
    const epochCheckMs = durationMs('redis.epochCheck', options.epochCheck ?? 2000)
    this.#connection = client.duplicate({ ...OWN_CONNECTION, maxLoadingRetryTime: 200 }) as Connection
    this.#keyPrefix = this.#connection.options.keyPrefix ?? ''
    this.#connection.on('error', (error) => {
      this.#lastError = error
    })
    this.#connection.on('connect', () => {
      this.#connectedAt = performance.now()
    })
    this.#opening = new Promise((opened) => {
      this.#connection.on('ready', () => this.#begin().then(opened, opened))
      for (const event of ['close', 'end'] as const) {
        this.#connection.on(event, () => {
          this.#session = undefined
          opened()
        })
      }
    })
    // Whatever goes wrong here comes as an 'error' event too, and is told by the first step that needs the connection.
    this.#connection.connect().catch(() => undefined)
    // A master can be demoted without closing its connections: only asking tells.
    this.#epochCheck = setInterval(() => this.#checkMaster(), epochCheckMs)
    this.#epochCheck.unref()
  }

  async getMany(keys: readonly string[]): Promise<(Buffer | null)[]> {
    if (keys.length === 0) return []
    const session = this.#session ?? (await this.#open())
    const records = await this.#within(this.#mget(keys))
    const { marks } = await this.#marked(session, records.shift() as Buffer | null)
    for (let i = 0; i < records.length; i++) {
      const record = records[i]
      if (record && isOfOtherEpoch(record, marks.epochOf(keys[i] as string))) records[i] = null
    }
    return records
  }

  async acquire(keys: readonly string[], schemas: readonly number[], leaseMs: number): Promise<Acquired> {
    const session = this.#session ?? (await this.#open())
    const lease: Lease = { token: newToken(), session }
    const replies = await this.#run(ACQUIRE, keys, (from, to) => [
      lease.token,
      leaseMs,
      ...keys.slice(from, to).flatMap((key, i) => [schemas[from + i] as number, session.marks.epochOf(key)]),
    ])
    return { lease, records: (replies as (Buffer | null)[][]).flat() }
  }

  async fill(lease: Lease, fills: readonly Fill[]): Promise<number> {
    const session = this.#session
    const under = lease.session as Session
    // Another master may never have heard of the lease, or may have been told to forget it.
    if (!session || under.master !== session.master)
      throw new StoreUnavailableError('the connection of the lease is gone')
    // What was marked meanwhile is not believed under the lease's marks, and may be old under those of now.
    const good = fills.filter(({ key }) => under.marks.epochOf(key).equals(session.marks.epochOf(key)))
    const argumentsOf = ({ key, payload, schema, ttlMs }: Fill) => {
      const epoch = under.marks.epochOf(key)
      const value = payload === 'absent' ? null : payload
      const record = value === 'release' ? '' : answerRecord(schema, epoch, value, Date.now())
      return [record, ttlMs, epoch]
    }
    const replies = await this.#run(
      FILL,
      good.map(({ key }) => key),
      (from, to) => [lease.token, ...good.slice(from, to).flatMap(argumentsOf)],
    )
    return (replies as number[]).reduce((sum, stored) => sum + stored, 0)
  }

  get session(): unknown {
    return this.#session
  }

  async intend(keys: readonly string[], token: string, ttlMs: number): Promise<unknown> {
    const session = await this.#open()
    await this.#runInTurns(INTEND, keys, [token, ttlMs])
    if (this.#intentReplicas > 0) await this.#waitForReplicas()
    return session
  }

  async clear(keys: readonly string[], token: string | null, committed: boolean): Promise<void> {
    await this.#open()
    await this.#runInTurns(CLEAR, keys, [token ?? '', committed ? '1' : '0'])
  }

  async markStale(keys: ReadonlyMap<string, number>): Promise<void> {
    await this.#open()
    const patienceMs = Math.max(this.#timeoutMs, WRITE_PATIENCE_MS)
    for (const turn of chunks([...keys], WRITE_CHUNK / 2)) {
      const pairs = turn.flatMap(([key]) => [key, staleKeyOf(key)])
      const argumentsOf = (from: number, to: number) => turn.slice(from / 2, to / 2).map(([, ms]) => ms)
      await this.#run(STALE, pairs, argumentsOf, patienceMs)
    }
  }

  async clearPrefix(prefix: string): Promise<void> {
    const session = await this.#open()
    await this.#marked(session, await this.#mark(prefix))
  }

  scan(prefix: string): AsyncGenerator<readonly string[]> {
    return this.#scan(prefix, Math.max(this.#timeoutMs, PATIENCE_MS))
  }

  async facts(): Promise<StoreFacts> {
    const patienceMs = Math.max(this.#timeoutMs, PATIENCE_MS)
    // Without a session: a server that is no master is one of the things to be found out.
    await this.#within(this.#opening, patienceMs)
    if (this.#connection.status !== 'ready') throw this.#unavailable()
    return readFacts(this.#connection, patienceMs, this.#timeoutMs)
  }

  async probe(): Promise<void> {
    const { status } = this.#connection
    const waitsSince = this.#probedAt ?? (this.#session ? undefined : this.#connectedAt)
    if (waitsSince !== undefined && performance.now() - waitsSince > STUCK_MS) {
      // Nothing may come any more, or the server has become a replica: another one may be found.
      if (status === 'ready' || status === 'connect') this.#connection.disconnect(true)
    }
    // A late answer to an earlier probe says that it is too slow.
    if (this.#probedAt !== undefined) throw new StoreUnavailableError('a probe is not answered yet')
    if (status !== 'ready') throw this.#unavailable()
    this.#probedAt = performance.now()
    const answered = (this.#session ? this.#mget([]) : this.#begin()).finally(() => {
      this.#probedAt = undefined
    })
    await this.#within<unknown>(answered)
    if (!this.#session) throw this.#unavailable()
  }

  async missingRights(keys: readonly string[]): Promise<readonly string[]> {
    const patienceMs = Math.max(this.#timeoutMs, PATIENCE_MS)
    await this.#within(this.#opening, patienceMs)
    const connection = this.#connection
    if (connection.status !== 'ready') throw this.#unavailable()
    const own = this.#unusedKey
    const steps: readonly (readonly [command: string, key: string, step: () => Promise<unknown>])[] = [
      ['info', own, () => connection.info('replication')],
      ['time', own, () => connection.time()],
      ['script|load', own, () => connection.script('LOAD', RIGHTS.source)],
      ['evalsha', own, () => connection.evalshaBuffer(RIGHTS.sha, 1, own)],
      // What writes is tried inside of it alone: a replica's refusal would have the connection made anew.
      ['eval', own, () => connection.evalBuffer(RIGHTS.source, 1, own)],
      ['scan', own, () => connection.scan('0', 'MATCH', escapeGlob(own), 'COUNT', 1)],
      ...(this.#intentReplicas > 0 ? [['wait', own, () => connection.wait(0, 1)] as const] : []),
      ...[own, ...keys].map((key) => ['mget', key, () => connection.mgetBuffer([key])] as const),
    ]
    const missing = new Set<string>()
    for (const [command, key, step] of steps) {
      try {
        const reply = await this.#within(step(), patienceMs)
        if (command === 'eval') for (const inside of reply as Buffer[]) missing.add(String(inside))
      } catch (error) {
        const { cause } = error as Error
        // Whatever else the server has to say, it was not the user that it refused.
        if (!(cause instanceof Error) || cause.name !== 'ReplyError') throw error
        if (!cause.message.startsWith('NOPERM')) continue
        missing.add(/ to access /.test(cause.message) ? `~${this.#keyPrefix}${key}` : command)
      }
    }
    return [...missing]
  }

  async lead(name: string, candidate: string, ttlMs: number): Promise<boolean> {
    await this.#open()
    const [reply] = await this.#run(LEAD, [name], () => [candidate, ttlMs])
    return reply === 1
  }

  async close(): Promise<void> {
    this.#closed = true
    clearInterval(this.#epochCheck)
    this.#session = undefined
    this.#connection.disconnect()
  }

  /** On the connection of the intents, so it waits for those. Without it, a failover may forget an intent in force. */
  async #waitForReplicas(): Promise<void> {
    // Time for the server to say how many it are: that too few have it is no sign that it is away.
    const wait = this.#connection.wait(this.#intentReplicas, this.#timeoutMs)
    const reached = await this.#within(wait, 2 * this.#timeoutMs)
    if (reached >= this.#intentReplicas) return
    throw new StoreUnavailableError(
      `only ${reached} of ${this.#intentReplicas} replicas have the write intents`,
      { refused: true },
    )
  }

  /** @param stepMs how long each step may take */
  async *#scan(prefix: string, stepMs: number): AsyncGenerator<readonly string[]> {
    const session = await this.#open(Math.max(stepMs, PATIENCE_MS))
    const pattern = `${escapeGlob(this.#keyPrefix + prefix)}*`
    let cursor = '0'
    do {
      // A cursor says nothing to another server.
      if (this.#session !== session) throw new StoreUnavailableError('the connection of the scan is gone')
      const [next, found] = await this.#within(
        this.#connection.scan(cursor, 'MATCH', pattern, 'COUNT', SCAN_COUNT),
        stepMs,
      )
      if (found.length > 0) yield found.map((key) => key.slice(this.#keyPrefix.length))
      cursor = next
    } while (cursor !== '0')
  }

  /** The marks, then what is at the keys. */
  #mget(keys: readonly string[]): Promise<(Buffer | null)[]> {
    if (keys.length <= GET_CHUNK) return this.#connection.mgetBuffer([this.#marksKey, ...keys])
    const gets = chunks(keys, GET_CHUNK).map((chunk, i) =>
      this.#connection.mgetBuffer(i === 0 ? [this.#marksKey, ...chunk] : chunk),
    )
    return Promise.all(gets).then((replies) => replies.flat())
  }

  #mark(prefix: string): Promise<Buffer> {
    return this.#run(MARK, [this.#marksKey], () => [newMark(), MARKS_TTL_MS, prefix]).then(
      ([record]) => record as Buffer,
    )
  }

  /**
   * The session of what was read together with these marks; from now on, a new one where they have changed.
   *
   * @param record null: the store has lost them
   */
  async #marked(session: Session, record: Buffer | null): Promise<Session> {
    const marks = record ?? (await this.#mark(''))
    if (marks.equals(session.marks.record)) return session
    const next = { master: session.master, marks: new Marks(session.master, marks) }
    if (this.#session?.master === session.master) this.#session = next
    return next
  }

  /** For writes, which may touch any number of keys, and whose caller has waited for a COMMIT anyway. */
  async #runInTurns(script: Script, keys: readonly string[], args: readonly Argument[]): Promise<void> {
    const patienceMs = Math.max(this.#timeoutMs, WRITE_PATIENCE_MS)
    for (const turn of chunks(keys, WRITE_CHUNK)) await this.#run(script, turn, () => [...args], patienceMs)
  }

  /** Runs a script over all keys, in chunks side by side; one reply per chunk. */
  #run(
    script: Script,
    keys: readonly string[],
    args: (from: number, to: number) => Argument[],
    timeoutMs?: number,
  ): Promise<unknown[]> {
    const runs = chunks(keys, SCRIPT_CHUNK).map((chunk, i) => {
      const from = i * SCRIPT_CHUNK
      const all = [...chunk, ...args(from, from + chunk.length)]
      return this.#connection.evalshaBuffer(script.sha, chunk.length, ...all).catch((error: unknown) => {
        // Nothing ran, so this is the first time it is sent.
        if (!messageOf(error).startsWith('NOSCRIPT')) throw error
        return this.#connection.evalBuffer(script.source, chunk.length, ...all)
      })
    })
    return this.#within(Promise.all(runs), timeoutMs)
  }

  /** The session, waiting for it only while the very first connection is being made. */
  async #open(waitMs?: number): Promise<Session> {
    if (!this.#session) await this.#within(this.#opening, waitMs)
    if (this.#session) return this.#session
    throw this.#unavailable()
  }

  #unavailable(): StoreUnavailableError {
    const problem = this.#closed
      ? 'it is closed'
      : `no connection${this.#lastError ? `: ${messageOf(this.#lastError)}` : ''}`
    return new StoreUnavailableError(problem, { cause: this.#lastError })
  }

  #begin(): Promise<void> {
    this.#beginning ??= this.#newSession().finally(() => {
      this.#beginning = undefined
    })
    return this.#beginning
  }

  async #newSession(): Promise<void> {
    try {
      const [master] = await Promise.all([
        this.#readMaster(),
        ...SCRIPTS.map(({ source }) => this.#connection.script('LOAD', source)),
        this.#checkRights(),
      ])
      this.#session = { master, marks: new Marks(master, await this.#mark('')) }
    } catch (error) {
      this.#lastError = error
    }
  }

  async #checkMaster(): Promise<void> {
    if (this.#connection.status !== 'ready') return
    const session = this.#session
    try {
      const master = await this.#readMaster()
      if (session?.master.equals(master)) {
        await this.#connection.pexpire(this.#marksKey, MARKS_TTL_MS)
        return
      }
      await this.#checkRights()
      const marks = new Marks(master, await this.#mark(''))
      if (this.#session === session) this.#session = { master, marks }
    } catch (error) {
      this.#lastError = error
      if (this.#session !== session || this.#connection.status !== 'ready') return
      this.#session = undefined
      // It was demoted, most likely. A connection anew may find its successor.
      this.#connection.disconnect(true)
    }
  }

  /** Who may fill but not clear would keep what is wrong, so a user that may not do everything may do nothing. */
  async #checkRights(): Promise<void> {
    // EVAL, as it needs a right of its own.
    const missing = (await this.#connection.evalBuffer(RIGHTS.source, 1, this.#unusedKey)) as Buffer[]
    if (missing.length > 0)
      throw new StoreUnavailableError(`its user lacks rights in scripts: ${missing.join(', ')}`)
  }

  async #readMaster(): Promise<Buffer> {
    const info = await this.#connection.info('replication')
    return masterOf(info)
  }

  #within<T>(step: Promise<T>, timeoutMs = this.#timeoutMs): Promise<T> {
    return within(step, timeoutMs)
  }
}
