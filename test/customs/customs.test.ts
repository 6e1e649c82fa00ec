import { doNotCache, LoadError, ModelError, OptionError, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Portal } from './portal.ts'

const COLD = { mget: 1, acquire: 1, fill: 1 }
const WARM = { mget: 1 }

afterAll(closeRedis)

function circular(): object {
  const value: { self?: object } = {}
  value.self = value
  return value
}

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

  test('querysets: rows in order, ids only, the first row; nothing found is cached too', async () => {
    const { UsersOfTeam, AvatarIds, FirstAvatar } = await customs()
    const read = () =>
      inScope(() =>
        Promise.all([
          UsersOfTeam(1).resolveAsync(),
          UsersOfTeam({ team_id: null }).resolveAsync(),
          UsersOfTeam(9).resolveAsync(),
          ...[2, 6].map((id) => AvatarIds(id).resolveAsync()),
          ...[2, 6].map((id) => FirstAvatar({ user_id: id }).resolveAsync()),
        ]),
      )
    const found = [[{ id: 1 }, { id: 2 }], [{ id: 6 }], [], [3, 4], [], { id: 3 }, null]
    // One statement for the rows of all teams, and one for the first avatars of all users.
    expect(await expectTrips(portal.cache, { ...COLD, select: 1, load: 2 }, read)).toMatchObject(found)
    expect(await expectTrips(portal.cache, WARM, read)).toMatchObject(found)
  })

  test('a key of several fields: an object in any order, or values in the order of the fields', async () => {
    const { cache, models } = portal
    const keys: unknown[] = []
    const Greeting = cache.instance({
      name: 'Greeting',
      model: models.User,
      keyFields: ['team_id', 'name'],
      loadOne: async (key) => {
        keys.push(key)
        return `${key.name} of ${key.team_id}`
      },
    })
    await cache.install()
    const read = () =>
      inScope(() =>
        Promise.all(
          [
            Greeting(1, 'Ada'),
            Greeting({ team_id: 1, name: 'Ada' }),
            Greeting({ name: 'Ada', team_id: 1 }),
            Greeting(null, '1'),
          ].map((query) => query.resolveAsync()),
        ),
      )
    const found = ['Ada of 1', 'Ada of 1', 'Ada of 1', '1 of null']
    expect(await expectTrips(cache, { ...COLD, load: 1 }, read)).toEqual(found)
    expect(keys).toEqual([
      { team_id: 1, name: 'Ada' },
      { team_id: null, name: '1' },
    ])
    expect(await expectTrips(cache, WARM, read)).toEqual(found)
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

  describe('a load that looks up what it needs', () => {
    /** The urls of a user's avatars, by a lookup of the model. */
    async function urls() {
      const { cache, models } = portal
      const Urls = cache.queryset({
        name: 'Urls',
        model: models.Avatar,
        keyFields: ['user_id'],
        loadOne: async ({ user_id }) => {
          const avatars = await models.Avatar.cache.filterAsync({ user_id })
          return avatars.map(({ url }) => url)
        },
      })
      await cache.install()
      return Urls
    }

    test('is given what the database has: a memo from before a write is never filled as what was written', async () => {
      const { models } = portal
      const Urls = await urls()
      await inScope(async () => {
        expect(await models.Avatar.cache.filterAsync({ user_id: 1 })).toMatchObject([{ id: 1 }, { id: 2 }])
        await portal.elsewhere('delete from avatars where id = 2')
        expect(await Urls(1).resolveAsync()).toEqual(['avatar 1'])
      })
      expect(await inScope(() => Urls(1).resolveAsync())).toEqual(['avatar 1'])
    })

    test('goes past the store, where a write may not have been cleared yet', async () => {
      const { models } = portal
      const Urls = await urls()
      await inScope(() => models.Avatar.cache.filterAsync({ user_id: 1 }))
      await portal.cache.idle()
      await portal.unseen('delete from avatars where id = 2')
      expect(await inScope(() => Urls(1).resolveAsync())).toEqual(['avatar 1'])
    })

    test('loads for each scope apart: what it throws fails nobody else', async () => {
      const { cache, models } = portal
      const calls: number[][] = []
      const Picky = cache.instance({
        name: 'Picky',
        model: models.User,
        keyFields: ['id'],
        async load(keys) {
          calls.push(keys.map(({ id }) => id))
          if (keys.some(({ id }) => id === 13)) throw new RangeError('no 13 here')
          return keys.map(({ id }) => `user ${id}`)
        },
      })
      await cache.install()
      const read = (...ids: number[]) => inScope(() => Promise.all(ids.map((id) => Picky(id).resolveAsync())))
      const [good, bad] = await expectTrips(cache, { ...COLD, load: 2 }, () =>
        Promise.allSettled([read(1, 2), read(3, 13)]),
      )
      expect(good).toMatchObject({ value: ['user 1', 'user 2'] })
      expect(bad).toMatchObject({ reason: { name: 'LoadError' } })
      expect(calls).toEqual([
        [1, 2],
        [3, 13],
      ])
    })

    test('is in the transaction that its lookup is in', async () => {
      const Urls = await urls()
      await portal.cache.transaction(async (trx) => {
        await trx.deleteFrom('avatars').where('id', '=', 2).execute()
        expect(await Urls(1).resolveAsync()).toEqual(['avatar 1'])
      })
    })
  })

  describe('a load that goes wrong', () => {
    type Loading =
      | { load: (keys: readonly { id: number }[]) => unknown }
      | { loadOne: (id: number) => unknown }

    /** A cache that loads as told, installed; keys 1 and 2 are looked up beside a row of the model. */
    async function odd(loading: Loading, loadTimeout = 10_000) {
      const { cache, models } = portal
      const common = { name: 'Odd', model: models.User, keyFields: ['id'], loadTimeout } as const
      const Odd = cache.instance(
        'load' in loading
          ? { ...common, load: loading.load as () => Promise<readonly string[]> }
          : { ...common, loadOne: async ({ id }) => loading.loadOne(id) as Promise<string> },
      )
      await cache.install()
      const read = async () => {
        const [one, two, row] = await inScope(() =>
          Promise.allSettled([
            Odd(1).resolveAsync(),
            Odd(2).resolveAsync(),
            models.User.cache.getAsync({ id: 3 }),
          ]),
        )
        expect(row).toMatchObject({ status: 'fulfilled', value: { id: 3 } })
        return [one, two].map((result) => (result.status === 'fulfilled' ? result.value : result.reason))
      }
      return { cache, read }
    }

    const loadError = (message: RegExp) => ({
      code: 'ERR_LOAD',
      cache: 'Odd',
      message: expect.stringMatching(message),
    })
    const never = () => new Promise<never>(() => {})
    const rejects = () => Promise.reject(new RangeError('mine'))
    const throws = () => {
      throw new RangeError('mine')
    }

    test.each<[string, () => unknown, RegExp]>([
      [
        'too few results',
        async () => ['one'],
        /^cache 'Odd': .* one result for each of its 2 keys, but gave 1 results/,
      ],
      [
        'too many results',
        async () => ['a', 'b', 'c'],
        /one result for each of its 2 keys, but gave 3 results/,
      ],
      ['no list', async () => 'one', /one result for each of its 2 keys, but gave "one"/],
      ['a rejection', rejects, /^cache 'Odd': mine$/],
      ['a throw', throws, /^cache 'Odd': mine$/],
      ['a promise that never settles', never, /^cache 'Odd': load did not end within 20 ms$/],
    ])(
      '%s: a typed error for its lookups alone, and the next ones ask again, at once',
      async (_, fails, message) => {
        let isFailing = true
        const { cache, read } = await odd(
          { load: async (keys) => (isFailing ? fails() : keys.map(({ id }) => `user ${id}`)) },
          fails === never ? 20 : undefined,
        )
        // Leases are given back, which is what is filled.
        const failed = await expectTrips(cache, { ...COLD, select: 1, load: 1 }, read)
        for (const error of failed) expect(error).toBeInstanceOf(LoadError)
        expect(failed).toMatchObject([loadError(message), loadError(message)])
        isFailing = false
        expect(await expectTrips(cache, { ...COLD, load: 1 }, read)).toEqual(['user 1', 'user 2'])
        expect(await expectTrips(cache, WARM, read)).toEqual(['user 1', 'user 2'])
      },
    )

    const cause = new RangeError('mine')
    test.each<[string, () => unknown, RegExp]>([
      ['an Error', () => cause, /^cache 'Odd': mine$/],
      ['a value that cannot be stored', () => () => 'a function', /value/],
      ['a value that cannot be stored, deep inside', () => ({ a: [{ b: Symbol('x') }] }), /value/],
      ['a value that contains itself', circular, /value/],
    ])('%s for one key: a typed error for that one alone', async (_, wrong, message) => {
      let isFailing = true
      const { cache, read } = await odd({
        load: async (keys) => keys.map(({ id }) => (isFailing && id === 1 ? wrong() : `user ${id}`)),
      })
      const [one, two] = await expectTrips(cache, { ...COLD, select: 1, load: 1 }, read)
      expect(one).toBeInstanceOf(LoadError)
      expect([one, two]).toMatchObject([loadError(message), 'user 2'])
      if (wrong() === cause) expect(one.cause).toBe(cause)
      isFailing = false
      // The other one is cached.
      expect(await expectTrips(cache, { ...COLD, load: 1 }, read)).toEqual(['user 1', 'user 2'])
      expect(await expectTrips(cache, WARM, read)).toEqual(['user 1', 'user 2'])
    })

    test.each<[string, () => unknown, RegExp]>([
      ['rejects', rejects, /^cache 'Odd': mine$/],
      ['throws', throws, /^cache 'Odd': mine$/],
      ['never settles', never, /^cache 'Odd': load did not end within 20 ms$/],
      ['gives what cannot be stored', () => () => 1, /value/],
    ])('loadOne that %s for one key: a typed error for that one alone', async (_, fails, message) => {
      let isFailing = true
      const { cache, read } = await odd(
        { loadOne: (id) => (isFailing && id === 1 ? fails() : `user ${id}`) },
        fails === never ? 20 : undefined,
      )
      const [one, two] = await expectTrips(cache, { ...COLD, select: 1, load: 1 }, read)
      expect(one).toBeInstanceOf(LoadError)
      expect([one, two]).toMatchObject([loadError(message), 'user 2'])
      isFailing = false
      expect(await expectTrips(cache, { ...COLD, load: 1 }, read)).toEqual(['user 1', 'user 2'])
      expect(await expectTrips(cache, WARM, read)).toEqual(['user 1', 'user 2'])
    })
  })

  test.each(['load', 'loadOne'])(
    'doNotCache answers, and keeps nothing but in the memo: %s',
    async (form) => {
      const { cache, models } = portal
      const made = (id: number) => (id === 1 ? doNotCache('once') : id === 2 ? doNotCache(null) : 'kept')
      const common = { name: 'Odd', model: models.User, keyFields: ['id'] } as const
      const Odd = cache.instance(
        form === 'load'
          ? { ...common, load: async (keys) => keys.map(({ id }) => made(id)) }
          : { ...common, loadOne: async ({ id }) => made(id) },
      )
      await cache.install()
      const read = () => Promise.all([1, 2, 3, 1].map((id) => Odd(id).resolveAsync()))
      const found = ['once', null, 'kept', 'once']
      await inScope(async () => {
        expect(await expectTrips(cache, { ...COLD, load: 1 }, read)).toEqual(found)
        expect(await expectTrips(cache, {}, read)).toEqual(found)
      })
      expect(await expectTrips(cache, { ...COLD, load: 1 }, () => inScope(read))).toEqual(found)
      await expectTrips(cache, WARM, () => inScope(() => Odd(3).resolveAsync()))
    },
  )

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
