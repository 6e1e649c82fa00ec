import { currentScope, OptionError, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import type { RedisClient } from '../../src/stores/redis.ts'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Portal } from './portal.ts'

const COLD = { mget: 1, acquire: 1, fill: 1 }
const WARM = { mget: 1 }

afterAll(closeRedis)

const inScope = <Result>(fn: () => Promise<Result>) => runInLoop(fn)()

describe.each(Object.entries(PLACES))('on %s', (place, openPortal) => {
  const onRedis = place.startsWith('Redis')
  let portal: Portal
  beforeEach(async () => {
    portal = await openPortal()
    await portal.cache.install()
  })
  afterEach(() => portal.close())

  /** A cache as another process has it, with connections to Redis counted. */
  function process(
    options: Parameters<Portal['another']>[0] = {},
    ofModel: { enabled?: boolean; consistency?: 'strict' } = {},
    ofCustom: { enabled?: boolean } = {},
  ) {
    const { redis } = portal.options
    let connections = 0
    const counted: RedisClient | undefined = redis && {
      options: redis.options,
      duplicate(override) {
        connections++
        return redis.duplicate(override)
      },
    }
    const cache = portal.another({ ...options, redis: counted })
    const User = cache.model('users', { keyFields: [['id']], filterFields: [['team_id']], ...ofModel })
    const Event = cache.model('events', { keyFields: [['id']] })
    const Members = cache.count({ name: 'Members', model: User, keyFields: ['team_id'], ...ofCustom })
    const read = () =>
      Promise.all([
        User.cache.getAsync({ id: 1 }).then(({ name }) => name),
        User.cache.getAsync({ id: 2 }).then(({ name }) => name),
        User.cache.filterAsync({ team_id: 1 }).then(({ length }) => length),
        Event.cache.getAsyncOrNone({ id: 1 }).then((event) => event?.title),
        Members(1).resolveAsync(),
      ])
    return { cache, User, Event, Members, read, connections: () => connections }
  }

  const BEFORE = ['user 1', 'user 2', 2, 'Event 1', 2]
  const SQL_ALONE = { select: 3, load: 1 }

  test('a cache that is not enabled: SQL alone, batched and memoised, and no connection to the store', async () => {
    const on = process()
    await on.cache.install()
    await inScope(on.read)
    const { cache, User, read, connections } = process({ enabled: false })
    await cache.install()
    await cache.ready()
    await inScope(async () => {
      expect(await expectTrips(cache, SQL_ALONE, read)).toEqual(BEFORE)
      expect(await expectTrips(cache, {}, read)).toEqual(BEFORE)
      await expectTrips(cache, SQL_ALONE, () => inScope(read))
      expect(User.cache.prime({ id: 4 }, null)).toBe(true)
      expect(await User.cache.getAsyncOrNone({ id: 4 })).toBeNull()
    })
    // Outside of any scope twins are still one key, and rows nobody else's.
    const [one, other] = await expectTrips(cache, { select: 1 }, () =>
      Promise.all([User.cache.getAsync({ id: 1 }), User.cache.getAsync({ id: 1 })]),
    )
    expect(one).toEqual(other)
    expect(one).not.toBe(other)
    expect(cache.stats()).toMatchObject({ hits: 0, storeErrors: 0 })
    await cache.close()
    expect(connections()).toBe(0)
  })

  test.each(['default', 'strict'] as const)(
    'its writes go on to clear what others have in the store: %s',
    async (consistency) => {
      const strict = consistency === 'strict' ? { consistency } : {}
      const reader = process({}, strict)
      await reader.cache.install()
      expect(await inScope(reader.read)).toEqual(BEFORE)
      // Nobody else is told of commits while it writes.
      await reader.cache.close()
      await portal.cache.close()
      const off = process({ enabled: false }, strict)
      // PGlite has one connection, on which the tables cannot be asked about inside the transaction.
      await off.cache.ready()
      await off.cache.transaction(async (trx) => {
        await trx.updateTable('users').set({ name: 'Ada' }).where('id', '=', 1).execute()
        expect((await off.User.cache.getAsync({ id: 1 })).name).toBe('Ada')
      })
      await portal.db.updateTable('users').set({ team_id: 2 }).where('id', '=', 2).execute()
      await off.cache.idle()
      expect(off.connections()).toBe(onRedis ? 1 : 0)
      expect(off.cache.stats()).toMatchObject({ deferred: 0 })
      expect(off.cache.stats().cleared).toBeGreaterThan(0)
      const later = process({}, strict)
      expect(await inScope(later.read)).toEqual(['Ada', 'user 2', 1, 'Event 1', 1])
    },
  )

  test('what nobody else applies of the outbox, its relay does', async () => {
    const reader = process()
    await reader.cache.install()
    await inScope(reader.read)
    await reader.cache.close()
    await portal.cache.close()
    const off = process({ enabled: false, relay: { election: 50, poll: 5, grace: 0 } })
    await off.cache.ready()
    const { relay } = insidesOf(off.cache)
    expect(relay).toBeDefined()
    await new Promise((resolve) => setTimeout(resolve, 200))
    // Nothing to do, so nothing to connect to.
    expect(off.connections()).toBe(0)
    await portal.run("update users set name = 'Ada' where id = 1")
    await expect.poll(() => off.cache.stats().relayed, { timeout: 5000 }).toBe(1)
    expect(off.connections()).toBe(onRedis ? 1 : 0)
    const later = process()
    expect((await inScope(later.read))[0]).toBe('Ada')
  })

  test('forgetting by hand reaches the store too', async () => {
    const on = process()
    await on.cache.install()
    await inScope(on.read)
    await on.cache.idle()
    const off = process({ enabled: false })
    await off.User.cache.invalidate({ id: 1 })
    await expectTrips(off.cache, { select: 1 }, () => off.User.cache.refresh({ id: 2 }))
    await off.Members.invalidate({ team_id: 1 })
    if (!onRedis) return
    await expectTrips(on.cache, { ...COLD, select: 1, load: 1 }, () => inScope(on.read))
  })

  test('a model that is not enabled, and its custom caches: SQL, and the others as always', async () => {
    const { cache, User, Members, read } = process({}, { enabled: false })
    await cache.install()
    expect(await expectTrips(cache, { ...COLD, select: 3, load: 1 }, () => inScope(read))).toEqual(BEFORE)
    expect(await expectTrips(cache, { ...WARM, select: 2, load: 1 }, () => inScope(read))).toEqual(BEFORE)
    await inScope(async () => {
      const coming = await expectTrips(cache, { select: 1 }, () => User.cache.getAsync({ id: 1 }))
      expect(await expectTrips(cache, {}, () => User.cache.getAsync({ id: 1 }))).toBe(coming)
    })
    const { store } = insidesOf(cache)
    const keys = [await User.cache.keyOf({ id: 1 }), await Members.keyOf({ team_id: 1 })]
    expect(await store.getMany(keys)).toEqual([null, null])
    await portal.db.updateTable('users').set({ name: 'Ada' }).where('id', '=', 1).execute()
    expect((await inScope(read))[0]).toBe('Ada')
  })

  test('a custom cache by itself, either way round', async () => {
    const without = process({}, {}, { enabled: false })
    await without.cache.install()
    await inScope(without.read)
    await expectTrips(without.cache, { ...WARM, load: 1 }, () => inScope(without.read))
    const only = process({}, { enabled: false }, { enabled: true })
    await only.Members(1).resolveAsync()
    await only.cache.idle()
    await expectTrips(only.cache, WARM, () => only.Members(1).resolveAsync())
    // The switch of the cache is the last word.
    const off = process({ enabled: false }, { enabled: true }, { enabled: true })
    await expectTrips(off.cache, SQL_ALONE, () => inScope(off.read))
  })

  test('a model that is not enabled is invalidated for those who have it enabled', async () => {
    const reader = process()
    await reader.cache.install()
    await inScope(reader.read)
    await reader.cache.close()
    await portal.cache.close()
    const off = process({}, { enabled: false })
    await portal.db.updateTable('users').set({ name: 'Ada' }).where('id', '=', 1).execute()
    expect(off.cache.stats().cleared).toBeGreaterThan(0)
    expect((await inScope(process().read))[0]).toBe('Ada')
  })

  test('a scope without the store: SQL and its memo, nothing read there and nothing left', async () => {
    const { cache, read, User } = process()
    await cache.install()
    const bare = runInLoop(read, { store: false })
    expect(await expectTrips(cache, SQL_ALONE, bare)).toEqual(BEFORE)
    await expectTrips(cache, { ...COLD, ...SQL_ALONE }, () => inScope(read))
    await portal.unseen("update users set name = 'Ada'")
    expect((await expectTrips(cache, WARM, () => inScope(read)))[0]).toBe('user 1')
    expect((await expectTrips(cache, SQL_ALONE, bare))[0]).toBe('Ada')
    await runInLoop(
      async () => {
        await expectTrips(cache, { select: 1 }, () => User.cache.getAsync({ id: 1 }))
        await expectTrips(cache, {}, () => User.cache.getAsync({ id: 1 }))
        // Writes still clear what others have.
        await portal.db.updateTable('users').set({ name: 'Grace' }).where('id', '=', 1).execute()
        expect((await User.cache.getAsync({ id: 1 })).name).toBe('Grace')
      },
      { store: false },
    )()
    expect((await inScope(read))[0]).toBe('Grace')
  })

  test('a scope inside does without as well, unless it says otherwise', async () => {
    const { cache, User } = process()
    await cache.install()
    const get = () => User.cache.getAsync({ id: 1 })
    await inScope(get)
    await expectTrips(
      cache,
      { select: 1 },
      runInLoop(() => runInLoop(get)(), { store: false }),
    )
    await expectTrips(
      cache,
      WARM,
      runInLoop(() => runInLoop(get, { store: true })(), { store: false }),
    )
    await expectTrips(
      cache,
      WARM,
      runInLoop(() => runInLoop(get)(), { store: undefined }),
    )
  })
})

test('options that are none are refused by name', async () => {
  const portal = await (PLACES['in-process store and PGlite'] as () => Promise<Portal>)()
  try {
    const { cache, models } = portal
    const no = 0 as unknown as boolean
    expect(() => portal.another({ enabled: no })).toThrow(/'enabled' must be true or false, but is 0/)
    expect(() => portal.another().model('users', { keyFields: [['id']], enabled: no })).toThrow(
      /'users.enabled' must be true or false/,
    )
    expect(() => cache.count({ name: 'A', model: models.User, keyFields: ['id'], enabled: no })).toThrow(
      /'A.enabled' must be true or false/,
    )
    expect(() =>
      cache.instance({ name: 'B', model: models.User, keyFields: ['id'], enabled: false }),
    ).toThrow(/'B.enabled' must be left out without load/)
    expect(() => runInLoop(() => currentScope(), { store: no })).toThrow(OptionError)
    expect(() => runInLoop(() => currentScope(), { cache: false } as object)).toThrow(/'runInLoop.cache'/)
  } finally {
    await portal.close()
  }
})
