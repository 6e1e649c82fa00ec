import fc from 'fast-check'
import { expect, test } from 'vitest'
import { intentsOf, isIntentRecord } from '../../src/stores/entry.ts'
import { MemoryStore } from '../../src/stores/memory.ts'
import { EVERY_SCHEMA, type Fill, type Lease } from '../../src/stores/store.ts'
import { acquired, cleared, filled, holdsLease, intended, mayAcquire, type StoreRecord } from './records.ts'

/** MemoryStore's own. */
const EPOCH = Buffer.from('mem0', 'latin1')
const AGES_MS = 1_000_000_000
const WRITERS = ['writer-a--------', 'writer-b--------', 'writer-c--------']

type Step =
  | { op: 'acquire'; schema: number }
  /** Under the how-many-last lease. */
  | { op: 'fill'; lease: number; schema: number; payload: Fill['payload'] }
  | { op: 'intend'; writer: number; ttlMs: number }
  | { op: 'clear'; writer: number | null; committed: boolean }
  | { op: 'wait'; ms: number }

const schema = fc.constantFrom(0, 1, 255, 256, 65_000)
const payload = fc.oneof(
  fc.uint8Array({ maxLength: 20 }).map((bytes) => Buffer.from(bytes)),
  fc.constantFrom<Fill['payload']>('absent', 'release'),
)
const writer = fc.nat(WRITERS.length - 1)

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ op: fc.constant('acquire'), schema: fc.oneof(schema, fc.constant(EVERY_SCHEMA)) }),
  fc.record({ op: fc.constant('fill'), lease: fc.nat(2), schema, payload }),
  fc.record({ op: fc.constant('intend'), writer, ttlMs: fc.integer({ min: 1, max: 100 }) }),
  fc.record({ op: fc.constant('clear'), writer: fc.option(writer), committed: fc.boolean() }),
  fc.record({ op: fc.constant('wait'), ms: fc.integer({ min: 1, max: 60 }) }),
)

test('the records of the explorer are those of MemoryStore, byte for byte', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      let now = 1_000
      const store = new MemoryStore({ now: () => now, maxEntries: 10 })
      const leases: Lease[] = []
      let record: StoreRecord = null
      for (const taken of steps) {
        switch (taken.op) {
          case 'acquire': {
            const { lease, records } = await store.acquire(['key'], [taken.schema], AGES_MS)
            leases.unshift(lease)
            expect(records[0]).toEqual(mayAcquire(record, taken.schema, EPOCH) ? null : record)
            if (mayAcquire(record, taken.schema, EPOCH)) record = acquired(lease.token, EPOCH)
            break
          }
          case 'fill': {
            const lease = leases[taken.lease]
            if (!lease) break
            const fill = { key: 'key', schema: taken.schema, payload: taken.payload, ttlMs: AGES_MS }
            await store.fill(lease, [fill])
            if (holdsLease(record, lease.token)) record = filled(fill, EPOCH, now)
            break
          }
          case 'intend': {
            const token = WRITERS[taken.writer] as string
            await store.intend(['key'], token, taken.ttlMs)
            record = intended(record, token, now + taken.ttlMs, now)
            break
          }
          case 'clear': {
            const token = taken.writer === null ? null : (WRITERS[taken.writer] as string)
            await store.clear(['key'], token, taken.committed)
            record = cleared(record, token, taken.committed, now)
            break
          }
          case 'wait':
            now += taken.ms
            // The explorer's clock stands still; there, this is a fault of its own.
            if (record && isIntentRecord(record) && intentsOf(record).every(({ deadline }) => deadline < now))
              record = null
        }
        const [kept] = await store.getMany(['key'])
        expect(kept?.toString('latin1')).toBe(record?.toString('latin1'))
      }
    }),
    { seed: 20_240_607, numRuns: 300 },
  )
})
