import { doNotCache, LoadError, ModelError, OptionError, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Portal } from './portal.ts'

const COLD = { mget: 1, acquire: 1, fill: 1 }
const WARM = { mget: 1 }

afterAll(closeRedis)

describe.each(Object.entries(PLACES))('on %s', (_place, openPortal) => {
  let portal: Portal
  beforeEach(async () => {
    portal = await openPortal()
  })
  afterEach(() => portal.close())

  /** A custom cache of each kind, installed. `calls` are the keys that `load` was given, call by call. */
  async function customs() {
    const { cache, models } = portal
    const calls: (readonly { user_id: number }[])[] = []
    const declared = {
      PrimaryAvatar: cache.instance({
        name: 'PrimaryAvatar',
        model: models.Avatar,
        keyFields: ['user_id'],
        async load(keys, { db }) {
          calls.push(keys)
          const rows = await db
            .selectFrom('avatars')
            .selectAll()
            .where('is_primary', '=', true)
            .where(
              'user_id',
              'in',
              keys.map(({ user_id }) => user_id),
            )
            .execute()
          return keys.map(({ user_id }) => rows.find((row) => row.user_id === user_id) ?? null)
        },
      }),
      EventOnSlug: cache.instance({ name: 'EventOnSlug', model: models.Event, keyFields: ['slug'] }),
      UsersOfTeam: cache.queryset({ name: 'UsersOfTeam', model: models.User, keyFields: ['team_id'] }),
      AvatarIds: cache.queryset({
        name: 'AvatarIds',
        model: models.Avatar,
        keyFields: ['user_id'],
        loadOne: async ({ user_id }, { db }) =>
          (
            await db.selectFrom('avatars').select('id').where('user_id', '=', user_id).orderBy('id').execute()
          ).map(({ id }) => id),
      }),
      FirstAvatar: cache.queryset({
        name: 'FirstAvatar',
        model: models.Avatar,
        keyFields: ['user_id'],
        single: true,
      }),
      HasAvatar: cache.exists({ name: 'HasAvatar', model: models.Avatar, keyFields: ['user_id'] }),
      AvatarCount: cache.count({ name: 'AvatarCount', model: models.Avatar, keyFields: ['user_id'] }),
      MembersOfTeam: cache.count({ name: 'MembersOfTeam', model: models.User, keyFields: ['team_id'] }),
    }
    await cache.install()
    return { ...declared, calls }
  }

  const inScope = <Result>(fn: () => Promise<Result>) => runInLoop(fn)()

  test('an instance: what load makes of a key; that there is none is cached too', async () => {
    const { PrimaryAvatar, calls } = await customs()
    const read = () =>
      inScope(() => Promise.all([1, 2, 5].map((id) => PrimaryAvatar({ user_id: id }).resolveAsync())))
    const found = [{ id: 2, user_id: 1, url: 'avatar 2', is_primary: true }, { id: 4 }, null]
    expect(await expectTrips(portal.cache, { ...COLD, load: 1 }, read)).toMatchObject(found)
    expect(await expectTrips(portal.cache, WARM, read)).toMatchObject(found)
    expect(calls).toEqual([[{ user_id: 1 }, { user_id: 2 }, { user_id: 5 }]])
  })

  test('a key may be given by position', async () => {
    const { PrimaryAvatar, EventOnSlug } = await customs()
    const read = () =>
      Promise.all([PrimaryAvatar(1), PrimaryAvatar({ user_id: 1 })].map((q) => q.resolveAsync()))
    const [one, other] = await expectTrips(portal.cache, { ...COLD, load: 1 }, () => inScope(read))
    expect(one).toBe(other)
    expect(await EventOnSlug('event-2').resolveAsync()).toMatchObject({ id: 2 })
  })

  test('an instance without load is the row, and shares the entry of the model', async () => {
    const { EventOnSlug } = await customs()
    const { Event } = portal.models
    const read = () => EventOnSlug('event-1').resolveAsync()
    expect(await expectTrips(portal.cache, { ...COLD, select: 1 }, read)).toMatchObject({ id: 1 })
    await expectTrips(portal.cache, WARM, () => Event.cache.getAsync({ slug: 'event-1' }))
    expect(await EventOnSlug('none').resolveAsync()).toBeNull()
  })

  test('querysets: rows in order, ids only, the first row', async () => {
    const { UsersOfTeam, AvatarIds, FirstAvatar } = await customs()
    expect(await UsersOfTeam(1).resolveAsync()).toMatchObject([{ id: 1 }, { id: 2 }])
    expect(await UsersOfTeam({ team_id: null }).resolveAsync()).toMatchObject([{ id: 6 }])
    expect(await AvatarIds(2).resolveAsync()).toEqual([3, 4])
    expect(await AvatarIds(6).resolveAsync()).toEqual([])
    expect(await FirstAvatar(2).resolveAsync()).toMatchObject({ id: 3 })
    expect(await FirstAvatar(6).resolveAsync()).toBeNull()
  })

  test('exists and count: one GROUP BY for all that is missing', async () => {
    const { HasAvatar, AvatarCount, MembersOfTeam } = await customs()
    const read = () =>
      inScope(() =>
        Promise.all([
          ...[1, 5].map((id) => HasAvatar(id).resolveAsync()),
          ...[1, 5].map((id) => AvatarCount(id).resolveAsync()),
          ...[1, 3, null].map((id) => MembersOfTeam(id).resolveAsync()),
        ]),
      )
    const found = [true, false, 2, 0, 2, 1, 1]
    expect(await expectTrips(portal.cache, { ...COLD, load: 3 }, read)).toEqual(found)
    expect(await expectTrips(portal.cache, WARM, read)).toEqual(found)
  })

  test('all kinds, and lookups of models, are one wave', async () => {
    const { PrimaryAvatar, HasAvatar, AvatarCount, UsersOfTeam } = await customs()
    const { User } = portal.models
    const read = () =>
      inScope(() =>
        Promise.all([
          User.cache.getAsync({ id: 1 }),
          PrimaryAvatar(1).resolveAsync(),
          HasAvatar(1).resolveAsync(),
          AvatarCount(1).resolveAsync(),
          UsersOfTeam(1).resolveAsync(),
        ]),
      )
    const cold = await expectTrips(portal.cache, { ...COLD, select: 2, load: 3 }, read)
    expect(await expectTrips(portal.cache, WARM, read)).toEqual(cold)
  })

  test('writes through Kysely and by others invalidate every kind, for old and new key values', async () => {
    const { PrimaryAvatar, AvatarIds, HasAvatar, AvatarCount, FirstAvatar } = await customs()
    const read = (id: number) =>
      inScope(() =>
        Promise.all([
          PrimaryAvatar(id)
            .resolveAsync()
            .then((row) => row?.id ?? null),
          AvatarIds(id).resolveAsync(),
          HasAvatar(id).resolveAsync(),
          AvatarCount(id).resolveAsync(),
          FirstAvatar(id)
            .resolveAsync()
            .then((row) => row?.id ?? null),
        ]),
      )
    expect([await read(1), await read(5)]).toEqual([
      [2, [1, 2], true, 2, 1],
      [null, [], false, 0, null],
    ])
    await portal.db.updateTable('avatars').set({ user_id: 5 }).where('id', '=', 2).execute()
    expect([await read(1), await read(5)]).toEqual([
      [null, [1], true, 1, 1],
      [2, [2], true, 1, 2],
    ])
    await portal.elsewhere('delete from avatars where user_id = 5')
    await portal.elsewhere('update avatars set is_primary = true where id = 1')
    expect([await read(1), await read(5)]).toEqual([
      [1, [1], true, 1, 1],
      [null, [], false, 0, null],
    ])
    await portal.elsewhere('truncate avatars')
    expect(await read(1)).toEqual([null, [], false, 0, null])
  })

  test('inside cache.transaction, load gets the transaction, and sees what it wrote', async () => {
    const { PrimaryAvatar, AvatarCount } = await customs()
    expect(await PrimaryAvatar(5).resolveAsync()).toBeNull()
    await portal.cache.transaction(async (trx) => {
      await trx.insertInto('avatars').values({ user_id: 5, url: 'new', is_primary: true }).execute()
      expect(await PrimaryAvatar(5).resolveAsync()).toMatchObject({ url: 'new' })
      expect(await AvatarCount(5).resolveAsync()).toBe(1)
    })
    expect(await PrimaryAvatar(5).resolveAsync()).toMatchObject({ url: 'new' })
  })

  test('a mutated value shows nowhere else; the memo of a scope has one', async () => {
    const { AvatarIds } = await customs()
    await inScope(async () => {
      const ids = await AvatarIds(1).resolveAsync()
      ids?.push(99)
      expect(AvatarIds.peek({ user_id: 1 })).toBe(ids)
    })
    expect(AvatarIds.peek({ user_id: 1 })).toBeUndefined()
    expect(await AvatarIds(1).resolveAsync()).toEqual([1, 2])
  })

  test('invalidate forgets one key', async () => {
    const { AvatarIds } = await customs()
    await AvatarIds(1).resolveAsync()
    await portal.cache.idle()
    await AvatarIds.invalidate({ user_id: 1 })
    await expectTrips(portal.cache, { ...COLD, load: 1 }, () => AvatarIds(1).resolveAsync())
  })

  describe('a load that goes wrong', () => {
    /** A cache whose `load` does as told; keys 1 and 2 are looked up beside one of the model. */
    async function resultsOf(load: (keys: readonly { id: number }[]) => unknown, loadTimeout = 10_000) {
      const { cache, models } = portal
      const Odd = cache.instance({
        name: 'Odd',
        model: models.User,
        keyFields: ['id'],
        loadTimeout,
        load: load as () => Promise<readonly string[]>,
      })
      await cache.install()
      const read = () =>
        inScope(() =>
          Promise.allSettled([
            Odd(1).resolveAsync(),
            Odd(2).resolveAsync(),
            models.User.cache.getAsync({ id: 3 }),
          ]),
        )
      const results = await read()
      expect(results[2]).toMatchObject({ status: 'fulfilled', value: { id: 3 } })
      await cache.idle()
      return results
        .slice(0, 2)
        .map((result) => (result.status === 'fulfilled' ? result.value : result.reason))
    }

    test.each<[string, (keys: readonly { id: number }[]) => unknown, RegExp]>([
      [
        'too few results',
        async () => ['one'],
        /'Odd': load must return one result for each of its 2 keys, but gave 1 results/,
      ],
      ['no list', async () => 'one', /one result for each of its 2 keys, but gave "one"/],
      ['a rejection', () => Promise.reject(new RangeError('mine')), /^cache 'Odd': mine$/],
      [
        'a throw',
        () => {
          throw new RangeError('mine')
        },
        /^cache 'Odd': mine$/,
      ],
    ])('%s: a typed error for its lookups alone, and the next one asks again', async (_, load, message) => {
      let failing = true
      const [one, two] = await resultsOf((keys) =>
        failing ? load(keys) : keys.map(({ id }) => `user ${id}`),
      )
      failing = false
      for (const error of [one, two]) {
        expect(error).toBeInstanceOf(LoadError)
        expect(error).toMatchObject({
          code: 'ERR_LOAD',
          cache: 'Odd',
          message: expect.stringMatching(message),
        })
      }
    })

    test('an Error for one key: for that one alone', async () => {
      const cause = new RangeError('mine')
      const [one, two] = await resultsOf(async () => [cause, 'two'])
      expect(one).toMatchObject({ code: 'ERR_LOAD', message: "cache 'Odd': mine", cause })
      expect(two).toBe('two')
    })

    test('a promise that never settles: an error after loadTimeout', async () => {
      const [one, two] = await resultsOf(() => new Promise(() => {}), 20)
      expect([one, two]).toMatchObject([{ code: 'ERR_LOAD' }, { message: /did not end within 20 ms/ }])
    })

    test('a value that cannot be stored: an error for that one alone', async () => {
      const [one, two] = await resultsOf(async () => [() => 'a function', 'two'])
      expect(one).toMatchObject({ code: 'ERR_LOAD', message: expect.stringMatching(/value/) })
      expect(two).toBe('two')
    })
  })

  test('doNotCache answers, and keeps nothing', async () => {
    const { cache, models } = portal
    let loads = 0
    const Odd = cache.instance({
      name: 'Odd',
      model: models.User,
      keyFields: ['id'],
      load: async (keys) => {
        loads++
        return keys.map(({ id }) => (id === 1 ? doNotCache('once') : 'kept'))
      },
    })
    await cache.install()
    const read = () => inScope(() => Promise.all([Odd(1).resolveAsync(), Odd(2).resolveAsync()]))
    expect(await read()).toEqual(['once', 'kept'])
    await cache.idle()
    expect(await read()).toEqual(['once', 'kept'])
    expect(loads).toBe(2)
  })

  test('values of any kind come back as they were', async () => {
    const { cache, models } = portal
    const value = {
      at: new Date(0),
      big: 2n ** 70n,
      bytes: Buffer.from('x'),
      list: [1, null, 'a'],
      nested: { a: false },
    }
    const Any = cache.instance({
      name: 'Any',
      model: models.User,
      keyFields: ['id'],
      loadOne: async ({ id }) => (id === 1 ? value : id === 2 ? 0 : id === 3 ? '' : false),
    })
    await cache.install()
    const read = () => inScope(() => Promise.all([1, 2, 3, 4].map((id) => Any(id).resolveAsync())))
    const expected = [value, 0, '', false]
    expect(await expectTrips(cache, { ...COLD, load: 1 }, read)).toEqual(expected)
    expect(await expectTrips(cache, WARM, read)).toEqual(expected)
  })

  test('another version of the code makes another value: neither reads what the other stored', async () => {
    const declare = (version: number) => {
      const cache = portal.another()
      const User = cache.model('users', { keyFields: [['id']] })
      const Shout = cache.instance({
        name: 'Shout',
        model: User,
        keyFields: ['id'],
        version,
        loadOne: async ({ id }) => `version ${version} of ${id}`,
      })
      return { cache, read: async () => [await Shout(1).resolveAsync(), await cache.idle()][0] }
    }
    await portal.cache.install()
    const [old, next] = [declare(0), declare(1)]
    await old.cache.install()
    expect([await old.read(), await next.read(), await old.read(), await next.read()]).toEqual(
      [0, 1, 0, 1].map((version) => `version ${version} of 1`),
    )
  })
})

describe('a declaration', () => {
  let portal: Portal
  beforeEach(async () => {
    portal = await (PLACES['in-process store and PGlite'] as () => Promise<Portal>)()
    return () => portal.close()
  })

  test('that is wrong is refused at once, by name', () => {
    const { cache, models } = portal
    const good = { name: 'A', model: models.User, keyFields: ['id'] as const }
    const bad = (options: object) => () => cache.instance({ ...good, ...options } as typeof good)
    expect(bad({ name: '' })).toThrow(OptionError)
    expect(bad({ model: {} })).toThrow(/'A.model' must be a model of this cache/)
    expect(bad({ keyFields: [] })).toThrow(/'A.keyFields'/)
    expect(bad({ load: 1 })).toThrow(/'A.load' must be a function/)
    expect(bad({ load: async () => [], loadOne: async () => 1 })).toThrow(/'A.load'/)
    expect(bad({ loader: 1 })).toThrow(/'A.loader' must be left out/)
    expect(bad({ load: async () => [], ttl: 'soon' })).toThrow(/'A.ttl'/)
    expect(bad({ ttl: '1d' })).toThrow(/'A.ttl' must be left out without load/)
    expect(bad({})).not.toThrow()
    expect(bad({})).toThrow(ModelError)
  })

  test('of a field that is no column: its lookups say so', async () => {
    const { cache, models } = portal
    const A = cache.count({ name: 'A', model: models.User, keyFields: ['nope' as 'id'] })
    await expect(A(1).resolveAsync()).rejects.toThrow(/has no column 'nope'/)
  })

  test('wrong keys are refused', async () => {
    const { cache, models } = portal
    const A = cache.count({ name: 'A', model: models.User, keyFields: ['team_id', 'name'] })
    const rejects = (query: { resolveAsync(): Promise<unknown> }, problem: RegExp) =>
      expect(query.resolveAsync()).rejects.toThrow(problem)
    await rejects(A({ team_id: 1 } as never), /'name' must not be undefined/)
    await rejects(
      A({ team_id: 1, name: 'x', id: 1 } as never),
      /'id' is no key field of it; they are team_id, name/,
    )
    await rejects(
      (A as unknown as (...key: unknown[]) => ReturnType<typeof A>)(1, 'x', 2),
      /'argument 3' is no key field/,
    )
    await rejects(A('x' as never, 'x'), /'team_id'/)
  })

  test('that is not installed is told by ready()', async () => {
    const { cache, models } = portal
    await cache.install()
    await cache.ready()
    cache.count({ name: 'A', model: models.User, keyFields: ['name'] })
    await expect(cache.ready()).rejects.toThrow(/not all declared field lists are recorded/)
    await cache.install()
    await cache.ready()
  })
})
