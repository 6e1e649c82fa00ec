import { AsyncResource } from 'node:async_hooks'
import { CamelCasePlugin, sql } from 'kysely'
import {
  type Cache,
  CacheClosedError,
  InvalidKeyError,
  NotFoundError,
  OptionError,
  resetScope,
  runInLoop,
  ShapeNotDeclaredError,
  SourceError,
  StoreUnavailableError,
  TransactionUseError,
} from 'loadstone'
import { expectTrips, holdSteps } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Portal } from './portal.ts'

const COLD = { mget: 1, acquire: 1, fill: 1 }
const WARM = { mget: 1 }

afterAll(closeRedis)

interface OddTable {
  a: string | null
  at: Date
  day: Date
  bytes: Buffer
  n: string
  flag: boolean
}

interface CamelTables {
  eventTags: { eventId: number; tagId: number }
}

const inScope = <Result>(fn: () => Promise<Result>) => runInLoop(fn)()

describe.each(Object.entries(PLACES))('on %s', (_place, openPortal) => {
  let portal: Portal
  beforeEach(async () => {
    portal = await openPortal()
  })
  afterEach(() => portal.close())

  /** A custom cache of names, installed. */
  async function names() {
    const { cache, models } = portal
    const Names = cache.queryset({
      name: 'Names',
      model: models.User,
      keyFields: ['team_id'],
      loadOne: async ({ team_id }, { db }) =>
        (
          await db
            .selectFrom('users')
            .select('name')
            .where('team_id', 'is not distinct from', team_id)
            .execute()
        ).map(({ name }) => name),
    })
    await cache.install()
    return Names
  }

  const unseen = (statement: string) => portal.unseen(statement)

  const recordAt = async (key: string) => (await insidesOf(portal.cache).store.getMany([key]))[0]

  describe('keyOf', () => {
    test('is the key under which a lookup is cached', async () => {
      const Names = await names()
      const { User } = portal.models
      await User.cache.getAsync({ id: 1 })
      await User.cache.filterAsync({ team_id: null })
      await Names(1).resolveAsync()
      await portal.cache.idle()
      const keys = [
        await User.cache.keyOf({ id: 1 }),
        await User.cache.keyOf({ team_id: null }),
        await Names.keyOf({ team_id: 1 }),
      ]
      expect(new Set(keys).size).toBe(3)
      for (const key of keys) expect(await recordAt(key)).toBeInstanceOf(Buffer)
      expect(await User.cache.keyOf({ id: 2 })).toBe(keys[0]?.replace(/1$/, '2'))
      expect(await recordAt(await User.cache.keyOf({ id: 2 }))).toBeNull()
    })

    test('describes the table first, where nothing has been looked up yet', async () => {
      const another = portal.another()
      const User = another.model('users', { keyFields: [['id']] })
      expect(await User.cache.keyOf({ id: 1 })).toBe(await portal.models.User.cache.keyOf({ id: 1 }))
    })

    test('rejects what is no key, and what is never cached', async () => {
      const Names = await names()
      const { User } = portal.models
      await expect(User.cache.keyOf({ name: 'x' } as never)).rejects.toThrow(ShapeNotDeclaredError)
      await expect(User.cache.keyOf({ id: undefined as never })).rejects.toThrow(InvalidKeyError)
      await expect(User.cache.keyOf({ id: Number.NaN })).rejects.toThrow(InvalidKeyError)
      await expect(User.cache.keyOf({ id: 4.2 })).rejects.toThrow(/no row can have/)
      await expect(Names.keyOf({} as never)).rejects.toThrow(InvalidKeyError)
      await portal.cache.close()
      await expect(User.cache.keyOf({ id: 1 })).rejects.toThrow(CacheClosedError)
    })
  })

  describe('refresh', () => {
    test('forgets what nobody else has, and resolves to what is there now', async () => {
      const Names = await names()
      const { User } = portal.models
      const read = () =>
        inScope(async () => [
          (await User.cache.getAsync({ id: 1 })).name,
          (await User.cache.filterAsync({ team_id: 1 })).length,
          await Names(1).resolveAsync(),
        ])
      expect(await read()).toEqual(['user 1', 2, ['user 1', 'user 2']])
      await portal.cache.idle()
      await unseen("update users set name = 'Ada' where id = 1; update users set team_id = 2 where id = 2")
      expect(await read()).toEqual(['user 1', 2, ['user 1', 'user 2']])
      const { cache } = portal
      expect(
        await expectTrips(cache, { ...COLD, select: 1 }, () => User.cache.refresh({ id: 1 })),
      ).toMatchObject({ name: 'Ada' })
      expect(
        await expectTrips(cache, { ...COLD, select: 1 }, () => User.cache.refresh({ team_id: 1 })),
      ).toHaveLength(1)
      expect(await expectTrips(cache, { ...COLD, load: 1 }, () => Names.refresh({ team_id: 1 }))).toEqual([
        'Ada',
      ])
      expect(await read()).toEqual(['Ada', 1, ['Ada']])
    })

    test('takes the memo along', async () => {
      await names()
      const { User } = portal.models
      await inScope(async () => {
        const before = await User.cache.getAsync({ id: 1 })
        await unseen("update users set name = 'Ada' where id = 1")
        expect(await User.cache.getAsync({ id: 1 })).toBe(before)
        const fresh = await User.cache.refresh({ id: 1 })
        expect(fresh?.name).toBe('Ada')
        expect(await User.cache.getAsync({ id: 1 })).toBe(fresh)
      })
    })

    test('resolves to null, and no error, where there is nothing', async () => {
      const Names = await names()
      expect(await portal.models.User.cache.refresh({ id: 99 })).toBeNull()
      expect(await portal.models.User.cache.refresh({ id: 4.2 })).toBeNull()
      expect(await portal.models.User.cache.refresh({ team_id: 99 })).toEqual([])
      expect(await Names.refresh({ team_id: 99 })).toEqual([])
      await expect(portal.models.User.cache.refresh({ name: 'x' } as never)).rejects.toThrow(
        ShapeNotDeclaredError,
      )
      await expect(Names.refresh({ id: 1 } as never)).rejects.toThrow(InvalidKeyError)
    })

    test('is not answered by a load that has read before, nor does that one fill', async () => {
      await names()
      const { User } = portal.models
      const steps = holdSteps(portal.cache)
      const slow = inScope(() => User.cache.getAsync({ id: 1 }))
      await steps.take('getMany')
      await steps.take('acquire')
      const select = await steps.next('select')
      await select.take()
      const slowFill = await steps.next('fill')
      await unseen("update users set name = 'Ada' where id = 1")
      const refreshing = inScope(() => User.cache.refresh({ id: 1 }))
      await steps.take('getMany')
      await steps.take('acquire')
      await steps.take('select')
      expect((await refreshing)?.name).toBe('Ada')
      await slowFill.take()
      steps.release()
      expect((await slow).name).toBe('user 1')
      await portal.cache.idle()
      expect((await User.cache.getAsync({ id: 1 })).name).toBe('Ada')
    })

    test('rejects when the store cannot be told: others would go on with what it has', async () => {
      const Names = await names()
      const { User } = portal.models
      const { store } = insidesOf(portal.cache)
      const clear = store.clear.bind(store)
      store.clear = () => Promise.reject(new StoreUnavailableError('as told'))
      await expect(User.cache.refresh({ id: 1 })).rejects.toThrow(StoreUnavailableError)
      await expect(Names.refresh({ team_id: 1 })).rejects.toThrow(StoreUnavailableError)
      await expect(User.cache.invalidateWhere((users) => users.where('id', '=', 1))).rejects.toThrow(
        StoreUnavailableError,
      )
      store.clear = clear
      expect(await User.cache.refresh({ id: 1 })).toMatchObject({ id: 1 })
    })

    test('inside cache.transaction reads through it, and fills nothing', async () => {
      await names()
      const { User } = portal.models
      await portal.cache.transaction(async (trx) => {
        await trx.updateTable('users').set({ name: 'Ada' }).where('id', '=', 1).execute()
        const fresh = await expectTrips(portal.cache, { select: 1 }, () => User.cache.refresh({ id: 1 }))
        expect(fresh?.name).toBe('Ada')
      })
      await expectTrips(portal.cache, { ...COLD, select: 1 }, () => User.cache.getAsync({ id: 1 }))
    })
  })

  describe('prime', () => {
    const mine = { id: 1, email: 'mine', team_id: null, name: 'mine' }

    test('is what the scope knows from then on, and nobody else', async () => {
      const Names = await names()
      const { cache, models } = portal
      const { User } = models
      await inScope(async () => {
        await expectTrips(cache, {}, async () => {
          expect(User.cache.prime({ id: 1 }, mine)).toBe(true)
          expect(User.cache.prime({ id: 2 }, null)).toBe(true)
          expect(User.cache.prime({ team_id: 1 }, [mine])).toBe(true)
          expect(Names.prime({ team_id: 1 }, ['mine'])).toBe(true)
          expect(await User.cache.getAsync({ id: 1 })).toBe(mine)
          expect(User.cache.peek({ id: 1 })).toBe(mine)
          expect(await User.cache.getAsyncOrNone({ id: 2 })).toBeNull()
          await expect(User.cache.getAsync({ id: 2 })).rejects.toThrow(NotFoundError)
          expect(await User.cache.filterAsync({ team_id: 1 })).toEqual([mine])
          expect(await Names(1).resolveAsync()).toEqual(['mine'])
        })
        expect((await inScope(() => User.cache.getAsync({ id: 1 }))).name).toBe('user 1')
      })
      // Not in the store either: what the last lookup has loaded is the first that it holds.
      await cache.idle()
      for (const key of [await User.cache.keyOf({ id: 2 }), await Names.keyOf({ team_id: 1 })])
        expect(await recordAt(key)).toBeNull()
    })

    test('puts nothing over what is there, or on its way', async () => {
      const Names = await names()
      const { User } = portal.models
      await inScope(async () => {
        const coming = User.cache.getAsync({ id: 1 })
        expect(User.cache.prime({ id: 1 }, mine)).toBe(false)
        expect((await coming).name).toBe('user 1')
        expect(User.cache.prime({ id: 1 }, mine)).toBe(false)
        expect((await User.cache.getAsync({ id: 1 })).name).toBe('user 1')
        expect(Names.prime({ team_id: 2 }, ['first'])).toBe(true)
        expect(Names.prime({ team_id: 2 }, ['second'])).toBe(false)
        expect(await Names(2).resolveAsync()).toEqual(['first'])
      })
    })

    test('ends with a write in the scope, as everything in a memo does', async () => {
      await names()
      const { User } = portal.models
      await inScope(async () => {
        expect(User.cache.prime({ id: 1 }, mine)).toBe(true)
        await portal.db.updateTable('users').set({ name: 'Ada' }).where('id', '=', 1).execute()
        expect((await User.cache.getAsync({ id: 1 })).name).toBe('Ada')
        expect(User.cache.prime({ id: 2 }, null)).toBe(true)
        await User.cache.invalidate({ id: 2 })
        expect((await User.cache.getAsync({ id: 2 })).name).toBe('user 2')
      })
    })

    test('does nothing where there is no memo to put it into, or no key to be had yet', async () => {
      await names()
      const { User } = portal.models
      expect(User.cache.prime({ id: 1 }, mine)).toBe(false)
      await inScope(() =>
        portal.cache.transaction(async () => {
          expect(User.cache.prime({ id: 1 }, mine)).toBe(false)
          expect((await User.cache.getAsync({ id: 1 })).name).toBe('user 1')
        }),
      )
      const Unbound = portal.another().model('users', { keyFields: [['id']] })
      await inScope(async () => expect(Unbound.cache.prime({ id: 1 }, mine)).toBe(false))
    })

    test('throws for what is no key, or no value', async () => {
      const Names = await names()
      const { User } = portal.models
      await inScope(async () => {
        expect(() => User.cache.prime({ name: 'x' } as never, mine)).toThrow(ShapeNotDeclaredError)
        expect(() => User.cache.prime({ id: 1 }, [mine] as never)).toThrow(ShapeNotDeclaredError)
        expect(() => User.cache.prime({ id: 'x' as never }, mine)).toThrow(InvalidKeyError)
        expect(() => User.cache.prime({ id: 1 }, undefined as never)).toThrow(OptionError)
        expect(() => Names.prime({ team_id: 1 }, undefined as never)).toThrow(OptionError)
        expect(() => Names.prime({} as never, [])).toThrow(InvalidKeyError)
      })
    })
  })

  describe('invalidateWhere', () => {
    test('forgets the keys of every shape of the rows, and no others', async () => {
      const Names = await names()
      const { cache, models } = portal
      const { User } = models
      const read = () =>
        inScope(() =>
          Promise.all([
            User.cache.getAsync({ id: 1 }),
            User.cache.getAsync({ email: 'u2@x' }),
            User.cache.filterAsync({ team_id: 1 }),
            Names(1).resolveAsync(),
            User.cache.getAsync({ id: 3 }),
            User.cache.filterAsync({ team_id: 2 }),
            Names(2).resolveAsync(),
          ]),
        )
      await read()
      await cache.idle()
      await unseen("update users set name = 'new'")
      expect(await User.cache.invalidateWhere((users) => users.where('team_id', '=', 1))).toBe(2)
      const now = await expectTrips(cache, { ...COLD, select: 3, load: 1 }, read)
      expect(now).toMatchObject([
        { name: 'new' },
        { name: 'new' },
        [{ name: 'new' }, { name: 'new' }],
        ['new', 'new'],
        { name: 'user 3' },
        [{ name: 'user 3' }, { name: 'user 4' }],
        ['user 3', 'user 4'],
      ])
    })

    test('takes conditions of any form: raw ones, NULLs, subqueries, none that holds', async () => {
      await names()
      const { User } = portal.models
      const count = User.cache.invalidateWhere.bind(User.cache)
      expect(await count((users) => users.where(sql<boolean>`id = 1 or id = 2`))).toBe(2)
      expect(await count((users) => users.where('team_id', 'is', null).where('id', '>', 3))).toBe(1)
      expect(
        await count((users) =>
          users.where('users.team_id', 'in', (eb) =>
            eb.selectFrom('teams').select('id').where('name', '=', 'team 2'),
          ),
        ),
      ).toBe(2)
      expect(await count((users) => users.where('id', '<', 0))).toBe(0)
    })

    test('is seen by the memo of the scope', async () => {
      await names()
      const { User } = portal.models
      await inScope(async () => {
        await User.cache.getAsync({ id: 1 })
        await unseen("update users set name = 'new'")
        await User.cache.invalidateWhere((users) => users.where('id', '=', 1))
        expect((await User.cache.getAsync({ id: 1 })).name).toBe('new')
      })
    })

    test('inside cache.transaction selects what that one sees', async () => {
      await names()
      const { User } = portal.models
      await portal.cache.transaction(async (trx) => {
        await trx.updateTable('users').set({ name: 'moved' }).where('team_id', '=', 1).execute()
        expect(await User.cache.invalidateWhere((users) => users.where('name', '=', 'moved'))).toBe(2)
      })
      let late = () => Promise.resolve(0)
      await portal.cache.transaction(async () => {
        late = AsyncResource.bind(() => User.cache.invalidateWhere((users) => users.where('id', '=', 1)))
      })
      await expect(late()).rejects.toThrow(TransactionUseError)
    })

    test('refuses queries with more, or less, than a where; SQL that fails is a SourceError', async () => {
      await names()
      const { User } = portal.models
      await expect(User.cache.invalidateWhere((users) => users)).rejects.toThrow(
        /'users.invalidateWhere' must be a function.*clear\(\) forgets all rows.*but is "none"/,
      )
      await expect(User.cache.invalidateWhere((users) => users.where('id', '=', 1).limit(1))).rejects.toThrow(
        /one with limit/,
      )
      await expect(User.cache.invalidateWhere(() => undefined as never)).rejects.toThrow(OptionError)
      await expect(
        User.cache.invalidateWhere((users) => users.where('nope' as 'id', '=', 1)),
      ).rejects.toThrow(SourceError)
    })

    test('goes through plugins as every query does', async () => {
      await names()
      const db = portal.db.withPlugin(new CamelCasePlugin())
      const cache = portal.another({ db }) as unknown as Cache<CamelTables>
      const EventTag = cache.model('eventTags', {
        keyFields: [['eventId', 'tagId']],
        filterFields: [['tagId']],
      })
      const read = () => inScope(() => EventTag.cache.filterAsync({ tagId: 2 }))
      expect(await read()).toHaveLength(2)
      await cache.idle()
      expect(await EventTag.cache.invalidateWhere((tags) => tags.where('tagId', '=', 2))).toBe(2)
      await expectTrips(cache, { ...COLD, select: 1 }, read)
    })

    test('100,000 rows, in portions', async () => {
      await names()
      await unseen("insert into tags select i, 'many ' || i from generate_series(1001, 101000) i")
      const { cache, models } = portal
      const { Tag } = models
      const ids = [1001, 6000, 6001, 50_000, 101_000]
      const read = () => inScope(() => Promise.all(ids.map((id) => Tag.cache.getAsync({ id }))))
      await read()
      await cache.idle()
      const where = sql<boolean>`id > 1000 or id < 0`
      expect(await Tag.cache.invalidateWhere((tags) => tags.where(where))).toBe(100_000)
      await expectTrips(cache, { ...COLD, select: 1 }, read)
    }, 60_000)

    test('loses no row between portions, and no key: of several columns, of every type, with NULLs', async () => {
      await names()
      await portal.elsewhere(`
        create table odd (
          a text, at timestamptz, day date, bytes bytea, n numeric, flag boolean, unique (a, at)
        );
        insert into odd select case when i % 7 <> 0 then 'a' || i % 3 end,
          timestamptz '2024-01-01 00:00:00.123456+02' + i * interval '1 hour 1 microsecond',
          date '2024-01-01' + i, decode(lpad(to_hex(i), 4, '0'), 'hex'), i / 10.0, i % 2 = 0
        from generate_series(1, 12000) i`)
      const cache = portal.another() as unknown as Cache<{ odd: OddTable }>
      const Odd = cache.model('odd', {
        keyFields: [['a', 'at'], ['bytes']],
        filterFields: [['day'], ['n'], ['flag', 'day'], ['at']],
      })
      const day = '2024-01-27' as unknown as Date
      // A JS Date would not tell its microseconds.
      const at = '2024-01-02 00:00:00.123482+00' as unknown as Date
      const read = () =>
        inScope(() =>
          Promise.all([
            Odd.cache.getAsync({ bytes: Buffer.from([0, 26]) }),
            Odd.cache.getAsync({ bytes: Buffer.from([0, 28]) }),
            Odd.cache.getAsync({ a: 'a2', at }),
            Odd.cache.filterAsync({ n: '2.60' }),
            Odd.cache.filterAsync({ day }),
            Odd.cache.filterAsync({ flag: true, day }),
            Odd.cache.filterAsync({ at }),
          ]),
        )
      const [row, withNull, ...others] = await read()
      expect([row.a, withNull.a]).toEqual(['a2', null])
      expect(others).toEqual([row, [row], [row], [row], [row]])
      await expectTrips(cache, WARM, read)
      expect(await Odd.cache.invalidateWhere((odd) => odd.where('n', '>', '0'))).toBe(12_000)
      await expectTrips(cache, { ...COLD, select: 6 }, read)
    }, 60_000)
  })

  test('resetScope: the scope begins anew, and lookups under way answer those who wait', async () => {
    const Names = await names()
    const { User } = portal.models
    resetScope()
    await inScope(async () => {
      const before = await User.cache.getAsync({ id: 1 })
      User.cache.prime({ id: 2 }, null)
      await Names(1).resolveAsync()
      const coming = User.cache.getAsync({ id: 3 })
      resetScope()
      expect([User.cache.peek({ id: 1 }), User.cache.peek({ id: 2 }), Names.peek({ team_id: 1 })]).toEqual([
        undefined,
        undefined,
        undefined,
      ])
      const again = User.cache.getAsync({ id: 3 })
      expect(again).not.toBe(coming)
      expect(await again).toEqual(await coming)
      await portal.cache.idle()
      const after = await expectTrips(portal.cache, WARM, () => User.cache.getAsync({ id: 1 }))
      expect(after).toEqual(before)
      expect(after).not.toBe(before)
    })
  })

  test('resetScope inside cache.transaction: its lookups go on through the transaction', async () => {
    await names()
    const { User } = portal.models
    await inScope(async () => {
      const before = await User.cache.getAsync({ id: 2 })
      await portal.cache.transaction(async (trx) => {
        await trx.updateTable('users').set({ name: 'Ada' }).where('id', '=', 1).execute()
        resetScope()
        expect((await User.cache.getAsync({ id: 1 })).name).toBe('Ada')
      })
      expect(await User.cache.getAsync({ id: 2 })).not.toBe(before)
    })
  })
})
