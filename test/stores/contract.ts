import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { staleKeyOf } from '../../src/models/key.ts'
import { type EntryState, HEADER_BYTES, stateOf } from '../../src/stores/entry.ts'
import { type CacheStore, EVERY_SCHEMA, type Fill, type Lease } from '../../src/stores/store.ts'

/** A store, and what its own clock is needed for. */
export interface StoreUnderTest {
  readonly store: CacheStore
  /** Begins all keys, so that those who test the same server do not meet. */
  readonly prefix: string
  /** Checks that the record at `key` ends in `ms`, and lets it end. */
  expectTtl(key: string, ms: number): Promise<void>
  /** Lets so much time pass that whatever is at `key` has ended. */
  outlive(key: string): Promise<void>
  /** Frees what was opened for the test. The contract has closed the store by then. */
  dispose?(): Promise<void>
}

const OLDER = 255
const MINE = 256
const NEWER = 257
const MINUTE = 60_000

/** What every store promises: run it against a new one as `describe('my store', () => storeContract(open))`. */
export function storeContract(open: () => StoreUnderTest | Promise<StoreUnderTest>): void {
  let opened: StoreUnderTest
  let store: CacheStore
  let key: string
  let keyNo = 0

  beforeEach(async () => {
    opened = await open()
    store = opened.store
    key = keyFor('key')
  })

  afterEach(async () => {
    await store.close()
    await opened.dispose?.()
  })

  function keyFor(name: string): string {
    keyNo++
    return `${opened.prefix}${name}:${keyNo}`
  }

  function keysFor(count: number): string[] {
    return Array.from({ length: count }, (_, i) => `${opened.prefix}many:${i}`)
  }

  async function lease(...keys: string[]): Promise<Lease> {
    const { lease, records } = await store.acquire(
      keys,
      keys.map(() => MINE),
      MINUTE,
    )
    expect(records).toEqual(keys.map(() => null))
    return lease
  }

  async function put(at: string, payload: Fill['payload'], schema = MINE): Promise<void> {
    expect(await fill(await lease(at), at, payload, schema)).toBe(payload === 'release' ? 0 : 1)
  }

  function fill(by: Lease, at: string, payload: Fill['payload'], schema = MINE): Promise<number> {
    return store.fill(by, [{ key: at, schema, payload, ttlMs: MINUTE }])
  }

  async function record(at = key): Promise<Buffer | null> {
    return (await store.getMany([at]))[0] ?? null
  }

  async function state(at = key): Promise<EntryState> {
    return stateOf(await record(at), MINE)
  }

  async function payload(at = key): Promise<string | undefined> {
    return (await record(at))?.toString('latin1', HEADER_BYTES)
  }

  const somebodysToken = 'somebodys-intent'
  const othersToken = 'others---intent-'

  /** Every state a key can be in: how it comes about, what acquiring makes of it, and what a write leaves of it. */
  const STATES: readonly {
    name: string
    make(): Promise<unknown>
    acquire: 'granted' | 'kept'
    cleared: EntryState
  }[] = [
    { name: 'no record', make: async () => undefined, acquire: 'granted', cleared: 'none' },
    { name: 'a value', make: () => put(key, Buffer.from('row')), acquire: 'kept', cleared: 'none' },
    {
      name: 'a value of older code',
      make: () => put(key, Buffer.from('row'), OLDER),
      acquire: 'granted',
      cleared: 'none',
    },
    {
      name: 'a value of newer code',
      make: () => put(key, Buffer.from('row'), NEWER),
      acquire: 'kept',
      cleared: 'none',
    },
    { name: 'a known absence', make: () => put(key, 'absent'), acquire: 'kept', cleared: 'none' },
    {
      name: 'an absence known to older code',
      make: () => put(key, 'absent', OLDER),
      acquire: 'granted',
      cleared: 'none',
    },
    {
      name: 'an absence known to newer code',
      make: () => put(key, 'absent', NEWER),
      acquire: 'kept',
      cleared: 'none',
    },
    { name: "another reader's lease", make: () => lease(key), acquire: 'kept', cleared: 'none' },
    {
      name: "another writer's intent",
      make: () => store.intend([key], somebodysToken, MINUTE),
      acquire: 'kept',
      cleared: 'intended',
    },
  ]

  describe.each(STATES)('at a key with $name', ({ name, make, acquire, cleared }) => {
    let before: Buffer | null
    beforeEach(async () => {
      await make()
      before = await record()
    })

    test(`acquire: ${acquire === 'granted' ? 'a lease is granted' : 'the record stays, and is returned'}`, async () => {
      const acquired = await store.acquire([key], [MINE], MINUTE)
      expect(acquired.records).toEqual([acquire === 'granted' ? null : before])
      if (acquire === 'granted') expect(await state()).toBe('leased')
      else expect(await record()).toEqual(before)
    })

    test('acquire for every schema takes over any value, and nothing else', async () => {
      const { records } = await store.acquire([key], [EVERY_SCHEMA], MINUTE)
      const busy = name.includes('lease') || name.includes('intent')
      expect(records).toEqual([busy ? before : null])
    })

    test('a fill with the lease of another key is refused, and changes nothing', async () => {
      const other = await lease(keyFor('other'))
      expect(await fill(other, key, Buffer.from('foreign'))).toBe(0)
      expect(await fill(other, key, 'absent')).toBe(0)
      expect(await fill(other, key, 'release')).toBe(0)
      expect(await record()).toEqual(before)
    })

    test('intend puts an intent there', async () => {
      await store.intend([key], othersToken, MINUTE)
      expect(await state()).toBe('intended')
    })

    test(`clear after a commit leaves ${cleared === 'none' ? 'nothing' : 'the intent'}`, async () => {
      await store.clear([key], null, true)
      expect(await state()).toBe(cleared)
    })

    test("clear after a commit with another writer's token leaves the same", async () => {
      await store.clear([key], othersToken, true)
      expect(await state()).toBe(cleared)
    })

    test('clear after a rollback changes nothing', async () => {
      await store.clear([key], null, false)
      expect(await record()).toEqual(before)
      await store.clear([key], othersToken, false)
      expect(await record()).toEqual(before)
    })

    test('clearPrefix does what clear after a commit does', async () => {
      await store.clearPrefix(key)
      expect(await state()).toBe(cleared)
    })
  })

  describe('a fill', () => {
    test('under a lease that holds is stored, and ends the lease', async () => {
      const mine = await lease(key)
      expect(await fill(mine, key, Buffer.from('row'))).toBe(1)
      expect(await state()).toBe('value')
      expect(await payload()).toBe('row')
      expect(await fill(mine, key, Buffer.from('again'))).toBe(0)
      expect(await payload()).toBe('row')
    })

    test('says by its schema who may read it', async () => {
      await put(key, Buffer.from('row'), NEWER)
      const found = await record()
      expect([OLDER, MINE, NEWER, 65_000].map((schema) => stateOf(found, schema))).toEqual([
        'newer',
        'newer',
        'value',
        'none',
      ])
    })

    test('of absence is an answer too', async () => {
      await put(key, 'absent')
      expect(await state()).toBe('absent')
    })

    test('that releases leaves nothing, for the next reader to acquire', async () => {
      const mine = await lease(key)
      expect(await fill(mine, key, 'release')).toBe(0)
      expect(await record()).toBeNull()
      await lease(key)
    })

    test('after a clear is refused: the row was read before the write', async () => {
      const mine = await lease(key)
      await store.clear([key], null, true)
      expect(await fill(mine, key, Buffer.from('old'))).toBe(0)
      expect(await record()).toBeNull()
    })

    test('after a clear is refused also when another reader holds a lease by then', async () => {
      const mine = await lease(key)
      await store.clear([key], null, true)
      const theirs = await lease(key)
      expect(await fill(mine, key, Buffer.from('old'))).toBe(0)
      expect(await fill(mine, key, 'release')).toBe(0)
      expect(await fill(theirs, key, Buffer.from('new'))).toBe(1)
      expect(await payload()).toBe('new')
    })

    test('after an intent is refused, while the writer commits and afterwards', async () => {
      const mine = await lease(key)
      await store.intend([key], somebodysToken, MINUTE)
      expect(await fill(mine, key, Buffer.from('old'))).toBe(0)
      await store.clear([key], somebodysToken, true)
      expect(await fill(mine, key, Buffer.from('old'))).toBe(0)
      expect(await record()).toBeNull()
    })

    test('after its lease expired is refused', async () => {
      const mine = await lease(key)
      await opened.outlive(key)
      expect(await fill(mine, key, Buffer.from('late'))).toBe(0)
      expect(await record()).toBeNull()
    })

    test('after its lease expired and another was given is refused, and leaves that one alone', async () => {
      const mine = await lease(key)
      await opened.outlive(key)
      const theirs = await lease(key)
      expect(await fill(mine, key, Buffer.from('late'))).toBe(0)
      expect(await fill(theirs, key, Buffer.from('fresh'))).toBe(1)
      expect(await payload()).toBe('fresh')
    })

    test('of several keys is decided for each of them, and counts those that were stored', async () => {
      const [kept, cleared, released] = [keyFor('kept'), keyFor('cleared'), keyFor('released')]
      const mine = await lease(kept, cleared, released)
      await store.clear([cleared], null, true)
      const stored = await store.fill(mine, [
        { key: kept, schema: MINE, payload: Buffer.from('row'), ttlMs: MINUTE },
        { key: cleared, schema: MINE, payload: Buffer.from('old'), ttlMs: MINUTE },
        { key: released, schema: MINE, payload: 'release', ttlMs: MINUTE },
      ])
      expect(stored).toBe(1)
      expect((await store.getMany([kept, cleared, released])).map((found) => found !== null)).toEqual([
        true,
        false,
        false,
      ])
    })
  })

  test('every lease has a token of its own', async () => {
    const leases = await Promise.all(Array.from({ length: 1000 }, () => store.acquire([key], [MINE], MINUTE)))
    const tokens = leases.map(({ lease }) => lease.token)
    expect(new Set(tokens).size).toBe(1000)
    expect(tokens.every((token) => token.length === 16)).toBe(true)
  })

  test('one lease is granted, however many ask at once', async () => {
    const asked = await Promise.all(Array.from({ length: 20 }, () => store.acquire([key], [MINE], MINUTE)))
    expect(asked.filter(({ records: [found] }) => found === null)).toHaveLength(1)
  })

  describe('intents', () => {
    test('are given in a session, which goes on while the store is reached', async () => {
      const session = await store.intend([key], somebodysToken, MINUTE)
      expect(session).toBeDefined()
      expect(store.session).toBe(session)
      expect(await store.intend([key], othersToken, MINUTE)).toBe(session)
      expect((await store.acquire([key], [MINE], MINUTE)).lease.session).toBe(session)
    })

    test('of two writers stand side by side: the key is free when both are gone', async () => {
      await store.intend([key], somebodysToken, MINUTE)
      await store.intend([key], othersToken, MINUTE)
      await store.clear([key], somebodysToken, true)
      expect(await state()).toBe('intended')
      await store.clear([key], somebodysToken, true)
      expect(await state()).toBe('intended')
      await store.clear([key], othersToken, true)
      expect(await record()).toBeNull()
    })

    test('are taken back by a rollback as well', async () => {
      await store.intend([key], somebodysToken, MINUTE)
      await store.clear([key], somebodysToken, false)
      expect(await record()).toBeNull()
    })

    test('are renewed, not doubled, by the same token', async () => {
      await store.intend([key], somebodysToken, MINUTE)
      await store.intend([key], somebodysToken, 2 * MINUTE)
      await store.clear([key], somebodysToken, true)
      expect(await record()).toBeNull()
    })

    test('of concurrent writers are all kept', async () => {
      const tokens = Array.from({ length: 20 }, (_, i) => `writer-${String(i).padStart(9, '0')}`)
      await Promise.all(tokens.map((token) => store.intend([key], token, MINUTE)))
      for (const token of tokens) {
        expect(await state()).toBe('intended')
        await store.clear([key], token, true)
      }
      expect(await record()).toBeNull()
    })

    test('end by themselves: a crashed writer does not keep the key for ever', async () => {
      await store.intend([key], somebodysToken, MINUTE)
      await opened.outlive(key)
      await lease(key)
    })

    test('last as long as the longest of them, and no longer than those that are left', async () => {
      await store.intend([key], somebodysToken, 10 * MINUTE)
      await store.intend([key], othersToken, MINUTE)
      await store.clear([key], somebodysToken, true)
      await opened.expectTtl(key, MINUTE)
    })
  })

  describe('everything ends', () => {
    test('a value after the ttl of its fill', async () => {
      const mine = await lease(key)
      await store.fill(mine, [{ key, schema: MINE, payload: Buffer.from('row'), ttlMs: 5 * MINUTE }])
      await opened.expectTtl(key, 5 * MINUTE)
    })

    test('a known absence after the ttl of its fill', async () => {
      const mine = await lease(key)
      await store.fill(mine, [{ key, schema: MINE, payload: 'absent', ttlMs: 3 * MINUTE }])
      await opened.expectTtl(key, 3 * MINUTE)
    })

    test('a lease after the time it was given for', async () => {
      await store.acquire([key], [MINE], 6000)
      await opened.expectTtl(key, 6000)
    })

    test('a lease that took over an older value, too', async () => {
      await put(key, Buffer.from('row'), OLDER)
      await store.acquire([key], [MINE], 6000)
      await opened.expectTtl(key, 6000)
    })

    test('an intent after its deadline', async () => {
      await put(key, Buffer.from('row'))
      await store.intend([key], somebodysToken, 30_000)
      await opened.expectTtl(key, 30_000)
    })

    test('a shorter intent does not shorten a longer one', async () => {
      await store.intend([key], somebodysToken, 30_000)
      await store.intend([key], othersToken, 10_000)
      await opened.expectTtl(key, 30_000)
    })
  })

  describe('bytes and keys', () => {
    test.each([
      ['every byte value', Buffer.from(Array.from({ length: 256 }, (_, i) => i))],
      ['no bytes', Buffer.alloc(0)],
      ['what looks like a lease', Buffer.from(`L${somebodysToken}`)],
      ['what is no UTF-8', Buffer.from([0xff, 0xfe, 0xc0, 0x80, 0x0d, 0x0a, 0x00])],
      ['a megabyte', Buffer.alloc(1024 * 1024, 0xa5)],
    ])('a value of %s comes back as it is', async (_, bytes) => {
      await put(key, bytes)
      const found = await record()
      expect(stateOf(found, MINE)).toBe('value')
      expect(found?.subarray(HEADER_BYTES).equals(bytes)).toBe(true)
    })

    test('what becomes of the bytes after the fill is of no concern', async () => {
      const bytes = Buffer.from('row')
      await put(key, bytes)
      bytes.fill('x')
      expect(await payload()).toBe('row')
    })

    test('keys may hold anything', async () => {
      const names = [
        'a b',
        'ключ',
        '🔑',
        'line\nbreak',
        '\r\n',
        '%3A',
        '*',
        '[a-z]',
        '\\',
        'x'.repeat(10_000),
      ]
      const keys = names.map((name) => `${opened.prefix}${name}`)
      const mine = await lease(...keys)
      await store.fill(
        mine,
        keys.map((at, i) => ({
          key: at,
          schema: MINE,
          payload: Buffer.from(names[i] as string),
          ttlMs: MINUTE,
        })),
      )
      const found = await store.getMany(keys)
      expect(found.map((each) => each?.toString('utf8', HEADER_BYTES))).toEqual(names)
    })

    test('keys that differ in case are two', async () => {
      await put(`${opened.prefix}Key`, Buffer.from('upper'))
      expect(await record(`${opened.prefix}key`)).toBeNull()
    })
  })

  describe('many keys', () => {
    test('are answered in the order they were asked in, twins included', async () => {
      const [one, two] = [keyFor('one'), keyFor('two')]
      await put(one, Buffer.from('1'))
      await put(two, Buffer.from('2'))
      const found = await store.getMany([two, key, one, two])
      expect(found.map((each) => each?.toString('latin1', HEADER_BYTES))).toEqual(['2', undefined, '1', '2'])
    })

    test.each([499, 500, 501, 1000, 1001, 2500])('%i of them: each step reaches all', async (count) => {
      const keys = keysFor(count)
      const busy = keys.filter((_, i) => i % 7 === 3)
      await store.intend(busy, somebodysToken, MINUTE)

      const { lease, records } = await store.acquire(
        keys,
        keys.map((_, i) => MINE + (i % 3)),
        MINUTE,
      )
      expect(records.map((found) => found !== null)).toEqual(keys.map((_, i) => i % 7 === 3))

      const stored = await store.fill(
        lease,
        keys.map((at, i) => ({
          key: at,
          schema: MINE + (i % 3),
          payload: Buffer.from(`row ${i}`),
          ttlMs: MINUTE,
        })),
      )
      expect(stored).toBe(count - busy.length)

      const filled = await store.getMany(keys)
      expect(filled.map((found, i) => stateOf(found, MINE + (i % 3)))).toEqual(
        keys.map((_, i) => (i % 7 === 3 ? 'intended' : 'value')),
      )
      expect(filled.map((found, i) => i % 7 === 3 || found?.toString('latin1', HEADER_BYTES))).toEqual(
        keys.map((_, i) => i % 7 === 3 || `row ${i}`),
      )

      await store.clear(keys, somebodysToken, true)
      expect((await store.getMany(keys)).filter((found) => found !== null)).toEqual([])
    })

    test('none of them is nothing to do', async () => {
      expect(await store.getMany([])).toEqual([])
      const { lease, records } = await store.acquire([], [], MINUTE)
      expect(records).toEqual([])
      expect(await store.fill(lease, [])).toBe(0)
      await store.intend([], somebodysToken, MINUTE)
      await store.clear([], null, true)
    })
  })

  describe('scan', () => {
    async function scanned(prefix: string): Promise<string[]> {
      const found: string[] = []
      for await (const keys of store.scan(prefix)) found.push(...keys)
      return [...new Set(found)].sort()
    }

    test('finds the keys that begin with the prefix, whatever is at them', async () => {
      const [leased, intended, filled] = ['leased', 'intended', 'filled'].map((name) =>
        keyFor(`users:${name}`),
      ) as [string, string, string]
      await lease(leased)
      await store.intend([intended], somebodysToken, MINUTE)
      await put(filled, Buffer.from('row'))
      await put(keyFor('orders'), Buffer.from('row'))
      expect(await scanned(`${opened.prefix}users:`)).toEqual([leased, intended, filled].sort())
      expect(await scanned(`${opened.prefix}products:`)).toEqual([])
    })

    test('finds more keys than fit into one portion, and changes none', async () => {
      const keys = keysFor(2500)
      const mine = await lease(...keys)
      expect(await scanned(`${opened.prefix}many:`)).toEqual([...keys].sort())
      expect(
        await store.fill(
          mine,
          keys.map((at) => ({ key: at, schema: MINE, payload: 'absent', ttlMs: MINUTE })),
        ),
      ).toBe(2500)
    })

    test('takes the prefix literally', async () => {
      const [literal, alike] = [`${opened.prefix}a*[b]?\\:1`, `${opened.prefix}axbx:1`]
      await lease(literal, alike)
      expect(await scanned(`${opened.prefix}a*[b]?\\:`)).toEqual([literal])
    })
  })

  describe('markStale', () => {
    const mark = (...keys: string[]) => store.markStale(new Map(keys.map((at) => [at, 30_000])))

    test('moves values and absences aside, for the time given', async () => {
      const other = keyFor('other')
      await put(key, Buffer.from('row'))
      await put(other, 'absent')
      await mark(key, other)
      expect([await state(), await state(other)]).toEqual(['none', 'none'])
      expect([await payload(staleKeyOf(key)), await state(staleKeyOf(other))]).toEqual(['row', 'absent'])
      await opened.expectTtl(staleKeyOf(key), 30_000)
      await store.clear([key, other].map(staleKeyOf), null, true)
    })

    test('takes a lease away, so that a load from before it is not stored, and leaves what is stale', async () => {
      await put(key, Buffer.from('old'))
      await mark(key)
      const mine = await lease(key)
      await mark(key)
      expect(await fill(mine, key, Buffer.from('loaded before the write'))).toBe(0)
      expect([await state(), await payload(staleKeyOf(key))]).toEqual(['none', 'old'])
      await store.clear([staleKeyOf(key)], null, true)
    })

    test('what is newer takes the place of what is stale', async () => {
      for (const row of ['older', 'newer']) {
        await put(key, Buffer.from(row))
        await mark(key)
      }
      expect(await payload(staleKeyOf(key))).toBe('newer')
      await store.clear([staleKeyOf(key)], null, true)
    })

    test('leaves an intent, and a key without a record, as they are', async () => {
      const other = keyFor('other')
      await store.intend([key], somebodysToken, MINUTE)
      await mark(key, other)
      expect([await state(), await state(other)]).toEqual(['intended', 'none'])
      expect(await store.getMany([key, other].map(staleKeyOf))).toEqual([null, null])
    })

    test('is forgotten with its prefix', async () => {
      await put(key, Buffer.from('row'))
      await mark(key)
      await store.clearPrefix(opened.prefix)
      expect(await state(staleKeyOf(key))).toBe('none')
    })

    test('of any number of keys', async () => {
      const keys = keysFor(1500)
      const mine = await lease(...keys)
      await store.fill(
        mine,
        keys.map((at) => ({ key: at, schema: MINE, payload: Buffer.from(at), ttlMs: MINUTE })),
      )
      await mark(...keys)
      const stale = await store.getMany(keys.map(staleKeyOf))
      expect(stale.map((found) => found?.toString('latin1', HEADER_BYTES))).toEqual(keys)
      await store.clear(keys.map(staleKeyOf), null, true)
    })
  })

  describe('clearPrefix', () => {
    test('forgets what begins with the prefix, and nothing else', async () => {
      const inside = [`${opened.prefix}users:id:1`, `${opened.prefix}users:`]
      const outside = [`${opened.prefix}user`, `${opened.prefix}orders:users:`, `x${opened.prefix}users:`]
      const mine = await lease(...inside, ...outside)
      const row = (at: string) => ({ key: at, schema: MINE, payload: Buffer.from('row'), ttlMs: MINUTE })
      await store.fill(mine, [...inside, ...outside].map(row))
      await store.clearPrefix(`${opened.prefix}users:`)
      expect(await store.getMany(inside)).toEqual([null, null])
      expect((await store.getMany(outside)).every((found) => found !== null)).toBe(true)
      await store.clear(outside, null, true)
    })

    test('takes the prefix literally', async () => {
      const [literal, alike] = [`${opened.prefix}a*[b]?\\:1`, `${opened.prefix}axbx:1`]
      await put(literal, Buffer.from('row'))
      await put(alike, Buffer.from('row'))
      await store.clearPrefix(`${opened.prefix}a*[b]?\\:`)
      expect(await record(literal)).toBeNull()
      expect(await payload(alike)).toBe('row')
    })

    test('takes leases away, so that a load from before it is not stored', async () => {
      const mine = await lease(key)
      await store.clearPrefix(opened.prefix)
      expect(await state()).toBe('none')
      expect(await fill(mine, key, Buffer.from('old'))).toBe(0)
      expect(await state()).toBe('none')
    })

    test('of a part, then of the whole, then of the part again: each forgets what is there by then', async () => {
      const [part, rest] = [`${opened.prefix}users:id:1`, `${opened.prefix}users:email:1`]
      for (const [prefix, left] of [
        ['users:id:', 'rest'],
        ['users:', 'none'],
        ['users:id:', 'rest'],
      ] as const) {
        for (const at of [part, rest]) if ((await state(at)) === 'none') await put(at, Buffer.from('row'))
        await store.clearPrefix(opened.prefix + prefix)
        expect([await state(part), await state(rest)]).toEqual(['none', left === 'rest' ? 'value' : 'none'])
      }
    })

    test('reaches any number of keys', async () => {
      const keys = keysFor(2500)
      const mine = await lease(...keys)
      await store.fill(
        mine,
        keys.map((at) => ({ key: at, schema: MINE, payload: Buffer.from('row'), ttlMs: MINUTE })),
      )
      await store.clearPrefix(`${opened.prefix}many:`)
      expect((await store.getMany(keys)).every((found) => found === null)).toBe(true)
    })
  })
}
