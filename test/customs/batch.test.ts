import {
  batch,
  InvalidKeyError,
  NotFoundError,
  OptionError,
  openBatch,
  runInLoop,
  SourceError,
} from 'loadstone'
import { expectTrips, holdSteps } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Portal } from './portal.ts'

const COLD = { mget: 1, acquire: 1, fill: 1 }
const WARM = { mget: 1 }

const inScope = <Result>(fn: () => Promise<Result>) => runInLoop(fn)()

afterAll(closeRedis)

describe.each(Object.entries(PLACES))('on %s', (_place, openPortal) => {
  let portal: Portal
  let models: Portal['models']
  let AvatarCount: ReturnType<typeof countAvatars>
  const countAvatars = () =>
    portal.cache.count({ name: 'AvatarCount', model: models.Avatar, keyFields: ['user_id'] })
  beforeEach(async () => {
    portal = await openPortal()
    models = portal.models
    AvatarCount = countAvatars()
    await portal.cache.install()
  })
  afterEach(() => portal.close())

  const trips = <Result>(expected: Parameters<typeof expectTrips>[1], fn: () => Promise<Result>) =>
    expectTrips(portal.cache, expected, () => inScope(fn))

  describe('batch', () => {
    test('makes all queries in one wave, and answers by their names', async () => {
      const { User, Event } = models
      const read = () =>
        batch({
          user: User.cache.getQuery({ id: 1 }),
          team: User.cache.filterQuery({ team_id: 2 }),
          avatars: AvatarCount(1),
          events: ['event-1', 'event-2'].map((slug) => Event.cache.getQuery({ slug })),
          more: { of: [AvatarCount(5), User.cache.getQuery({ email: 'u1@x' })] },
        })
      const answers = await trips({ ...COLD, select: 4, load: 1 }, read)
      expect(answers).toMatchObject({
        user: { id: 1 },
        team: [{ id: 3 }, { id: 4 }],
        avatars: 2,
        events: [{ id: 1 }, { id: 2 }],
        more: { of: [0, { id: 1 }] },
      })
      expect(Object.keys(answers)).toEqual(['user', 'team', 'avatars', 'events', 'more'])
      expect(await trips(WARM, read)).toEqual(answers)
      expect(await batch([AvatarCount(1), AvatarCount(5)])).toEqual([2, 0])
      expect(await batch(AvatarCount(1))).toBe(2)
      expect(await trips({}, () => batch({ none: [], empty: {} }))).toEqual({ none: [], empty: {} })
    })

    test('with relations: theirs are one wave too', async () => {
      const { User } = models
      const read = () => batch([1, 3].map((id) => User.cache.getQuery({ id }, { with: ['team', 'avatars'] })))
      await trips({ mget: 2, acquire: 2, fill: 2, select: 3 }, read)
      expect(await trips({ mget: 2 }, read)).toMatchObject([{ team: { id: 1 } }, { team: { id: 2 } }])
    })

    test('with one missing: throws, or has null or the error in its place', async () => {
      const { User } = models
      const queries = () => ({
        user: User.cache.getQuery({ id: 1 }),
        missing: User.cache.getQuery({ id: 9 }),
        wrong: [User.cache.getQuery({ id: {} as never })],
        count: AvatarCount(9),
      })
      const one = { user: User.cache.getQuery({ id: 1 }), missing: User.cache.getQuery({ id: 9 }) }
      // That there is none is cached as well.
      const missing = { user: { id: 1 }, missing: null }
      const read = () => batch(one, { errors: 'null' })
      expect(await trips({ ...COLD, select: 1 }, read)).toMatchObject(missing)
      expect(await trips(WARM, read)).toMatchObject(missing)
      await expect(batch(one)).rejects.toThrow(NotFoundError)
      await expect(batch(one, { errors: 'throw' })).rejects.toThrow(NotFoundError)
      expect(await batch(queries(), { errors: 'null' })).toMatchObject({
        user: { id: 1 },
        missing: null,
        wrong: [null],
        count: 0,
      })
      const returned = await batch(queries(), { errors: 'return' })
      expect(returned).toMatchObject({ user: { id: 1 }, count: 0 })
      expect(returned.missing).toBeInstanceOf(NotFoundError)
      expect(returned.wrong[0]).toBeInstanceOf(InvalidKeyError)
    })

    test('in a transaction sees what was written there', async () => {
      const { User } = models
      await portal.cache.transaction(async (trx) => {
        await trx.updateTable('users').set({ name: 'new' }).where('id', '=', 1).execute()
        const queries = { user: User.cache.getQuery({ id: 1 }), avatars: AvatarCount(1) }
        expect(await batch(queries)).toMatchObject({ user: { name: 'new' }, avatars: 2 })
        expect(await batch(queries, { onlyCache: true })).toEqual({ user: undefined, avatars: undefined })
      })
    })
  })

  describe('only the cache', () => {
    const onlyCache = true

    test('answers what the store has, undefined where it has nothing, null where it knows there is none', async () => {
      const { User, Avatar } = models
      const read = () =>
        batch(
          {
            user: User.cache.getQuery({ id: 1 }),
            unknown: User.cache.getQuery({ id: 2 }),
            missing: User.cache.getQuery({ id: 9 }),
            nowhere: User.cache.getQuery({ id: 1e12 }),
            avatars: Avatar.cache.filterQuery({ user_id: 5 }),
            count: AvatarCount(1),
            noCount: AvatarCount(2),
          },
          { onlyCache },
        )
      const unknown = {
        user: undefined,
        unknown: undefined,
        missing: undefined,
        nowhere: null,
        avatars: undefined,
        count: undefined,
        noCount: undefined,
      }
      expect(await trips(WARM, read)).toEqual(unknown)
      expect(await trips(WARM, read)).toEqual(unknown)
      await batch([User.cache.getQuery({ id: 1 }), AvatarCount(1), Avatar.cache.filterQuery({ user_id: 5 })])
      await User.cache.getAsyncOrNone({ id: 9 })
      await portal.cache.idle()
      const known = { ...unknown, user: { id: 1 }, missing: null, avatars: [], count: 2 }
      expect(await trips(WARM, read)).toMatchObject(known)
      expect(await expectTrips(portal.cache, WARM, read)).toMatchObject(known)
    })

    test('answers what the memo has, without a trip', async () => {
      const { User } = models
      await inScope(async () => {
        const row = await User.cache.getAsync({ id: 1 })
        const none = await User.cache.getAsyncOrNone({ id: 9 })
        await portal.cache.idle()
        const query = () =>
          batch([User.cache.getQuery({ id: 1 }), User.cache.getQuery({ id: 9 })], { onlyCache })
        const [first, second] = await expectTrips(portal.cache, {}, query)
        expect(first).toBe(row)
        expect([none, second]).toEqual([null, null])
      })
    })

    test('leaves no trace in the memo, nor in the store', async () => {
      const { User } = models
      await inScope(async () => {
        const query = User.cache.getQuery({ id: 1 })
        expect(await query.resolveAsync({ onlyCache })).toBeUndefined()
        expect(User.cache.peek({ id: 1 })).toBeUndefined()
        const row = await expectTrips(portal.cache, { ...COLD, select: 1 }, () => query.resolveAsync())
        expect(row).toMatchObject({ id: 1 })
        expect(await query.resolveAsync({ onlyCache })).toBe(row)
      })
    })

    test.each([true, false])(
      'a lookup of the same key in its wave answers both; only the cache asked first: %s',
      async (first) => {
        const { User } = models
        const query = User.cache.getQuery({ id: 1 })
        const missing = User.cache.getQuery({ id: 9 })
        const look = async (only: boolean) =>
          only
            ? Promise.all([query, query, missing].map((each) => each.resolveAsync({ onlyCache })))
            : Promise.all([query.resolveAsync(), User.cache.getAsyncOrNone({ id: 9 })])
        const read = () => Promise.all([look(first), look(!first)])
        for (const within of [inScope, (fn: typeof read) => fn()]) {
          await User.cache.clear()
          const answers = await expectTrips(portal.cache, { ...COLD, select: 1 }, () => within(read))
          for (const each of answers) expect([each[0], each.at(-1)]).toMatchObject([{ id: 1 }, null])
        }
      },
    )

    test('a lookup that fails in its wave: not known', async () => {
      const { User } = models
      await User.cache.getAsyncOrNone({ id: 9 })
      await portal.cache.idle()
      await portal.elsewhere('alter table users rename to people')
      const query = User.cache.getQuery({ id: 1 })
      const unknown = { status: 'fulfilled', value: undefined }
      const failed = { status: 'rejected', reason: expect.any(SourceError) }
      const read = (...only: boolean[]) =>
        inScope(() =>
          Promise.allSettled(
            only.map((each) => (each ? query.resolveAsync({ onlyCache }) : query.resolveAsync())),
          ),
        )
      expect(await read(false, true)).toEqual([failed, unknown])
      expect(await read(true, false)).toEqual([unknown, failed])
    })

    test('where somebody else loads the key, it does not wait', async () => {
      const { User } = models
      await User.cache.getAsync({ id: 2 })
      await portal.cache.idle()
      const steps = holdSteps(portal.cache)
      const loading = inScope(() => User.cache.getAsync({ id: 1 }))
      await (await steps.next('getMany')).take()
      await (await steps.next('acquire')).take()
      const select = await steps.next('select')
      const asked = inScope(() => User.cache.getQuery({ id: 1 }).resolveAsync({ onlyCache }))
      await (await steps.next('getMany')).take()
      expect(await asked).toBeUndefined()
      await select.take()
      steps.release()
      expect(await loading).toMatchObject({ id: 1 })
    })

    test('with relations: undefined unless all are known', async () => {
      const { User } = models
      const query = User.cache.getQuery({ id: 1 }, { with: ['team', 'avatars'] })
      const read = () => query.resolveAsync({ onlyCache })
      expect(await trips(WARM, read)).toBeUndefined()
      await User.cache.getAsync({ id: 1 }, { with: ['avatars'] })
      expect(await trips({ mget: 2 }, read)).toBeUndefined()
      await query.resolveAsync()
      expect(await trips({ mget: 2 }, read)).toMatchObject({
        team: { id: 1 },
        avatars: [{ id: 1 }, { id: 2 }],
      })
      await User.cache.getAsyncOrNone({ id: 9 })
      await portal.cache.idle()
      expect(await User.cache.getQuery({ id: 9 }, { with: ['team'] }).resolveAsync({ onlyCache })).toBeNull()
    })
  })

  describe('openBatch', () => {
    test('queries pushed in one tick are one wave', async () => {
      const { User, Event } = models
      const read = async () => {
        const b = openBatch()
        const user = b.push(User.cache.getQuery({ id: 1 }))
        const count = b.push(AvatarCount(1))
        const events = ['event-1', 'event-2'].map((slug) => b.push(Event.cache.getQuery({ slug })))
        return [await user, await count, ...(await Promise.all(events))]
      }
      expect(await trips({ ...COLD, select: 2, load: 1 }, read)).toMatchObject([
        { id: 1 },
        2,
        { id: 1 },
        { id: 2 },
      ])
      await trips(WARM, read)
    })

    test('has the options of a batch; a rejection is told to who awaits it, however late', async () => {
      const { User } = models
      const missing = () => User.cache.getQuery({ id: 9 })
      const b = openBatch()
      const late = b.push(missing())
      void b.push(missing())
      await new Promise((resolve) => setTimeout(resolve, 50))
      await expect(late).rejects.toThrow(NotFoundError)
      expect(await openBatch({ errors: 'null' }).push(missing())).toBeNull()
      expect(await openBatch({ errors: 'return' }).push(missing())).toBeInstanceOf(NotFoundError)
      expect(await openBatch({ onlyCache: true }).push(User.cache.getQuery({ id: 5 }))).toBeUndefined()
    })
  })

  test('bad input is refused, by name', async () => {
    const query = models.User.cache.getQuery({ id: 1 })
    await expect(batch({ a: [query, 1] } as never)).rejects.toThrow(
      new OptionError('queries.a[1]', 'a query, or an object or a list of queries', 1),
    )
    await expect(batch(null as never)).rejects.toThrow(/option 'queries'/)
    await expect(batch(query, { errors: 'ignore' } as never)).rejects.toThrow(/'throw', 'null' or 'return'/)
    await expect(batch(query, { onlyCache: 1 } as never)).rejects.toThrow(/option 'onlyCache'/)
    await expect(batch(query, { only_cache: true } as never)).rejects.toThrow(/known are onlyCache, errors/)
    await expect(batch(query, 1 as never)).rejects.toThrow(OptionError)
    expect(() => openBatch({ errors: 1 } as never)).toThrow(OptionError)
    await expect(openBatch().push(1 as never)).rejects.toThrow(OptionError)
    await expect(query.resolveAsync({ onlycache: true } as never)).rejects.toThrow(OptionError)
    await expect(query.resolveAsync({ onlyCache: 1 } as never)).rejects.toThrow(OptionError)
    await expect(query.resolveAsync(null as never)).rejects.toThrow(OptionError)
  })
})
