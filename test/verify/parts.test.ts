import { randomBytes } from 'node:crypto'
import fc from 'fast-check'
import { Redis } from 'ioredis'
import { afterAll, afterEach, describe, expect, inject, test } from 'vitest'
import { Sample } from '../../src/invalidation/sample.ts'
import { keyOf, textsOf } from '../../src/models/key.ts'
import { MemoryStore } from '../../src/stores/memory.ts'
import { RedisStore } from '../../src/stores/redis.ts'
import type { CacheStore } from '../../src/stores/store.ts'
import { startRedis } from '../servers/redis.ts'
import { closeRedis } from '../support/redis.ts'
import { range } from './town.ts'

afterAll(closeRedis)

describe('the texts of a key', () => {
  const part = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 20 }),
    fc.string({
      unit: fc.constantFrom('%', ',', '~', '#', ':', '2', 'C', '*', '\n', 'a', 'é'),
      maxLength: 20,
    }),
    fc.constant(null),
  )
  const texts = fc.array(part, { minLength: 1, maxLength: 4 })

  test('are those it was made of, unless they are hashed', () => {
    fc.assert(
      fc.property(fc.string(), texts, (prefix, given) => {
        const key = keyOf(prefix, given)
        const hashed = key.slice(prefix.length).startsWith('#')
        expect(textsOf(prefix, key)).toEqual(hashed ? undefined : given)
      }),
      { numRuns: 5000, seed: 4 },
    )
  })

  test('are not told by a key that keyOf does not make', () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...'%,~#2Cc:* aé'), maxLength: 12 }), (values) => {
        const found = textsOf('p:', `p:${values}`)
        if (found) expect(keyOf('p:', found)).toBe(`p:${values}`)
      }),
      { numRuns: 5000, seed: 5 },
    )
    expect(textsOf('p:', 'p:%zz')).toBeUndefined()
    expect(textsOf('p:', 'p:%61')).toBeUndefined()
    expect(textsOf('p:', 'p:a b')).toBeUndefined()
    expect(textsOf('p:', keyOf('p:', ['x'.repeat(161)]))).toBeUndefined()
    expect(textsOf('p:', 'p:')).toEqual([''])
    expect(textsOf('p:', 'p:~,%7E,')).toEqual([null, '~', ''])
  })
})

describe('a sample', () => {
  test('is everything, when there is no more', () => {
    const sample = new Sample<string>(5)
    for (const key of ['a', 'b', 'a', 'c']) sample.offer('g', key)
    sample.offer('h', 'a')
    expect(sample.offered).toBe(5)
    expect(sample.groups()).toEqual(
      new Map([
        ['g', ['a', 'b', 'c']],
        ['h', ['a']],
      ]),
    )
    expect(new Sample(5).groups().size).toBe(0)
  })

  test('takes each as likely as any other', () => {
    const taken = new Array<number>(50).fill(0)
    for (let run = 0; run < 4000; run++) {
      const sample = new Sample<string>(10)
      for (let i = 0; i < 50; i++) sample.offer('g', String(i))
      const keys = sample.groups().get('g') ?? []
      expect(keys).toHaveLength(10)
      for (const key of keys) taken[Number(key)] = (taken[Number(key)] as number) + 1
    }
    // 800 expected of each, with a standard deviation of 25.
    for (const count of taken) expect(Math.abs(count - 800)).toBeLessThan(150)
  })
})

describe.each<[string, (keyPrefix: string) => CacheStore]>([
  ['MemoryStore', () => new MemoryStore()],
  [
    'RedisStore',
    (keyPrefix) =>
      new RedisStore(new Redis(inject('redisUrl'), { lazyConnect: true, keyPrefix }), { timeout: '10s' }),
  ],
])('the scan of %s', (_, open) => {
  let store: CacheStore
  afterEach(() => store.close())

  async function put(keys: readonly string[]): Promise<void> {
    await store.acquire(
      keys,
      keys.map(() => 0),
      60_000,
    )
  }

  async function scanned(prefix: string): Promise<string[]> {
    const found = new Set<string>()
    for await (const keys of store.scan(prefix)) for (const key of keys) found.add(key)
    return [...found].toSorted()
  }

  test.each(['', 'app*[x]?\\:'])(
    'finds all keys of a prefix, taken literally, behind keyPrefix %j',
    async (keyPrefix) => {
      store = open(keyPrefix)
      const own = `scan-${randomBytes(6).toString('hex')}`
      const inside = ['1', '', 'ключ', 'a b\n', '*'].map((end) => `${own}:a*[b]?\\:${end}`)
      await put([...inside, `${own}:axbx:1`, `${own}:a*[b]?:1`, `x${own}:a*[b]?\\:1`])
      expect(await scanned(`${own}:a*[b]?\\:`)).toEqual(inside.toSorted())
      expect(await scanned(`${own}:`)).toHaveLength(7)
      expect(await scanned(`${own}-`)).toEqual([])
      await store.clear(await scanned(`${own}:`), null, true)
      await store.clear([`x${own}:a*[b]?\\:1`], null, true)
    },
  )

  test('finds more than one portion, and leaves them as they are', async () => {
    store = open('')
    const own = `scan-${randomBytes(6).toString('hex')}`
    const keys = range(5000).map((i) => `${own}:${i}`)
    await put(keys)
    expect(await scanned(`${own}:`)).toEqual(keys.toSorted())
    expect((await store.getMany(keys)).every(Boolean)).toBe(true)
    await store.clear(keys, null, true)
    expect(await scanned(`${own}:`)).toEqual([])
  })
})

test('a scan of Redis does not go on on another server', async () => {
  const server = await startRedis()
  const store = new RedisStore(new Redis(server.url, { lazyConnect: true }), { timeout: '10s' })
  try {
    const keys = range(3000).map((i) => `k:${i}`)
    await store.acquire(
      keys,
      keys.map(() => 0),
      60_000,
    )
    const scan = store.scan('k:')[Symbol.asyncIterator]()
    expect((await scan.next()).done).toBe(false)
    await server.kill()
    await expect(scan.next()).rejects.toMatchObject({ code: 'ERR_STORE_UNAVAILABLE' })
  } finally {
    await store.close()
    await server.stop()
  }
})
