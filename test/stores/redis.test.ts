import { randomBytes } from 'node:crypto'
import { Redis } from 'ioredis'
import { Redis as Redis5 } from 'ioredis-5'
import { afterAll, beforeEach, describe, expect, inject, test } from 'vitest'
import {
  answerRecord,
  type EntryState,
  filledAt,
  HEADER_BYTES,
  isOfOtherEpoch,
  leaseRecord,
  stateOf,
} from '../../src/stores/entry.ts'
import { Marks } from '../../src/stores/marks.ts'
import { type RedisClient, RedisStore } from '../../src/stores/redis.ts'
import { EVERY_SCHEMA } from '../../src/stores/store.ts'
import { closeRedis, testRedis } from '../support/redis.ts'
import { type StoreUnderTest, storeContract } from './contract.ts'

/** The tests share the machine with others: a step that is slow has not failed. */
const PATIENT = { timeout: '5s' } as const

afterAll(closeRedis)

/** A Redis store that has keys of its own on the run's server. */
function openRedisStore(client: RedisClient, keyPrefix = ''): StoreUnderTest {
  const { redis, namespace } = testRedis()
  const store = new RedisStore(client, { ...PATIENT, marksKey: `${namespace}:~marks` })
  return {
    store,
    prefix: `${namespace}:`,
    async expectTtl(key, ms) {
      const left = await redis.pttl(keyPrefix + key)
      expect(left).toBeLessThanOrEqual(ms)
      expect(left).toBeGreaterThan(ms - 5000)
    },
    async outlive(key) {
      await redis.pexpire(keyPrefix + key, 0)
    },
    async dispose() {
      const keys = await redis.keys(`${keyPrefix}${namespace}:*`)
      if (keys.length > 0) await redis.del(keys)
      redis.disconnect()
    },
  }
}

/** A client as an application has it, which never needs to connect: the store makes a connection of its own. */
const CLIENTS = {
  'ioredis 6': (options: object = {}) => new Redis(inject('redisUrl'), { lazyConnect: true, ...options }),
  'ioredis 5': (options: object = {}) => new Redis5(inject('redisUrl'), { lazyConnect: true, ...options }),
}

describe.each(Object.entries(CLIENTS))('RedisStore over %s', (_, open) => {
  describe('keeps the contract', () => storeContract(() => openRedisStore(open())))
})

describe('RedisStore over a client with a keyPrefix', () => {
  const keyPrefix = `app*[${randomBytes(3).toString('hex')}]?:`
  storeContract(() => openRedisStore(CLIENTS['ioredis 6']({ keyPrefix }), keyPrefix))
})

describe('RedisStore over a client with RESP2 and every option that could get in its way', () => {
  storeContract(() =>
    openRedisStore(
      CLIENTS['ioredis 6']({
        protocol: 2,
        enableAutoPipelining: true,
        stringNumbers: true,
        showFriendlyErrorStack: true,
        maxRetriesPerRequest: null,
        connectionName: 'app',
      }),
    ),
  )
})

describe("the application's client", () => {
  test('is never used: the store has its own connection, to the same database of the same server', async () => {
    const client = new Redis(inject('redisUrl'), { lazyConnect: true, db: 3 })
    const { redis, namespace } = testRedis({ db: 3 })
    const store = new RedisStore(client, PATIENT)
    await store.intend([`${namespace}:key`], 'somebodys-intent', 60_000)
    expect(await redis.exists(`${namespace}:key`)).toBe(1)
    expect(client.status).toBe('wait')
    await store.close()
  })

  test('stays open when the store is closed', async () => {
    const { redis } = testRedis()
    const store = new RedisStore(redis, PATIENT)
    await store.getMany(['key'])
    await store.close()
    expect(await redis.ping()).toBe('PONG')
  })

  test('sees keys with its keyPrefix: so `scan` finds those, and none without it', async () => {
    const keyPrefix = `p*${randomBytes(4).toString('hex')}:`
    const { redis } = testRedis()
    const store = new RedisStore(CLIENTS['ioredis 6']({ keyPrefix }), PATIENT)
    const [key, outside] = ['users:1', `p--${keyPrefix.slice(2)}users:1`]
    await redis.mset(`${keyPrefix}${key}`, 'V', key, 'V', outside, 'V')
    const found: string[] = []
    for await (const keys of store.scan('users:')) found.push(...keys)
    expect(found).toEqual([key])
    await store.clearPrefix('users:')
    expect(await redis.exists(`${keyPrefix}~marks`)).toBe(1)
    await redis.del(key, outside, `${keyPrefix}${key}`, `${keyPrefix}~marks`)
    await store.close()
  })
})

describe('options of a RedisStore', () => {
  test('are checked, and called by their names', () => {
    const client = CLIENTS['ioredis 6']()
    expect(() => new RedisStore(client, { timeout: 0 })).toThrow(/'redis.timeout'.*at least 1 ms.*is 0/)
    expect(() => new RedisStore(client, { epochCheck: 'soon' as '1s' })).toThrow(/'redis.epochCheck'.*"soon"/)
    expect(() => new RedisStore(client, { timeouts: 5 } as object)).toThrow(/'redis.timeouts'.*known are/)
  })
})

describe('what others left at a key', () => {
  const MINE = 256
  const OTHER_EPOCH = Buffer.from('????')
  let redis: Redis
  let store: RedisStore
  let key: string
  let epoch: Buffer

  beforeEach(async () => {
    const opened = testRedis()
    redis = opened.redis
    key = `${opened.namespace}:key`
    const marksKey = `${opened.namespace}:~marks`
    store = new RedisStore(redis, { ...PATIENT, marksKey })
    await store.getMany([key])
    const info = await redis.info('replication')
    const master = Buffer.from(/master_replid:(\w{8})/.exec(info)?.[1] as string, 'hex')
    epoch = new Marks(master, (await redis.getBuffer(marksKey)) as Buffer).epochOf(key)
    return async () => {
      await store.close()
      await redis.del(key, marksKey)
    }
  })

  async function state(): Promise<EntryState> {
    return stateOf((await store.getMany([key]))[0] ?? null, MINE)
  }

  async function acquire(schema: number): Promise<'granted' | EntryState> {
    const { records } = await store.acquire([key], [schema], 60_000)
    return records[0] ? stateOf(records[0], MINE) : 'granted'
  }

  /** Takes the key over as a reader does that found `found` there, and checks that it then works as any other. */
  async function expectTakeover(): Promise<void> {
    const schema = (await state()) === 'damaged' ? EVERY_SCHEMA : MINE
    const { lease, records } = await store.acquire([key], [schema], 60_000)
    expect(records).toEqual([null])
    expect(await redis.pttl(key)).toBeGreaterThan(50_000)
    const fill = { key, schema: MINE, payload: Buffer.from('row'), ttlMs: 90_000 }
    expect(await store.fill(lease, [fill])).toBe(1)
    const record = (await redis.getBuffer(key)) as Buffer
    expect(record).toEqual(answerRecord(MINE, epoch, Buffer.from('row'), filledAt(record)))
    expect(Math.abs(filledAt(record) - Date.now())).toBeLessThan(60_000)
    expect(await redis.pttl(key)).toBeGreaterThan(80_000)
  }

  const damaged: [string, string][] = [
    ['no bytes', ''],
    ['text', 'hello'],
    ['a value without a schema', 'V'],
    ['a value that ends in its schema', 'V\u0001'],
    ['a value that ends in its epoch', 'V\u0001\u0000abc'],
    ['an absence that ends in its epoch', 'N\u0001\u0000abc'],
    ['a lease without a token', 'L'],
    ['a lease with a short token', 'Lfoo'],
    ['a lease with a long token', `L${'x'.repeat(21)}`],
    ['an intent without a token', 'W'],
    ['an intent with a short deadline', `W${'x'.repeat(16)}123`],
    ['an intent of no time', `W${'x'.repeat(16)}${'y'.repeat(13)}z`],
    ['an ended intent and a half', `W${'x'.repeat(16)}${'0'.repeat(13)}yyyy`],
  ]

  test.each(damaged)('%s: is no answer, and taken over', async (_, bytes) => {
    await redis.set(key, Buffer.from(bytes, 'latin1'))
    // A header that ends in the epoch names no epoch, or another one.
    expect(await state()).toBe(/^[VN]/.test(bytes) ? 'none' : 'damaged')
    await expectTakeover()
  })

  test.each(damaged)('%s: a write goes on', async (_, bytes) => {
    await redis.set(key, Buffer.from(bytes, 'latin1'))
    await store.clear([key], 'somebodys-intent', true)
    await store.intend([key], 'somebodys-intent', 60_000)
    expect(await state()).toBe('intended')
    await store.clear([key], 'somebodys-intent', true)
    expect(await redis.exists(key)).toBe(0)
  })

  test.each(damaged)('%s: a write intent takes its place', async (_, bytes) => {
    await redis.set(key, Buffer.from(bytes, 'latin1'))
    await store.intend([key], 'somebodys-intent', 60_000)
    expect(await redis.getBuffer(key)).toHaveLength(1 + 29)
  })

  test('an absence with something behind it: is damaged, and taken over', async () => {
    await redis.set(key, Buffer.concat([answerRecord(MINE, epoch, null, 0), Buffer.from('x')]))
    expect(await state()).toBe('damaged')
    await expectTakeover()
  })

  test.each([
    ['a hash', (at: string) => redis.hset(at, 'field', 'value')],
    ['a list', (at: string) => redis.lpush(at, 'value')],
    ['a set', (at: string) => redis.sadd(at, 'value')],
    ['a stream', (at: string) => redis.xadd(at, '*', 'field', 'value')],
  ])('%s: reads as nothing, and every step takes it over', async (_, put) => {
    await put(key)
    expect(await state()).toBe('none')
    await expectTakeover()
    await redis.del(key)
    await put(key)
    await store.intend([key], 'somebodys-intent', 60_000)
    expect(await state()).toBe('intended')
    await redis.del(key)
    await put(key)
    await store.clear([key], null, false)
    expect(await redis.exists(key)).toBe(1)
    await store.clear([key], null, true)
    expect(await redis.exists(key)).toBe(0)
  })

  test.each([
    ['an older', MINE - 1],
    ['the same', MINE],
    ['a newer', MINE + 1],
  ])('a value of another epoch and %s schema: is not believed, and taken over', async (_, schema) => {
    for (const payload of [Buffer.from('row'), null]) {
      await redis.set(key, answerRecord(schema, OTHER_EPOCH, payload, 0))
      expect(await store.getMany([key])).toEqual([null])
      expect(await acquire(MINE)).toBe('granted')
      await redis.del(key)
    }
  })

  test('a lease of another epoch: is nobody\u2019s, and taken over', async () => {
    await redis.set(key, leaseRecord('x'.repeat(16), OTHER_EPOCH))
    expect(await store.getMany([key])).toEqual([null])
    expect(await acquire(MINE)).toBe('granted')
    await redis.set(key, leaseRecord('x'.repeat(16), epoch))
    expect(await acquire(MINE)).toBe('leased')
  })

  test('intents are of every epoch: a writer may commit under the next master', async () => {
    const record = `W${'x'.repeat(16)}${'9'.repeat(13)}`
    await redis.set(key, record)
    expect(isOfOtherEpoch(Buffer.from(record), epoch)).toBe(false)
    expect(await acquire(MINE)).toBe('intended')
  })

  // Lua compares texts by the server's locale; bytes above 127, and capitals, are where that shows.
  test.each([
    [0, 1],
    [13, 14],
    [66, 97],
    [127, 128],
    [255, 256],
    [0x4161, 0x6141],
    [64_999, 65_000],
  ])('schema %i is older than schema %i', async (older, newer) => {
    await redis.set(key, answerRecord(newer, epoch, Buffer.from('row'), 0))
    expect((await store.acquire([key], [older], 60_000)).records).not.toEqual([null])
    expect((await store.acquire([key], [newer], 60_000)).records).not.toEqual([null])
    await redis.set(key, answerRecord(older, epoch, Buffer.from('row'), 0))
    expect((await store.acquire([key], [newer], 60_000)).records).toEqual([null])
  })

  test("expired intents of crashed writers are dropped, others' live ones kept", async () => {
    const past = String(Date.now() - 1000).padStart(13, '0')
    const future = String(Date.now() + 60_000).padStart(13, '0')
    await redis.set(key, `W${'crashed---------'}${past}${'alive-----------'}${future}`)
    await store.intend([key], 'somebodys-intent', 30_000)
    expect(String(await redis.get(key))).toMatch(/^Wsomebodys-intent\d{13}alive-----------\d{13}$/)
    expect(await redis.pttl(key)).toBeGreaterThan(50_000)

    await redis.set(key, `W${'crashed---------'}${past}${'alive-----------'}${future}`, 'PX', 60_000)
    await store.clear([key], 'alive-----------', true)
    expect(await redis.exists(key)).toBe(0)
  })

  test('a value keeps to its header: every other byte is payload', async () => {
    const bytes = Buffer.concat([Buffer.from(`L${'x'.repeat(16)}`), Buffer.from([0, 255, 10, 13])])
    await redis.set(key, answerRecord(MINE, epoch, bytes, 0))
    expect((await store.getMany([key]))[0]?.subarray(HEADER_BYTES)).toEqual(bytes)
  })
})
