import { Redis } from 'ioredis'
import { sql } from 'kysely'
import { createModelCache, type VerifyProgress } from 'loadstone'
import { afterAll, afterEach, beforeEach, describe, expect, inject, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { answerRecord } from '../../src/stores/entry.ts'
import type { CacheStore, Fill } from '../../src/stores/store.ts'
import { closeRedis } from '../support/redis.ts'
import { openServers, range, STACKS, type Town, type TownCache } from './town.ts'

afterAll(closeRedis)

/** For what is stale for good, there is nothing to wait for; and what is not is invalidated while a test holds the rest. */
const HASTY = { settleMs: 1 }

describe.each(STACKS)('verify on %s', (_, open) => {
  let town: Town
  let opened: TownCache
  let store: CacheStore

  beforeEach(async () => {
    town = await open()
    opened = town.open()
    store = insidesOf(opened.cache).store
    await opened.cache.install()
    await town.unseen(`
      insert into people select i, 'p' || i || '@town.test', 'name ' || i % 7, 'street ' || i % 5 from generate_series(1, 50) i;
      insert into houses select 'street ' || i % 5, i, i from generate_series(1, 20) i`)
  })
  afterEach(() => town.close())

  /** Everything once, absences included. */
  async function fillAll(): Promise<void> {
    const { cache, Person, House } = opened
    await Promise.all([
      ...range(60).map((id) => Person.cache.getAsyncOrNone({ id })),
      ...range(60).map((id) => Person.cache.getAsyncOrNone({ email: `p${id}@town.test` })),
      ...[...range(6, 0).map((i) => `street ${i}`), null].map((street) =>
        Person.cache.filterAsync({ street }),
      ),
      ...range(20).map((number) => House.cache.getAsync({ street: `street ${number % 5}`, number })),
      ...range(25).map((owner) => House.cache.filterAsync({ owner })),
    ])
    await cache.idle()
  }

  const ENTRIES = 60 + 60 + 7 + 20 + 25

  /** Stores a record at a key as a fill would, whatever it says. */
  async function put(key: string, payload: Fill['payload'], schema: number): Promise<void> {
    const { lease } = await store.acquire([key], [0xffff], 60_000)
    expect(await store.fill(lease, [{ key, schema, payload, ttlMs: 60_000 }])).toBe(1)
  }

  /** The schema number of the records that the models store. */
  async function schemaOf(key: string): Promise<number> {
    const [record] = await store.getMany([key])
    return (record as Buffer).readUInt16BE(1)
  }

  test('finds nothing where nothing is stale, and says what it looked at', async () => {
    await fillAll()
    const report = await opened.cache.verify(HASTY)
    expect(report).toMatchObject({
      entries: ENTRIES,
      sampled: ENTRIES,
      checked: ENTRIES,
      stale: 0,
      rate: 0,
      oldestStaleMs: null,
      inFlight: 0,
      overdue: 0,
      repaired: 0,
      unchecked: {
        gone: 0,
        otherSchema: 0,
        leased: 0,
        intended: 0,
        damaged: 0,
        unverifiable: 0,
        undeclared: 0,
      },
    })
    expect(report.shapes.map(({ model, shape, checked }) => [model, shape, checked])).toEqual([
      ['people', 'id', 60],
      ['people', 'email', 60],
      ['people', 'street[]', 7],
      ['people', 'name,street[]', 0],
      ['houses', 'street,number', 20],
      ['houses', 'owner[]', 25],
      ['houses', 'street[]', 0],
    ])
  })

  test('has nothing to do in an empty cache', async () => {
    expect(await opened.cache.verify(HASTY)).toMatchObject({ entries: 0, checked: 0, stale: 0, rate: 0 })
  })

  describe('with stale entries', () => {
    const key = (rest: string) => `${town.namespace}:${rest}`
    const plant = {
      'a value that changed': 'update people set name = name || name where id in (3, 4)',
      'an absence that is over': "insert into people values (55, 'p55@town.test', 'new', 'street 9')",
      'a row that is gone': 'delete from people where id = 20',
      'a list that lacks a row': "insert into houses values ('street 1', 100, 7)",
      'a list whose last row is gone': 'delete from houses where owner = 9',
      'a row that moved from one list to another': 'update houses set owner = 24 where owner = 5',
    }
    const expected: Record<keyof typeof plant, string[]> = {
      'a value that changed': [
        ...['people:id:3', 'people:id:4', 'people:email:p3@town.test', 'people:email:p4@town.test'],
        ...['people:street[]:street%203', 'people:street[]:street%204'],
      ],
      'an absence that is over': ['people:id:55', 'people:email:p55@town.test'],
      'a row that is gone': ['people:id:20', 'people:email:p20@town.test', 'people:street[]:street%200'],
      'a list that lacks a row': ['houses:owner[]:7'],
      'a list whose last row is gone': ['houses:street,number:street%204,9', 'houses:owner[]:9'],
      'a row that moved from one list to another': [
        ...['houses:street,number:street%200,5', 'houses:owner[]:5', 'houses:owner[]:24'],
      ],
    }

    test.each(Object.keys(plant) as (keyof typeof plant)[])('finds %s', async (what) => {
      await fillAll()
      await town.unseen(plant[what])
      const report = await opened.cache.verify(HASTY)
      const found = report.shapes.flatMap(({ examples }) => examples)
      expect(found.toSorted()).toEqual(expected[what].map(key).toSorted())
      expect(report).toMatchObject({ checked: ENTRIES, stale: expected[what].length, repaired: 0 })
      expect(report.rate).toBe(expected[what].length / ENTRIES)
    })

    test('repairs all of them, and leaves the rest', async () => {
      await fillAll()
      await town.unseen(Object.values(plant).join(';'))
      const planted = new Set(Object.values(expected).flat()).size
      const report = await opened.cache.verify({ ...HASTY, repair: true })
      expect(report).toMatchObject({ stale: planted, repaired: planted })
      expect(await opened.cache.verify(HASTY)).toMatchObject({ entries: ENTRIES - planted, stale: 0 })
      expect(await opened.Person.cache.getAsync({ id: 55 })).toMatchObject({ name: 'new' })
      expect(await opened.Person.cache.getAsyncOrNone({ id: 20 })).toBeNull()
      expect(await opened.House.cache.filterAsync({ owner: 7 })).toHaveLength(2)
      expect(await opened.House.cache.filterAsync({ owner: 24 })).toHaveLength(1)
    })

    test('tells them by shape, five examples of each, and the age of the oldest', async () => {
      await opened.Person.cache.getAsync({ id: 1 })
      await opened.cache.idle()
      await new Promise((resolve) => setTimeout(resolve, 300))
      await Promise.all(range(29, 2).map((id) => opened.Person.cache.getAsync({ id })))
      await opened.Person.cache.getAsync({ email: 'p1@town.test' })
      await opened.cache.idle()
      await town.unseen('update people set name = name || name where id <= 10')
      const { shapes, oldestStaleMs } = await opened.cache.verify(HASTY)
      const [byId, byEmail] = shapes
      expect(byId).toMatchObject({ model: 'people', shape: 'id', checked: 30, stale: 10, rate: 1 / 3 })
      expect(byId?.examples).toHaveLength(5)
      expect(byId?.oldestStaleMs).toBeGreaterThanOrEqual(300)
      expect(oldestStaleMs).toBe(byId?.oldestStaleMs)
      expect(byEmail).toMatchObject({ checked: 1, stale: 1 })
      expect(byEmail?.oldestStaleMs).toBeLessThan(byId?.oldestStaleMs as number)
    })

    test('looks only at the models named', async () => {
      await fillAll()
      await town.unseen(Object.values(plant).join(';'))
      const { shapes, stale } = await opened.cache.verify({ ...HASTY, models: ['houses'], repair: true })
      expect(new Set(shapes.map(({ model }) => model))).toEqual(new Set(['houses']))
      expect(stale).toBe(6)
      expect(await opened.cache.verify({ ...HASTY, models: ['people'] })).toMatchObject({ stale: 11 })
    })
  })

  describe('an entry that differs, and is about to be cleared', () => {
    beforeEach(async () => {
      await fillAll()
      await town.unseen("update people set name = 'else' where id = 3")
    })

    const key = { id: 3 }

    /** Verifies, and does something while invalidations in flight are waited for the `round`th time. */
    async function meanwhile(act: () => Promise<unknown>, round = 1) {
      let rounds = 0
      const onProgress = async ({ phase, done, total }: VerifyProgress) => {
        if (phase === 'settle' && done !== total && ++rounds === round) await act()
      }
      return opened.cache.verify({ ...HASTY, onProgress })
    }

    test('is in flight, not stale, when it is gone by then', async () => {
      const report = await meanwhile(() => opened.cache.clear(['people']))
      expect(report).toMatchObject({ stale: 0, inFlight: 3 })
    })

    test('or being loaded', async () => {
      const report = await meanwhile(async () => {
        await opened.cache.clear(['people'])
        await store.acquire([`${town.namespace}:people:id:3`], [0], 60_000)
      })
      expect(report).toMatchObject({ stale: 0, inFlight: 3 })
    })

    test('or loaded anew', async () => {
      const report = await meanwhile(async () => {
        await opened.cache.clear(['people'])
        await opened.Person.cache.getAsync(key)
      })
      expect(report).toMatchObject({ stale: 0, inFlight: 3 })
    })

    test('or right, as the row is what it was', async () => {
      const report = await meanwhile(() => town.unseen("update people set name = 'name 3' where id = 3"))
      expect(report).toMatchObject({ stale: 0, inFlight: 3 })
    })

    test('or another entry that differs as well: it has had its time once more', async () => {
      await opened.cache.clear()
      await opened.Person.cache.getAsyncOrNone({ id: 77 })
      await opened.Person.cache.getAsync({ id: 3 })
      await opened.cache.idle()
      await town.unseen(
        "insert into people values (77, 'a', 'a', null); update people set name = 'b' where id = 3",
      )
      const report = await meanwhile(async () => {
        await opened.cache.clear()
        await town.unseen("delete from people where id = 77; update people set name = 'else' where id = 3")
        await opened.Person.cache.getAsyncOrNone({ id: 77 })
        await opened.Person.cache.getAsync({ id: 3 })
        await opened.cache.idle()
        // The same bytes as before but for the time of their fill, and as wrong.
        await town.unseen(
          "insert into people values (77, 'a', 'a', null); update people set name = 'b' where id = 3",
        )
      })
      expect(report).toMatchObject({ checked: 2, stale: 0, inFlight: 2 })
    })

    test('is given more time when its invalidation waits in the outbox', async () => {
      await opened.cache.verify({ ...HASTY, repair: true })
      await fillAll()
      await town.elsewhere("update people set name = 'third' where id = 3")
      const { relay } = insidesOf(opened.cache)
      const report = await meanwhile(async () => relay?.turn(0), 3)
      expect(report).toMatchObject({ stale: 0, inFlight: 3, overdue: 0 })
    })

    test('is not stale when it is cleared between two looks at it', async () => {
      await opened.cache.verify({ ...HASTY, repair: true })
      await fillAll()
      await town.elsewhere("update people set name = 'third' where id = 3")
      const { relay } = insidesOf(opened.cache)
      const getMany = store.getMany.bind(store)
      let settling = false
      store.getMany = async (keys) => {
        const records = await getMany(keys)
        if (settling) await relay?.turn(0)
        return records
      }
      const report = await opened.cache.verify({
        ...HASTY,
        onProgress: ({ phase }) => {
          settling = phase === 'settle'
        },
      })
      expect(report).toMatchObject({ stale: 0, inFlight: 3 })
    })

    test('but not for ever: then it is stale, and overdue', async () => {
      await town.elsewhere(
        "update people set name = 'third' where id = 3; delete from houses where owner = 1",
      )
      await town.unseen('update people set name = name || name where id = 7')
      const report = await opened.cache.verify(HASTY)
      expect(report).toMatchObject({ stale: 8, overdue: 5 })
    })

    test('also when the outbox says that all of a model was written', async () => {
      await town.elsewhere('truncate houses')
      expect(await opened.cache.verify({ ...HASTY, models: ['houses'] })).toMatchObject({
        stale: 40,
        overdue: 40,
      })
    })
  })

  test('counts apart what it cannot compare, and does not touch it', async () => {
    await opened.Person.cache.getAsync({ id: 1 })
    await opened.Person.cache.getAsync({ id: 2 })
    await opened.cache.idle()
    const at = (rest: string) => `${town.namespace}:people:${rest}`
    const schema = await schemaOf(at('id:1'))
    const [value] = (await store.getMany([at('id:1')])) as [Buffer]
    await store.acquire([at('id:10')], [schema], 60_000)
    await store.acquire([at('id:11')], [schema], 60_000)
    await store.intend([at('id:12')], 'somebodys-intent', 60_000)
    await put(at('id:13'), value.subarray(13), schema + 1)
    await put(at('id:14'), 'absent', schema + 1)
    if (schema > 0) await put(at('id:15'), 'absent', schema - 1)
    await put(at('id:16'), Buffer.from('no row of ours'), schema)
    await put(at('email:#hash'), value.subarray(13), schema)
    await put(at('id:word'), 'absent', schema)
    await put(at('id:17,18'), value.subarray(13), schema)
    await put(at('id:%zz'), 'absent', schema)
    await put(at('planet:earth'), 'absent', schema)
    await put(`${town.namespace}:pets:id:1`, 'absent', schema)
    await put(`${town.namespace}x:people:id:1`, 'absent', schema)
    await put('elsewhere', 'absent', schema)
    const report = await opened.cache.verify({ ...HASTY, repair: true })
    const older = schema > 0 ? 1 : 0
    expect(report).toMatchObject({
      entries: 13 + older,
      sampled: 13 + older,
      checked: 2,
      stale: 0,
      repaired: 0,
      unchecked: {
        gone: 0,
        otherSchema: 2 + older,
        leased: 2,
        intended: 1,
        damaged: 1,
        unverifiable: 4,
        undeclared: 1,
      },
    })
    expect((await store.getMany([at('id:10'), at('id:12'), at('id:16')])).every(Boolean)).toBe(true)
    await store.clear(['elsewhere', `${town.namespace}x:people:id:1`], null, true)
  })

  test('compares a sample, when there are more entries', async () => {
    await fillAll()
    const report = await opened.cache.verify({ ...HASTY, sample: 40 })
    expect(report).toMatchObject({ entries: ENTRIES, sampled: 40, checked: 40 })
    expect(report.shapes.filter(({ checked }) => checked > 0).length).toBeGreaterThan(1)
    expect(await opened.cache.verify({ ...HASTY, sample: Number.POSITIVE_INFINITY })).toMatchObject({
      checked: ENTRIES,
    })
  })

  test('tells how far it is', async () => {
    await fillAll()
    await town.unseen('delete from people where id = 1')
    const told: VerifyProgress[] = []
    await opened.cache.verify({ ...HASTY, onProgress: (progress) => told.push(progress) })
    const last = (wanted: VerifyProgress['phase']) => told.findLast(({ phase }) => phase === wanted)
    expect(last('scan')).toEqual({ phase: 'scan', done: ENTRIES, total: undefined })
    expect(last('check')).toEqual({ phase: 'check', done: ENTRIES, total: ENTRIES })
    expect(last('settle')).toEqual({ phase: 'settle', done: 3, total: 3 })
    const checks = told.filter(({ phase }) => phase === 'check').map(({ done }) => done)
    expect(checks).toEqual(checks.toSorted((a, b) => a - b))
  })

  test('ends when told to, also while it waits', async () => {
    await fillAll()
    const reason = new Error('enough')
    await expect(opened.cache.verify({ signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    await town.unseen('delete from people where id = 1')
    const controller = new AbortController()
    const onProgress = ({ phase }: VerifyProgress) => {
      if (phase === 'settle') setTimeout(() => controller.abort(reason), 10)
    }
    const verifying = opened.cache.verify({ settleMs: 3_600_000, onProgress, signal: controller.signal })
    await expect(verifying).rejects.toBe(reason)
  })

  test.each([
    [{ sample: 0 }, "option 'verify.sample' must be a whole number of at least 1, but is 0"],
    [{ settleMs: -1 }, "option 'verify.settleMs' must be a whole number of at least 0, but is -1"],
    [{ repair: 'yes' }, 'option \'verify.repair\' must be true or false, but is "yes"'],
    [{ models: 'people' }, 'option \'verify.models\' must be a list of names of models, but is "people"'],
    [
      { models: ['pets'] },
      'option \'verify.models\' must be made of declared models (people, houses), but is "pets"',
    ],
    [{ fix: true }, "option 'verify.fix' must be left out"],
  ])('refuses %j', async (options, message) => {
    await expect(opened.cache.verify(options as object)).rejects.toThrow(message)
  })

  test('is over when the cache is closed', async () => {
    await opened.cache.close()
    await expect(opened.cache.verify()).rejects.toMatchObject({ code: 'ERR_CACHE_CLOSED' })
    await expect(opened.cache.doctor()).rejects.toMatchObject({ code: 'ERR_CACHE_CLOSED' })
    await expect(opened.cache.clear()).rejects.toMatchObject({ code: 'ERR_CACHE_CLOSED' })
  })

  test('works where nothing is installed', async () => {
    await town.close()
    town = await open()
    opened = town.open()
    await opened.Person.cache.getAsyncOrNone({ id: 1 })
    await opened.cache.idle()
    await town.elsewhere("insert into people values (1, 'a', 'b', 'c')")
    expect(await opened.cache.verify(HASTY)).toMatchObject({ checked: 1, stale: 1, overdue: 0 })
  })

  test('clear forgets the models named, or all', async () => {
    await fillAll()
    await expect(opened.cache.clear(['pets' as 'people'])).rejects.toMatchObject({ code: 'ERR_OPTION' })
    await opened.cache.clear(['people'])
    expect(await opened.cache.verify(HASTY)).toMatchObject({ checked: 45 })
    await opened.cache.clear()
    expect(await opened.cache.verify(HASTY)).toMatchObject({ checked: 0 })
  })
})

describe('verify in another process than the one that filled', () => {
  let town: Town
  beforeEach(async () => {
    town = await openServers()
  })
  afterEach(() => town.close())

  test('finds values of every type equal', async () => {
    const { db } = town
    await sql`create table things (
      id int primary key, small int2, large int8, exact numeric, approx float8, flag bool, day date, at timestamptz,
      local timestamp, span interval, bytes bytea, doc jsonb, raw json, tags text[], numbers int[], net inet,
      pad char(5), word varchar(10), code uuid
    )`.execute(db)
    await sql`insert into things values
      (1, 1, 9007199254740993, 1.50, 0.1, true, '2024-02-29', '2024-02-29 12:00:00.123456+02', '2024-02-29 12:00',
        '1 year 2 days 03:04:05.678', '\\x00ff', '{"a": [1, null, {"b": "c"}]}', '[1, "x"]', '{a,NULL,"b c"}', '{1,2}',
        '10.0.0.1/8', 'ab', 'word', '00000000-0000-0000-0000-000000000001'),
      (2, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null),
      (3, -1, -1, 'NaN', 'NaN', false, 'infinity', '-infinity', 'infinity', '-1 day', '', '"text"', 'null', '{}', '{}',
        '::1', '', '', 'ffffffff-ffff-ffff-ffff-ffffffffffff'),
      (4, 0, 0, '-0', '-0', false, '0044-03-15 BC', '1970-01-01', '1970-01-01', '0', '\\x', '{}', '{}', '{{a,b},{c,d}}',
        '{}', '0.0.0.0', ' ', ' ', '00000000-0000-0000-0000-000000000000')`.execute(db)
    interface Things {
      things: { id: number; doc: unknown; flag: boolean | null; day: Date | null }
    }
    const open = () => {
      const redis = new Redis(inject('redisUrl'), { lazyConnect: true })
      const cache = createModelCache<Things>({
        db: db as never,
        redis,
        namespace: town.namespace,
        storeTimeout: '10s',
        relay: false,
      })
      const Thing = cache.model('things', { keyFields: [['id']], filterFields: [['flag'], ['day']] })
      return { cache, Thing }
    }
    const filler = open()
    await Promise.all(range(5).map((id) => filler.Thing.cache.getAsyncOrNone({ id })))
    await Promise.all([true, false, null].map((flag) => filler.Thing.cache.filterAsync({ flag })))
    await filler.Thing.cache.filterAsync({ day: new Date(2024, 1, 29) })
    await filler.cache.close()

    const verifier = open()
    expect(await verifier.cache.verify(HASTY)).toMatchObject({ checked: 9, stale: 0, inFlight: 0 })
    await sql`update things set doc = '{"a": [1, null, {"b": "d"}]}' where id = 1`.execute(db)
    expect(await verifier.cache.verify(HASTY)).toMatchObject({ checked: 9, stale: 3 })
    await verifier.cache.close()
  })

  test('rejects, when the store or the database cannot be reached', async () => {
    const nowhere = new Redis('redis://127.0.0.1:1', { lazyConnect: true })
    nowhere.on('error', () => {})
    const { cache } = town.open({ redis: nowhere })
    await expect(cache.verify()).rejects.toMatchObject({ code: 'ERR_STORE_UNAVAILABLE' })
  })
})

describe('an absence', () => {
  test('tells when it was filled, as a value does', () => {
    const [one, other] = [1, 2].map((now) => answerRecord(0, Buffer.from('abcd'), null, now))
    expect(one).not.toEqual(other)
  })
})
