import { describe, expect, test } from 'vitest'
import { HEADER_BYTES } from '../../src/stores/entry.ts'
import { MemoryStore } from '../../src/stores/memory.ts'
import { type StoreUnderTest, storeContract } from './contract.ts'

const DAY = 86_400_000

/** A memory store whose clock stands still until it is told to go on. */
function openMemoryStore(): StoreUnderTest & { store: MemoryStore; clock: { now: number } } {
  const clock = { now: 0 }
  const store = new MemoryStore({ now: () => clock.now })
  return {
    store,
    clock,
    prefix: 'test:',
    async expectTtl(key, ms) {
      clock.now += ms
      expect(await store.getMany([key])).not.toEqual([null])
      clock.now += 1
      expect(await store.getMany([key])).toEqual([null])
    },
    async outlive() {
      clock.now += DAY
    },
  }
}

describe('MemoryStore', () => storeContract(openMemoryStore))

describe('the clock of a MemoryStore', () => {
  test('each intent ends at its own deadline, whoever else keeps the key busy', async () => {
    const { store, clock } = openMemoryStore()
    await store.intend(['key'], 'crashed---------', 100)
    clock.now = 90
    await store.intend(['key'], 'alive-----------', 1000)
    clock.now = 100
    await store.clear(['key'], 'alive-----------', true)
    expect(await store.getMany(['key'])).toEqual([null])
  })

  test('may begin at any time, 0 included', async () => {
    for (const start of [0, 1_700_000_000_000]) {
      let now = start
      const store = new MemoryStore({ now: () => now })
      await store.acquire(['key'], [0], 10)
      now += 10
      expect(await store.getMany(['key'])).not.toEqual([null])
      now += 1
      expect(await store.getMany(['key'])).toEqual([null])
    }
  })
})

describe('the bounds of a MemoryStore', () => {
  async function put(store: MemoryStore, key: string, bytes: number): Promise<number> {
    const { lease } = await store.acquire([key], [0], DAY)
    return store.fill(lease, [{ key, schema: 0, payload: Buffer.alloc(bytes), ttlMs: DAY }])
  }

  async function kept(store: MemoryStore, keys: readonly string[]): Promise<string[]> {
    const records = await store.getMany(keys)
    return keys.filter((_, i) => records[i] !== null)
  }

  test('maxEntries: the least recently used entry goes first', async () => {
    const store = new MemoryStore({ maxEntries: 3 })
    for (const key of ['a', 'b', 'c']) await put(store, key, 1)
    await store.getMany(['a'])
    await put(store, 'd', 1)
    expect(await kept(store, ['b', 'a', 'c', 'd'])).toEqual(['a', 'c', 'd'])
    expect(store.size).toBe(3)
  })

  test('maxBytes: counts records and keys, two bytes a character', async () => {
    const entry = HEADER_BYTES + 100 + 2 * 'a'.length
    const store = new MemoryStore({ maxBytes: 3 * entry })
    for (const key of ['a', 'b', 'c']) await put(store, key, 100)
    expect(await kept(store, ['a', 'b', 'c'])).toEqual(['a', 'b', 'c'])
    await put(store, 'd', 100)
    expect(await kept(store, ['a', 'b', 'c', 'd'])).toEqual(['b', 'c', 'd'])
  })

  test('a record beyond maxBytes is not kept, and drives nothing else out', async () => {
    const store = new MemoryStore({ maxBytes: 1000 })
    await put(store, 'small', 100)
    await put(store, 'large', 2000)
    expect(await kept(store, ['small', 'large'])).toEqual(['small'])
  })

  test('a lease that was driven out fills nothing', async () => {
    const store = new MemoryStore({ maxEntries: 1 })
    const { lease } = await store.acquire(['a'], [0], DAY)
    await put(store, 'b', 1)
    expect(await store.fill(lease, [{ key: 'a', schema: 0, payload: 'absent', ttlMs: DAY }])).toBe(0)
    expect(await kept(store, ['a', 'b'])).toEqual(['b'])
  })

  test('must be whole numbers, and are called by their names', () => {
    expect(() => new MemoryStore({ maxEntries: 0 })).toThrow(/'memory.maxEntries'.*at least 1.*is 0/)
    expect(() => new MemoryStore({ maxBytes: 1.5 })).toThrow(/'memory.maxBytes'.*is 1.5/)
    expect(() => new MemoryStore({ maxEntry: 5 } as object)).toThrow(/'memory.maxEntry'.*known are/)
  })
})
