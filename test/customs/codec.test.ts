import { randomBytes } from 'node:crypto'
import { deflateSync } from 'node:zlib'
import { type Codec, type CompressedOptions, compressed, OptionError, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { HEADER_BYTES } from '../../src/stores/entry.ts'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Portal } from './portal.ts'

const COLD = { mget: 1, acquire: 1, fill: 1 }
const WARM = { mget: 1 }

afterAll(closeRedis)

const inScope = <Result>(fn: () => Promise<Result>) => runInLoop(fn)()

/** Turns every bit around, which no codec of rows can read. */
const inverted = (name: string): Codec => {
  const turn = (bytes: Buffer) => Buffer.from(bytes.map((byte) => ~byte))
  return { name, encode: turn, decode: turn }
}

describe.each(Object.entries(PLACES))('on %s', (_place, openPortal) => {
  let portal: Portal
  beforeEach(async () => {
    portal = await openPortal()
    await portal.cache.install()
  })
  afterEach(() => portal.close())

  /** The models and a custom cache of another process, with this codec. */
  async function declare(codec?: Codec, customCodec = codec) {
    const cache = portal.another()
    const User = cache.model('users', { keyFields: [['id']], filterFields: [['team_id']], codec })
    const Bio = cache.instance({
      name: 'Bio',
      model: User,
      keyFields: ['id'],
      codec: customCodec,
      loadOne: async ({ id }) => `bio of ${id} `.repeat(500),
    })
    await cache.install()
    const read = () =>
      inScope(() =>
        Promise.all([
          User.cache.getAsync({ id: 1 }),
          User.cache.filterAsync({ team_id: 1 }),
          Bio(1).resolveAsync(),
          User.cache.getAsyncOrNone({ id: 99 }),
        ]),
      )
    const { store } = insidesOf(cache)
    const recordAt = async (key: string) => (await store.getMany([key]))[0] as Buffer
    /** Has somebody else's bytes behind the header of what is there. */
    const damage = async (key: string, payload: Buffer) => {
      const record = await recordAt(key)
      await store.clear([key], null, true)
      const { lease } = await store.acquire([key], [0], 5000)
      const schema = record.readUInt16BE(1)
      await store.fill(lease, [{ key, schema, payload, ttlMs: 60_000 }])
    }
    return { cache, User, Bio, read, recordAt, damage }
  }

  const EXPECTED = [{ id: 1, name: 'user 1' }, [{ id: 1 }, { id: 2 }], 'bio of 1 '.repeat(500), null]

  test('what is stored has gone through it, and comes back as it was', async () => {
    const { cache, User, Bio, read, recordAt } = await declare(inverted('inverted'))
    const { User: Plain } = portal.models
    await Plain.cache.getAsync({ id: 2 })
    expect(await expectTrips(cache, { ...COLD, select: 2, load: 1 }, read)).toMatchObject(EXPECTED)
    expect(await expectTrips(cache, WARM, read)).toMatchObject(EXPECTED)
    for (const key of [await User.cache.keyOf({ id: 1 }), await Bio.keyOf({ id: 1 })]) {
      const bytes = (await recordAt(key)).subarray(HEADER_BYTES)
      const text = (of: Buffer) => of.toString('latin1')
      expect(text(bytes)).not.toMatch(/user 1|bio of/)
      expect(text(inverted('').decode(bytes))).toMatch(/user 1|bio of/)
    }
  })

  test('a custom cache has that of its model, or its own', async () => {
    const inherited = await declare(inverted('a'), undefined)
    await inherited.Bio(1).resolveAsync()
    await inherited.cache.idle()
    const inheritedBytes = await inherited.recordAt(await inherited.Bio.keyOf({ id: 1 }))
    expect(inheritedBytes.toString('latin1')).not.toContain('bio of')
    const own = await declare(inverted('a'), { name: 'own', encode: (b) => b, decode: (b) => b })
    await own.Bio(1).resolveAsync()
    await own.cache.idle()
    expect((await own.recordAt(await own.Bio.keyOf({ id: 1 }))).toString('latin1')).toContain('bio of')
  })

  test('another name is another stored form: neither process reads what the other has stored', async () => {
    // The very same functions: were they called, nobody would notice.
    const given: string[] = []
    const named = (name: string): Codec => ({
      name,
      encode: (bytes) => Buffer.concat([Buffer.from(name), bytes]),
      decode: (bytes) => {
        given.push(`${name} ${bytes.toString('latin1', 0, 3)}`)
        return bytes.subarray(3)
      },
    })
    const before = await declare(named('one'))
    const after = await declare(named('two'))
    const plain = await declare()
    const readers = [before, after, plain, after, before, plain]
    for (const { cache, read } of readers) {
      expect(await read()).toMatchObject(EXPECTED)
      await cache.idle()
    }
    expect(new Set(given)).not.toContain('one two')
    expect(new Set(given)).not.toContain('two one')
    const numbers: number[] = []
    for (const { User, cache, recordAt } of [before, after, plain]) {
      await User.cache.refresh({ id: 1 })
      await cache.idle()
      numbers.push((await recordAt(await User.cache.keyOf({ id: 1 }))).readUInt16BE(1))
    }
    expect(new Set(numbers).size).toBe(3)
  })

  test('bytes it cannot read are a miss, counted, and replaced', async () => {
    const bomb = Buffer.concat([Buffer.of(1), deflateSync(Buffer.alloc(64 * 1024 * 1024))])
    const good = await declare(compressed())
    const { cache, Bio, damage, recordAt } = good
    const key = await Bio.keyOf({ id: 1 })
    const read = () => inScope(() => Bio(1).resolveAsync())
    expect(await read()).toBe(EXPECTED[2])
    await cache.idle()
    const payload = Buffer.from((await recordAt(key)).subarray(HEADER_BYTES))
    const flipped = Buffer.from(payload)
    flipped[20] = (flipped[20] as number) ^ 4
    for (const bytes of [
      bomb,
      flipped,
      payload.subarray(0, -3),
      Buffer.of(),
      Buffer.of(7, 1, 2),
      Buffer.concat([Buffer.of(0), randomBytes(50)]),
    ]) {
      await damage(key, bytes)
      const before = cache.stats().damaged
      expect(await expectTrips(cache, { ...COLD, load: 1 }, read)).toBe(EXPECTED[2])
      expect(cache.stats().damaged - before).toBe(1)
      await expectTrips(cache, WARM, read)
    }
  })

  test('what it cannot write is answered, and not cached', async () => {
    let fails: 'throws' | 'no bytes' | undefined = 'throws'
    const { cache, read } = await declare({
      name: 'odd',
      encode(bytes) {
        if (fails === 'throws') throw new Error('no key today')
        return fails ? ('text' as unknown as Buffer) : bytes
      },
      decode: (bytes) => bytes,
    })
    for (fails of ['throws', 'no bytes'] as const) {
      const before = cache.stats().uncached
      expect(await read()).toMatchObject(EXPECTED)
      await cache.idle()
      expect(cache.stats().uncached - before).toBe(3)
    }
    fails = undefined
    await expectTrips(cache, { ...COLD, select: 2, load: 1 }, read)
    await expectTrips(cache, WARM, read)
  })

  test('verify compares what has gone through it', async () => {
    const { cache, read, damage, User } = await declare(compressed({ threshold: 0 }))
    await read()
    await cache.idle()
    expect(await cache.verify()).toMatchObject({ checked: 3, stale: 0 })
    await damage(await User.cache.keyOf({ id: 1 }), Buffer.of(1, 2, 3))
    expect(await cache.verify()).toMatchObject({ stale: 0, unchecked: { damaged: 1 } })
  })
})

describe('compressed', () => {
  const rows = Buffer.from(
    JSON.stringify(Array.from({ length: 100 }, (_, id) => ({ id, name: `name ${id}` }))),
  )

  test('brings back what it was given, of any length, at any level', () => {
    for (const options of [{}, { threshold: 0 }, { level: 1 }, { level: 9 }, { threshold: 1e6 }]) {
      const codec = compressed(options)
      for (const bytes of [Buffer.of(), Buffer.of(0), rows, randomBytes(5000), Buffer.alloc(1e6)]) {
        expect(codec.decode(codec.encode(bytes)).equals(bytes)).toBe(true)
      }
    }
  })

  test('leaves alone what is short, or does not get shorter: one byte more', () => {
    const codec = compressed()
    expect(codec.encode(rows.subarray(0, 1023))).toHaveLength(1024)
    expect(codec.encode(rows.subarray(0, 1024)).length).toBeLessThan(512)
    expect(codec.encode(randomBytes(5000))).toHaveLength(5001)
  })

  test('any level reads what another one wrote', () => {
    expect(
      compressed({ level: 9, threshold: 1e6 })
        .decode(compressed({ level: 1 }).encode(rows))
        .equals(rows),
    ).toBe(true)
  })

  test('unpacks no more than maxBytes, and packs no more', () => {
    const large = compressed({ maxBytes: 2e6 })
    const small = compressed({ maxBytes: 1e6 })
    const bytes = Buffer.alloc(1_000_001)
    expect(() => small.decode(large.encode(bytes))).toThrow(RangeError)
    expect(() => small.encode(bytes)).toThrow(/more than maxBytes/)
    expect(large.decode(large.encode(bytes))).toHaveLength(1_000_001)
  })

  test.each([
    [{ threshold: -1 }, /'compressed.threshold' must be a whole number of at least 0, but is -1/],
    [{ level: 10 }, /'compressed.level' must be a whole number from 1 to 9, but is 10/],
    [{ maxBytes: 0 }, /'compressed.maxBytes'/],
    [{ quality: 1 }, /'compressed.quality' must be left out/],
  ])('%j is refused by name', (options, message) => {
    const make = () => compressed(options as CompressedOptions)
    expect(make).toThrow(OptionError)
    expect(make).toThrow(message)
  })
})

describe('a codec that is none', () => {
  let portal: Portal
  beforeEach(async () => {
    portal = await (PLACES['in-process store and PGlite'] as () => Promise<Portal>)()
    return () => portal.close()
  })

  test.each([
    [null, /codec.name' must be a text that is not empty/],
    [{ name: '', encode() {}, decode() {} }, /codec.name' .*but is ""/],
    [{ name: 'x', decode() {} }, /codec.encode' must be a function/],
    [{ name: 'x', encode() {}, decode: 1 }, /codec.decode' must be a function, but is 1/],
  ])('%j is refused by name, for a model and for a custom cache', (given, message) => {
    const codec = given as unknown as Codec
    const cache = portal.another()
    expect(() => cache.model('users', { keyFields: [['id']], codec })).toThrow(message)
    const User = cache.model('users', { keyFields: [['id']] })
    const declare = (options: object) => () =>
      cache.count({ name: 'A', model: User, keyFields: ['id'], ...options })
    expect(declare({ codec })).toThrow(message)
    expect(() => cache.instance({ name: 'B', model: User, keyFields: ['id'], codec: compressed() })).toThrow(
      /'B.codec' must be left out without load/,
    )
  })
})
