import { currentScope, InvalidKeyError, OptionError, runInLoop, ScopeDimensionError } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Tenancy } from './tenants.ts'

afterAll(closeRedis)

/** Runs in a scope of a tenant. */
const as = <Result>(tenant: string | number | bigint, fn: () => Promise<Result>): Promise<Result> =>
  runInLoop(fn, { scopeBy: { tenant } })()

describe.each(Object.entries(PLACES))('scopeBy on %s', (_, open) => {
  let place: Tenancy
  let models: Tenancy['models']
  beforeAll(async () => {
    place = await open()
    models = place.models
  })
  afterAll(() => place.close())
  beforeEach(() =>
    place
      .elsewhere(`truncate orgs, teams, users, docs, members;
      insert into orgs values (7, 'seven'), (8, 'eight');
      insert into teams values (1, 7, 'red'), (2, 8, 'red');
      insert into users values (1, 7, 'a@x', 1, 'Ada'), (2, 8, 'a@x', 2, 'Alan'), (3, 7, 'c@x', 2, 'Cy'), (4, null, 'n@x', 1, 'No');
      insert into docs values (1, 7, 'admin', 1), (2, 7, 'user', 1), (3, 8, 'admin', 1)`)
      .then(settle),
  )
  afterEach(() => place.cache.idle())

  /** As the relay does. */
  const settle = async () => {
    while ((await insidesOf(place.cache).relay.turn(0)) > 0);
  }
  const nameOf = (row: { name: string } | null) => row?.name ?? null

  describe('a tenant', () => {
    test('finds its own rows alone, by whatever key', async () => {
      const { User, Team } = models
      const look = () =>
        Promise.all([
          User.cache.getAsyncOrNone({ id: 1 }).then(nameOf),
          User.cache.getAsyncOrNone({ id: 2 }).then(nameOf),
          User.cache.getAsyncOrNone({ id: 4 }).then(nameOf), // of nobody
          User.cache.getAsyncOrNone({ email: 'a@x' }).then(nameOf), // unique within a tenant
          User.cache.filterAsync({ team_id: 2 }).then((rows) => rows.map(nameOf)),
          Team.cache.filterAsync({ name: 'red' }).then((rows) => rows.map(({ id }) => id)),
        ])
      for (const from of ['SQL', 'the store']) {
        expect(await as(7, look), from).toEqual(['Ada', null, null, 'Ada', ['Cy'], [1]])
        expect(await as(8, look), from).toEqual([null, 'Alan', null, 'Alan', ['Alan'], [2]])
        await place.cache.idle()
      }
    })

    test('is one whatever the type of its value is, and shares entries with itself', async () => {
      const find = () => models.User.cache.getAsyncOrNone({ id: 1 }).then(nameOf)
      expect(await as(7, find)).toBe('Ada')
      await place.cache.idle()
      await expectTrips(place.cache, { mget: 1 }, () => as('7', find))
      await expectTrips(place.cache, { mget: 1 }, () => as(7n, find))
    })

    test('may name itself, and finds nothing by the name of another one', async () => {
      const { Org, User } = models
      expect(await as(7, () => Org.cache.getAsyncOrNone({ id: 7 }).then(nameOf))).toBe('seven')
      await expectTrips(place.cache, {}, () => as(8, () => Org.cache.getAsyncOrNone({ id: 7 })))
      expect(await as(8, () => Org.cache.getAsyncOrNone({ id: 7 }))).toBe(null)
      expect(await as(8, () => User.cache.filterAsync({ org_id: 7 }))).toEqual([])
      expect((await as(7, () => User.cache.filterAsync({ org_id: 7 }))).map(nameOf)).toEqual(['Ada', 'Cy'])
      // In one memo as well.
      const both = () => Promise.all([7, 8, 7].map((id) => Org.cache.getAsyncOrNone({ id }).then(nameOf)))
      expect(await as(7, both)).toEqual(['seven', null, 'seven'])
    })

    test('of two dimensions takes both', async () => {
      const ids = (scopeBy: Record<string, string | number>) =>
        runInLoop(() => models.Doc.cache.filterAsync({ owner_id: 1 }), { scopeBy })().then((rows) =>
          rows.map(({ id }) => id),
        )
      expect(await ids({ tenant: 7, role: 'admin' })).toEqual([1])
      expect(await ids({ tenant: 7, role: 'user' })).toEqual([2])
      expect(await ids({ tenant: 8, role: 'admin' })).toEqual([3])
      expect(await ids({ tenant: 8, role: 'user' })).toEqual([])
      await expect(ids({ tenant: 8 })).rejects.toMatchObject({ dimension: 'role' })
    })

    test('finds its own rows alone through custom caches, relations, and what is made of rows', async () => {
      const { Count, Exists, First, Emails, UsersOfTeam, MembersOfTeam, TeammatesOf, Owner, User, Team } =
        models
      await place.elsewhere('insert into members values (1, 1), (1, 2), (2, 3)')
      await settle()
      const look = async () => {
        const user = await User.cache.getAsyncOrNone({ id: 3 }, { with: ['team', 'org'] })
        const team = await Team.cache.getAsyncOrNone({ id: 1 }, { with: ['users', 'members'] })
        return {
          count: await Count(2).resolveAsync(),
          exists: await Exists('Alan').resolveAsync(),
          first: nameOf(await First('Alan').resolveAsync()),
          emails: (await Emails(2).resolveAsync())?.map(nameOf),
          ofTeam: (await UsersOfTeam(1).resolveAsync()).map(nameOf),
          members: (await MembersOfTeam(1).resolveAsync()).map(nameOf),
          mates: (await TeammatesOf(3).resolveAsync()).map(nameOf),
          owner: nameOf(await Owner.lookup({ kind: 'user', ref: 2 })),
          user: user && [user.name, nameOf(user.team), nameOf(user.org)],
          team: team && [team.users.map(nameOf), team.members.map(nameOf)],
        }
      }
      for (const from of ['SQL', 'the store']) {
        expect(await as(7, look), from).toEqual({
          ...{ count: 1, exists: false, first: null, emails: ['Cy'] },
          // Cy of 7 is in a team of 8, which is no team for 7.
          ...{ ofTeam: ['Ada'], members: ['Ada'], mates: [], owner: null },
          ...{ user: ['Cy', null, 'seven'], team: [['Ada'], ['Ada']] },
        })
        expect(await as(8, look), from).toEqual({
          ...{ count: 1, exists: true, first: 'Alan', emails: ['Alan'] },
          ...{ ofTeam: [], members: [], mates: [], owner: 'Alan', user: null, team: null },
        })
        await place.cache.idle()
      }
    })
  })

  describe('a missing dimension', () => {
    test('is an error at once, for those lookups alone', async () => {
      const { User, Country, Count } = models
      const look = () =>
        Promise.allSettled([
          User.cache.getAsync({ id: 1 }),
          User.cache.filterAsync({ team_id: 1 }),
          Count(1).resolveAsync(),
          User.cache.refresh({ id: 1 }),
          User.cache.keyOf({ id: 1 }),
          User.cache.invalidate({ id: 1 }),
          Country.cache.getAsync({ code: 'SE' }),
        ])
      for (const [wrapped, what] of [
        [look, 'only a scope gives'],
        [runInLoop(look), 'this scope does not give'],
        [runInLoop(look, { scopeBy: { role: 'admin', Tenant: 7 } }), 'this scope does not give'],
      ] as const) {
        const results = await wrapped()
        expect(results.pop()).toMatchObject({ value: { code: 'SE' } })
        for (const result of results) {
          expect(result).toMatchObject({
            reason: { code: 'ERR_SCOPE_DIMENSION', dimension: 'tenant', model: 'users' },
          })
          expect(String((result as PromiseRejectedResult).reason)).toContain(what)
        }
      }
      expect(() => User.cache.peek({ id: 1 })).toThrow(ScopeDimensionError)
      expect(() => User.cache.metaOf({ id: 1 })).toThrow(ScopeDimensionError)
      await expectTrips(place.cache, {}, () => User.cache.getAsync({ id: 1 }).catch(() => undefined))
    })

    test('is not what Object.prototype gives, and a value is a plain one', async () => {
      const { cache } = place
      expect(Object.getPrototypeOf(runInLoop(() => currentScope()?.scopeBy)())).toBe(null)
      for (const tenant of [undefined, null, '', Number.NaN, 1.5, {}, ['7'], true])
        expect(() => runInLoop(() => cache, { scopeBy: { tenant: tenant as never } }), `${tenant}`).toThrow(
          OptionError,
        )
      expect(() => runInLoop(() => cache, { scopeBy: 'tenant' as never })).toThrow(OptionError)
      await expect(as('seven', () => models.User.cache.getAsync({ id: 1 }))).rejects.toBeInstanceOf(
        InvalidKeyError,
      )
    })

    test('is refused where it would be declared wrongly', () => {
      const declare = (scopeBy: unknown) => () =>
        place.cache.model('countries', { keyFields: [['code']], scopeBy: scopeBy as never })
      for (const scopeBy of ['tenant', ['tenant'], { tenant: 1 }, { tenant: '' }, { a: 'code', b: 'code' }])
        expect(declare(scopeBy)).toThrow(OptionError)
      // From rows of all to rows of one tenant: whose would they be?
      expect(() =>
        place.cache.related({
          name: 'UsersOfMember',
          model: models.Member,
          keyFields: ['team_id'],
          path: [{ model: models.User, on: { user_id: 'id' } }],
        }),
      ).toThrow("leads to rows of 'users', which is scoped by 'tenant', and it is not")
    })
  })

  describe('nested scopes', () => {
    const user = (id: number) => models.User.cache.getAsyncOrNone({ id }).then(nameOf)

    test('inherit what they do not name, and name what they override', async () => {
      const seen = await as(7, async () => [
        await user(1),
        await runInLoop(() => user(1))(),
        await runInLoop(() => user(1), { scopeBy: { role: 'admin' } })(),
        await as(8, () => user(1)),
        await as(8, () => user(2)),
        await as(8, () => runInLoop(() => user(2))()),
        await user(2),
      ])
      expect(seen).toEqual(['Ada', 'Ada', 'Ada', null, 'Alan', 'Alan', null])
    })

    test('and transactions are of the tenant that they run in', async () => {
      const { cache } = place
      const seen = await as(7, () =>
        cache.transaction(async (trx) => {
          await trx.updateTable('users').set({ name: 'Eve' }).where('name', 'in', ['Ada', 'Alan']).execute()
          return [await user(1), await user(2), await as(8, () => user(2)), await as(8, () => user(1))]
        }),
      )
      expect(seen).toEqual(['Eve', null, 'Eve', null])
      await expect(cache.transaction(() => user(1))).rejects.toBeInstanceOf(ScopeDimensionError)
    })
  })

  describe('a write', () => {
    const look = () =>
      Promise.all([
        models.User.cache.getAsyncOrNone({ id: 1 }).then(nameOf),
        models.User.cache.filterAsync({ team_id: 1 }).then((rows) => rows.map(nameOf)),
        models.Count(1).resolveAsync(),
        models
          .UsersOfTeam(1)
          .resolveAsync()
          .then((rows) => rows.map(nameOf)),
        models
          .MembersOfTeam(1)
          .resolveAsync()
          .then((rows) => rows.map(nameOf)),
      ])
    const both = async () => [await as(7, look), await as(8, look)]

    test.each<[string, (statement: string) => Promise<unknown>]>([
      ['by psql, when the relay has been', (statement) => place.elsewhere(statement).then(settle)],
      ['through the dialect', (statement) => place.db.executeQuery({ ...compiled(statement) } as never)],
    ])('%s: a row that goes over to another tenant is gone here, and there at once', async (_, run) => {
      await place.elsewhere('insert into members values (1, 1)')
      await settle()
      await both()
      await place.cache.idle()
      expect(await both()).toEqual([
        ['Ada', ['Ada'], 1, ['Ada'], ['Ada']],
        [null, [], 0, [], []],
      ])
      await run("update users set org_id = 8, email = 'b@x' where id = 1")
      expect(await both()).toEqual([
        [null, [], 0, [], []],
        ['Ada', ['Ada'], 1, [], []],
      ])
      // The team goes after it.
      await run('update teams set org_id = 8 where id = 1')
      expect(await both()).toEqual([
        [null, [], 0, [], []],
        ['Ada', ['Ada'], 1, ['Ada'], ['Ada']],
      ])
      await run("insert into users values (9, 7, 'z@x', 1, 'Zoe')")
      expect(await both()).toEqual([
        [null, ['Zoe'], 1, [], []],
        ['Ada', ['Ada'], 1, ['Ada'], ['Ada']],
      ])
    })

    test('of one tenant leaves the entries of others', async () => {
      await both()
      await place.cache.idle()
      await place.elsewhere("update users set name = 'Ida' where id = 1").then(settle)
      await expectTrips(place.cache, { mget: 1 }, () => as(8, look))
    })
  })

  describe('by hand', () => {
    test('invalidate takes keys of the scope, and rows of whomever, in a scope or out of it', async () => {
      const { User } = models
      const find = () => User.cache.getAsyncOrNone({ id: 1 })
      const entry = async (tenant: number) =>
        (
          await insidesOf(place.cache).store.getMany([await as(tenant, () => User.cache.keyOf({ id: 1 }))])
        )[0] !== null
      const fill = async () => {
        for (const tenant of [7, 8]) await as(tenant, find)
        await place.cache.idle()
      }
      await fill()
      await as(8, () => User.cache.invalidate({ id: 1 }))
      expect([await entry(7), await entry(8)]).toEqual([true, false])
      await fill()
      await User.cache.invalidate((await as(7, find)) as NonNullable<Awaited<ReturnType<typeof find>>>)
      expect([await entry(7), await entry(8)]).toEqual([false, true])
      await fill()
      expect(await User.cache.invalidateWhere((users) => users.where('id', '=', 1))).toBe(1)
      expect([await entry(7), await entry(8)]).toEqual([false, true])
      await fill()
      await as(7, () => User.cache.refresh({ id: 1 }))
      await User.cache.clear()
      expect([await entry(7), await entry(8)]).toEqual([false, false])
    })

    test('prime puts nothing under the name of another tenant, verify finds nothing stale', async () => {
      const { Org, User } = models
      const primed = await as(7, async () => [
        Org.cache.prime({ id: 8 }, { id: 8, name: 'mine' }),
        Org.cache.prime({ id: 7 }, { id: 7, name: 'primed' }),
        Org.cache.peek({ id: 8 }),
        nameOf(Org.cache.peek({ id: 7 }) ?? null),
        User.cache.peek({ id: 1 }),
      ])
      expect(primed).toEqual([false, true, undefined, 'primed', undefined])
      await as(7, () => User.cache.filterAsync({ team_id: 1 }))
      await place.cache.idle()
      expect(await place.cache.verify({ settleMs: 0 })).toMatchObject({
        stale: 0,
        unchecked: { unverifiable: 0 },
      })
    })
  })
})

function compiled(statement: string) {
  return {
    sql: statement,
    parameters: [],
    query: { kind: 'RawNode', sqlFragments: [statement], parameters: [] },
  }
}
