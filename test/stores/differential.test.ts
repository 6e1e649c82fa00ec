import fc from 'fast-check'
import type { Redis } from 'ioredis'
import { afterAll, expect, test } from 'vitest'
import {
  HEADER_BYTES,
  intentsOf,
  isAnswerRecord,
  isIntentRecord,
  leaseToken,
} from '../../src/stores/entry.ts'
import { MemoryStore } from '../../src/stores/memory.ts'
import { RedisStore } from '../../src/stores/redis.ts'
import { type CacheStore, EVERY_SCHEMA, type Fill, type Lease } from '../../src/stores/store.ts'
import { closeRedis, testRedis } from '../support/redis.ts'
import { type ReferenceEntry, ReferenceStore } from './reference.ts'

afterAll(closeRedis)

const LEASE_MS = 60_000
const INTENT_MS = 30_000
const VALUE_MS = 90_000

const PATHS = ['users:1', 'users:2', 'orders:1'] as const
const WRITERS = ['writer-a--------', 'writer-b--------', 'writer-c--------'] as const

/** Steps on some of the keys; a fill names the how-many-last lease it is made under. */
type Step =
  | { op: 'acquire'; at: number[]; schemas: number[] }
  | { op: 'fill'; at: number[]; lease: number; schema: number; payloads: Fill['payload'][] }
  | { op: 'intend'; at: number[]; writer: number }
  | { op: 'clear'; at: number[]; writer: number | null; committed: boolean }
  | { op: 'clearPrefix'; prefix: string }
  | { op: 'outlive' }

const at = fc.uniqueArray(fc.nat(PATHS.length - 1), { minLength: 1 })
const schema = fc.constantFrom(0, 1, 127, 128, 255, 256, 65_000)
const payload = fc.oneof(
  { weight: 3, arbitrary: fc.uint8Array({ maxLength: 20 }).map((bytes) => Buffer.from(bytes)) },
  fc.constantFrom<Fill['payload']>('absent', 'release'),
)
const writer = fc.nat(WRITERS.length - 1)

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      op: fc.constant('acquire'),
      at,
      schemas: fc.array(fc.oneof({ weight: 9, arbitrary: schema }, fc.constant(EVERY_SCHEMA)), {
        minLength: PATHS.length,
        maxLength: PATHS.length,
      }),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      op: fc.constant('fill'),
      at,
      lease: fc.nat(2),
      schema,
      payloads: fc.array(payload, { minLength: PATHS.length, maxLength: PATHS.length }),
    }),
  },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('intend'), at, writer }) },
  {
    weight: 4,
    arbitrary: fc.record({
      op: fc.constant('clear'),
      at,
      writer: fc.option(writer),
      committed: fc.boolean(),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ op: fc.constant('clearPrefix'), prefix: fc.constantFrom('users:', '') }),
  },
  { weight: 1, arbitrary: fc.constant<Step>({ op: 'outlive' }) },
)

/** Takes steps on one store, remembering the leases it gave. */
class Party {
  readonly store: CacheStore
  readonly #prefix: string
  readonly #outlive: () => Promise<unknown>
  readonly #leases: Lease[] = []

  constructor(store: CacheStore, prefix: string, outlive: () => Promise<unknown>) {
    this.store = store
    this.#prefix = prefix
    this.#outlive = outlive
  }

  /** What the step answered, in a form that can be compared. */
  async take(taken: Step): Promise<unknown> {
    const { store } = this
    switch (taken.op) {
      case 'acquire': {
        const { lease, records } = await store.acquire(
          this.#keys(taken.at),
          taken.at.map((i) => taken.schemas[i] as number),
          LEASE_MS,
        )
        this.#leases.unshift(lease)
        return records.map((record) => record === null)
      }
      case 'fill': {
        const lease = this.#leases[taken.lease]
        if (!lease) return 0
        return store.fill(
          lease,
          taken.at.map((i) => ({
            key: this.#keyAt(i),
            schema: taken.schema,
            payload: taken.payloads[i] as Fill['payload'],
            ttlMs: VALUE_MS,
          })),
        )
      }
      case 'intend':
        return void (await store.intend(this.#keys(taken.at), WRITERS[taken.writer] as string, INTENT_MS))
      case 'clear': {
        const token = taken.writer === null ? null : (WRITERS[taken.writer] as string)
        return store.clear(this.#keys(taken.at), token, taken.committed)
      }
      case 'clearPrefix':
        return store.clearPrefix(this.#prefix + taken.prefix)
      case 'outlive':
        return void (await this.#outlive())
    }
  }

  /** Every key as the reference would describe it. */
  async entries(): Promise<ReferenceEntry[]> {
    const records = await this.store.getMany(PATHS.map((_, i) => this.#keyAt(i)))
    return records.map((record): ReferenceEntry => {
      if (record === null) return { kind: 'none' }
      if (isIntentRecord(record)) {
        return { kind: 'intents', writers: new Set(intentsOf(record).map(({ token }) => token)) }
      }
      if (isAnswerRecord(record)) {
        const text = record[0] === 'V'.charCodeAt(0) ? record.toString('latin1', HEADER_BYTES) : null
        return { kind: 'value', schema: record.readUInt16BE(1), payload: text }
      }
      const token = leaseToken(record)
      return {
        kind: 'lease',
        holder: String(this.#leases.length - this.#leases.findIndex((l) => l.token === token)),
      }
    })
  }

  #keyAt(index: number): string {
    return this.#prefix + PATHS[index]
  }

  #keys(indexes: readonly number[]): string[] {
    return indexes.map((i) => this.#keyAt(i))
  }
}

/** The same for the reference. Leases are named by their number: stores name them by a token. */
class ReferenceParty {
  readonly #reference = new ReferenceStore()
  #leases = 0

  take(taken: Step): unknown {
    const reference = this.#reference
    switch (taken.op) {
      case 'acquire':
        this.#leases++
        return taken.at.map((i) =>
          reference.acquire(PATHS[i] as string, taken.schemas[i] as number, String(this.#leases)),
        )
      case 'fill': {
        const holder = this.#leases - taken.lease
        if (holder < 1) return 0
        return taken.at.filter((i) =>
          reference.fill(
            PATHS[i] as string,
            String(holder),
            taken.schema,
            taken.payloads[i] as Fill['payload'],
          ),
        ).length
      }
      case 'intend':
        for (const i of taken.at) reference.intend(PATHS[i] as string, WRITERS[taken.writer] as string)
        return undefined
      case 'clear': {
        const writer = taken.writer === null ? null : (WRITERS[taken.writer] as string)
        for (const i of taken.at) reference.clear(PATHS[i] as string, writer, taken.committed)
        return undefined
      }
      case 'clearPrefix':
        reference.clearPrefix(taken.prefix)
        return undefined
      case 'outlive':
        reference.outlive()
        return undefined
    }
  }

  entries(): ReferenceEntry[] {
    return PATHS.map((path) => this.#reference.at(path))
  }
}

test('MemoryStore and RedisStore do what the protocol says, whatever comes in whatever order', async () => {
  const { redis, namespace } = testRedis()
  const redisStore = new RedisStore(redis, { timeout: '5s' })
  let round = 0
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 25 }), async (steps) => {
      const prefix = `${namespace}:${round++}:`
      const keys = PATHS.map((path) => prefix + path)
      let now = 0
      const memory = new Party(new MemoryStore({ now: () => now }), prefix, async () => {
        now += 86_400_000
      })
      const shared = new Party(redisStore, prefix, () => redis.del(keys))
      const reference = new ReferenceParty()
      for (const taken of steps) {
        const expected = reference.take(taken)
        expect(await memory.take(taken)).toEqual(expected)
        expect(await shared.take(taken)).toEqual(expected)
        expect(await memory.entries()).toEqual(reference.entries())
        expect(await shared.entries()).toEqual(reference.entries())
        await expectTtls(redis, keys)
      }
      await redis.del(keys)
    }),
    { seed: 20_240_607, numRuns: 100 },
  )
  await redisStore.close()
})

/** Nothing stays for ever. */
async function expectTtls(redis: Redis, keys: readonly string[]): Promise<void> {
  const ttls = await Promise.all(keys.map((key) => redis.pttl(key)))
  for (const ttl of ttls) if (ttl !== -2) expect(ttl).toBeGreaterThan(0)
}
