import { LRUCache } from 'lru-cache'
import { staleKeyOf } from '../models/key.ts'
import { checkOptionNames, integerOption } from '../options.ts'
import {
  answerRecord,
  intentRecord,
  intentsOf,
  isAnswerRecord,
  isIntentRecord,
  isLeaseRecord,
  leaseRecord,
  leaseToken,
} from './entry.ts'
import { type Acquired, type CacheStore, type Fill, type Lease, newToken } from './store.ts'

export interface MemoryStoreOptions {
  /** Most entries kept, least recently used ones go first. Default 100,000. */
  readonly maxEntries?: number | undefined
  /** Most bytes of keys and records kept. Default 64 MiB. A record larger than that is not kept at all. */
  readonly maxBytes?: number | undefined
  /** The clock, in ms; for tests. Default `Date.now`. */
  readonly now?: (() => number) | undefined
}

/** One process has one store, which never fails over: its epoch never changes. */
const EPOCH = Buffer.from('mem0', 'latin1')

const SCAN_PORTION = 1000

/**
 * The store inside the process: the default without Redis. It keeps the same records and takes the same steps, so
 * all that holds for Redis holds here, but only within one process.
 */
export class MemoryStore implements CacheStore {
  readonly #records: LRUCache<string, Buffer>
  readonly #now: () => number
  readonly #leaders = new Map<string, { readonly candidate: string; readonly until: number }>()

  /** @throws OptionError */
  constructor(options: MemoryStoreOptions = {}) {
    checkOptionNames('memory', options, ['maxEntries', 'maxBytes', 'now'])
    const now = options.now ?? Date.now
    this.#now = now
    this.#records = new LRUCache<string, Buffer>({
      max: integerOption('memory.maxEntries', options.maxEntries ?? 100_000, 1),
      maxSize: integerOption('memory.maxBytes', options.maxBytes ?? 64 * 1024 * 1024, 1),
      // JS strings take up to two bytes a character.
      sizeCalculation: (record, key) => record.length + 2 * key.length,
      ttlResolution: 0,
      ttl: 1,
      // lru-cache reads a start time of 0 as "no ttl", and a fake clock may well begin there.
      perf: { now: () => now() + 1 },
    })
  }

  /** How many entries there are, expired ones that nobody touched since included. */
  get size(): number {
    return this.#records.size
  }

  async getMany(keys: readonly string[]): Promise<(Buffer | null)[]> {
    return keys.map((key) => this.#records.get(key) ?? null)
  }

  async acquire(keys: readonly string[], schemas: readonly number[], leaseMs: number): Promise<Acquired> {
    const lease: Lease = { token: newToken(), session: this }
    const records = keys.map((key, i) => {
      const record = this.#records.get(key)
      if (record && mustStay(record, schemas[i] as number)) return record
      this.#set(key, leaseRecord(lease.token, EPOCH), leaseMs)
      return null
    })
    return { lease, records }
  }

  async fill(lease: Lease, fills: readonly Fill[]): Promise<number> {
    let stored = 0
    for (const { key, schema, payload, ttlMs } of fills) {
      const record = this.#records.get(key)
      if (!record || !isLeaseRecord(record) || leaseToken(record) !== lease.token) continue
      this.#records.delete(key)
      if (payload === 'release') continue
      this.#set(key, answerRecord(schema, EPOCH, payload === 'absent' ? null : payload, this.#now()), ttlMs)
      stored++
    }
    return stored
  }

  get session(): unknown {
    return this
  }

  async intend(keys: readonly string[], token: string, ttlMs: number): Promise<unknown> {
    const now = this.#now()
    for (const key of keys) {
      const others = this.#intents(key).filter((intent) => intent.deadline > now && intent.token !== token)
      this.#setIntents(key, [{ token, deadline: now + ttlMs }, ...others], now)
    }
    return this
  }

  async clear(keys: readonly string[], token: string | null, committed: boolean): Promise<void> {
    for (const key of keys) this.#clear(key, token, committed)
  }

  async markStale(keys: ReadonlyMap<string, number>): Promise<void> {
    for (const [key, ms] of keys) {
      const record = this.#records.get(key)
      if (record && isAnswerRecord(record)) this.#set(staleKeyOf(key), record, ms)
      this.#clear(key, null, true)
    }
  }

  async clearPrefix(prefix: string): Promise<void> {
    for (const key of [...this.#records.keys()]) if (key.startsWith(prefix)) this.#clear(key, null, true)
  }

  async *scan(prefix: string): AsyncGenerator<readonly string[]> {
    const keys = [...this.#records.keys()].filter((key) => key.startsWith(prefix))
    for (let from = 0; from < keys.length; from += SCAN_PORTION) yield keys.slice(from, from + SCAN_PORTION)
  }

  async lead(name: string, candidate: string, ttlMs: number): Promise<boolean> {
    const leader = this.#leaders.get(name)
    const now = this.#now()
    if (leader && leader.candidate !== candidate && leader.until > now) return false
    this.#leaders.set(name, { candidate, until: now + ttlMs })
    return true
  }

  async close(): Promise<void> {
    this.#records.clear()
  }

  #clear(key: string, token: string | null, committed: boolean): void {
    const record = this.#records.get(key)
    if (!record) return
    if (!isIntentRecord(record)) {
      if (committed) this.#records.delete(key)
    } else if (token !== null) {
      const now = this.#now()
      const others = this.#intents(key).filter((intent) => intent.deadline > now && intent.token !== token)
      this.#setIntents(key, others, now)
    }
  }

  #intents(key: string) {
    const record = this.#records.get(key)
    return record && isIntentRecord(record) ? intentsOf(record) : []
  }

  #setIntents(key: string, intents: ReturnType<typeof intentsOf>, now: number): void {
    if (intents.length === 0) this.#records.delete(key)
    else this.#set(key, intentRecord(intents), Math.max(...intents.map(({ deadline }) => deadline)) - now)
  }

  #set(key: string, record: Buffer, ttlMs: number): void {
    this.#records.set(key, record, { ttl: ttlMs })
  }
}

function mustStay(record: Buffer, schema: number): boolean {
  if (!isAnswerRecord(record)) return true
  return record.readUInt16BE(1) >= schema
}
