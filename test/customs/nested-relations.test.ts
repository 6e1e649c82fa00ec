import { batch, ModelError, NotFoundError, NotFoundHttpError, OptionError, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Portal } from './portal.ts'

const WARM = { mget: 1 }
/** What waves cost that find nothing in the store, and as many statements. */
const cold = (waves: number, select: number) => ({ mget: waves, acquire: waves, fill: waves, select })

const inScope = <Result>(fn: () => Promise<Result>) => runInLoop(fn)()

afterAll(closeRedis)

describe.each(Object.entries(PLACES))('on %s', (_place, openPortal) => {
  let portal: Portal
  let models: Portal['models']
  beforeEach(async () => {
    portal = await openPortal()
    models = portal.models
    await portal.cache.install()
  })
  afterEach(() => portal.close())

  const trips = <Result>(expected: Parameters<typeof expectTrips>[1], fn: () => Promise<Result>) =>
    expectTrips(portal.cache, expected, () => inScope(fn))

  describe('an instance cache with relations', () => {
    const declare = () =>
      portal.cache.instance({
        name: 'EventWithOwner',
        model: models.Event,
        keyFields: ['slug'],
        with: ['tags', { owner: ['team'] }],
      })

    test('gives rows with them: entries of their models, in the same waves', async () => {
      const { Event, User } = models
      const EventWithOwner = declare()
      const read = () => EventWithOwner('event-1').resolveAsync()
      const found = { id: 1, owner: { id: 1, team: { name: 'team 1' } }, tags: [{ id: 1 }, { id: 2 }] }
      expect(await trips(cold(3, 5), read)).toMatchObject(found)
      expect(
        await trips({ mget: 3 }, () => EventWithOwner({ slug: 'event-1' }).resolveAsync()),
      ).toMatchObject(found)
      await trips(WARM, () =>
        Promise.all([Event.cache.getAsync({ slug: 'event-1' }), User.cache.getAsync({ id: 1 })]),
      )
      await portal.elsewhere("update users set name = 'renamed' where id = 1")
      expect(await inScope(read)).toMatchObject({ owner: { name: 'renamed' } })
      expect(await trips(cold(1, 1), () => EventWithOwner('nowhere').resolveAsync())).toBeNull()
    })

    test('is forgotten as the row of its model is', async () => {
      const EventWithOwner = declare()
      const key = { slug: 'event-2' }
      await inScope(() => EventWithOwner(key).resolveAsync())
      await portal.cache.idle()
      expect(await EventWithOwner.keyOf(key)).toBe(await models.Event.cache.keyOf(key))
      await EventWithOwner.invalidate(key)
      await trips(cold(1, 1), () => models.Event.cache.getAsync(key))
    })

    test('does not go with a load, nor with what is no relation', async () => {
      const common = { model: models.Event, keyFields: ['slug'] } as const
      const loading = { ...common, name: 'Loading', with: ['owner'], loadOne: async () => 1 }
      expect(() => portal.cache.instance(loading as never)).toThrow(OptionError)
      const Odd = portal.cache.instance({ ...common, name: 'Odd', with: ['owners' as 'owner'] })
      await expect(Odd('event-1').resolveAsync()).rejects.toMatchObject({
        name: 'OptionError',
        message: expect.stringContaining("'Odd.with'"),
      })
    })
  })

  describe('the relations of relations', () => {
    test('come in the wave of what tells their keys: never more waves than levels', async () => {
      const { Event } = models
      // Wave 1: the event. 2: its owner, and the avatars of that id. 3: the owner's team, and the users of that id.
      const read = () =>
        Event.cache.getAsync({ slug: 'event-1' }, { with: [{ owner: ['avatars', { team: ['users'] }] }] })
      const found = {
        id: 1,
        title: 'Event 1',
        owner: {
          id: 1,
          email: 'u1@x',
          avatars: [{ id: 1 }, { id: 2 }],
          team: { id: 1, name: 'team 1', users: [{ id: 1 }, { id: 2 }] },
        },
      }
      expect(await trips(cold(3, 5), read)).toMatchObject(found)
      expect(await trips({ mget: 3 }, read)).toMatchObject(found)
    })

    test('of a level are one wave, whatever the number of rows, relations and lookups', async () => {
      const { Event, User } = models
      const events = () =>
        Promise.all(
          [1, 2, 3, 4].map((id) =>
            Event.cache.getAsync({ id }, { with: ['tags', { owner: ['avatars', { team: ['users'] }] }] }),
          ),
        )
      // Wave 1: the events, and their links, whose keys those of the events tell. 2: tags, owners, avatars. 3: teams, users.
      await trips(cold(3, 7), events)
      const users = () =>
        User.cache.filterAsync({ team_id: 2 }, { with: [{ team: ['users'] }, { avatars: [] }] })
      await users()
      await portal.cache.idle()
      const [[one, , , four], ofTeam] = await trips({ mget: 3 }, () => Promise.all([events(), users()]))
      expect(one).toMatchObject({
        tags: [{ id: 1 }, { id: 2 }],
        owner: { avatars: [{ id: 1 }, { id: 2 }], team: { users: [{ id: 1 }, { id: 2 }] } },
      })
      expect(four).toMatchObject({ tags: [], owner: null })
      expect(ofTeam).toMatchObject([
        { id: 3, team: { id: 2, users: [{ id: 3 }, { id: 4 }] }, avatars: [{ id: 5 }, { id: 6 }] },
        { id: 4, team: { id: 2 }, avatars: [{ id: 7 }, { id: 8 }] },
      ])
    })

    test('are all in the wave of the row where its key tells theirs', async () => {
      const { User } = models
      const read = () => User.cache.filterAsync({ team_id: 1 }, { with: [{ team: ['users'] }] })
      await trips(cold(1, 2), read)
      expect(await trips(WARM, read)).toMatchObject([
        { id: 1, team: { users: [{ id: 1 }, { id: 2 }] } },
        { id: 2, team: { users: [{ id: 1 }, { id: 2 }] } },
      ])
    })

    test('of many rows: to many of many', async () => {
      const { Team } = models
      const read = () =>
        Promise.all([1, 2].map((id) => Team.cache.getAsync({ id }, { with: [{ users: ['avatars'] }] })))
      await trips(cold(2, 3), read)
      const teams = await trips({ mget: 2 }, read)
      expect(teams.map(({ users }) => users.map(({ avatars }) => avatars.map(({ id }) => id)))).toEqual([
        [
          [1, 2],
          [3, 4],
        ],
        [
          [5, 6],
          [7, 8],
        ],
      ])
    })

    test('through tables', async () => {
      const { Tag } = models
      // Wave 1: the tag and its links. 2: its events, and the links of these. 3: their tags and owners.
      const read = () => Tag.cache.getAsync({ id: 2 }, { with: [{ events: ['tags', 'owner'] }] })
      await trips(cold(3, 6), read)
      expect(await trips({ mget: 3 }, read)).toMatchObject({
        id: 2,
        events: [
          { id: 1, tags: [{ id: 1 }, { id: 2 }], owner: { id: 1 } },
          { id: 2, tags: [{ id: 2 }], owner: { id: 2 } },
        ],
      })
    })

    test('in circles', async () => {
      const { User } = models
      const read = () =>
        User.cache.getAsync({ id: 1 }, { with: [{ team: [{ users: [{ team: ['users'] }] }] }] })
      await trips(cold(2, 3), read)
      // Of the users' team, the memo knows everything.
      const user = await trips({ mget: 2 }, read)
      expect(user.team?.users.map(({ team }) => team?.users.length)).toEqual([2, 2])
    })

    test('are the entries of their own models, and new objects only where more was added', async () => {
      const { User, Team, Avatar, Event } = models
      await Event.cache.getAsync({ id: 1 }, { with: [{ owner: ['avatars', { team: ['users'] }] }] })
      await portal.cache.idle()
      await trips(WARM, () =>
        Promise.all([
          User.cache.getAsync({ id: 1 }),
          Avatar.cache.filterAsync({ user_id: 1 }),
          Team.cache.getAsync({ id: 1 }),
          User.cache.filterAsync({ team_id: 1 }),
        ]),
      )
      await inScope(async () => {
        const team = await Team.cache.getAsync({ id: 1 })
        const [one, two] = await User.cache.filterAsync({ team_id: 1 }, { with: [{ team: ['users'] }] })
        expect(one?.team).toBe(two?.team)
        expect(one?.team).not.toBe(team)
        expect(one?.team?.users).toBe(await User.cache.filterAsync({ team_id: 1 }))
        expect(await Team.cache.getAsync({ id: 1 })).toBe(team)
        expect(team).toEqual({ id: 1, name: 'team 1' })
      })
    })

    test('in every way of looking up', async () => {
      const { User } = models
      const options = { with: [{ team: ['users'] }] } as const
      const found = { id: 3, team: { id: 2, users: [{ id: 3 }, { id: 4 }] } }
      expect(await User.cache.getAsync({ id: 3 }, options)).toMatchObject(found)
      expect(await User.cache.getAsyncOrNone({ email: 'u3@x' }, options)).toMatchObject(found)
      expect(await User.cache.getAsyncOr404({ id: 3 }, options)).toMatchObject(found)
      expect((await User.cache.filterAsync({ team_id: 2 }, options))[0]).toMatchObject(found)
      const queries = {
        one: User.cache.getQuery({ id: 3 }, options),
        list: User.cache.filterQuery({ team_id: 2 }, options),
      }
      expect(await queries.one.resolveAsync()).toMatchObject(found)
      // What the one leads to in a second wave, the list has asked for in the first.
      const { one, list } = await trips(WARM, () => batch(queries))
      expect([one, list[0]]).toMatchObject([found, found])
      expect(await batch(queries, { onlyCache: true })).toEqual({ one, list })
      const user = await User.cache.getAsync({ id: 3 })
      expect(await User.cache.relation(user, 'team', { with: ['users'] })).toEqual(one.team)
    })

    test('of a row at hand', async () => {
      const { User } = models
      const users = await inScope(() => Promise.all([1, 2, 6].map((id) => User.cache.getAsync({ id }))))
      const read = () =>
        Promise.all(
          users.map((user) => User.cache.relation(user, 'team', { with: [{ users: ['avatars'] }] })),
        )
      await trips(cold(2, 3), read)
      const [one, two, none] = await trips({ mget: 2 }, read)
      expect(one).toMatchObject({ id: 1, users: [{ avatars: [{ id: 1 }, { id: 2 }] }, { id: 2 }] })
      expect([two, none]).toEqual([one, null])
    })

    test('of rows that lead to the same are asked for once, and shared', async () => {
      await portal.elsewhere("update users set name = 'same'")
      const cache = portal.another()
      const { User } = cache.link({
        Team: cache.model('teams', {
          keyFields: [['id']],
          relations: { users: { many: 'users', on: { id: 'team_id' } } },
        }),
        User: cache.model('users', {
          keyFields: [['id']],
          filterFields: [['name'], ['team_id']],
          relations: { team: { one: 'teams', on: { team_id: 'id' } } },
        }),
      })
      const read = () => User.cache.filterAsync({ name: 'same' }, { with: [{ team: ['users'] }] })
      const before = cache.stats().lookups
      const [one, two, three] = await expectTrips(cache, cold(2, 3), read)
      expect(one?.team).toMatchObject({ id: 1, users: [{ id: 1 }, { id: 2 }] })
      expect(two?.team).toBe(one?.team)
      expect(three?.team).not.toBe(one?.team)
      // The list, three teams, and the users of each.
      expect(cache.stats().lookups - before).toBe(7)
    })

    test('named twice: what both ask for; an empty list: none', async () => {
      const { Event } = models
      const read = () =>
        Event.cache.getAsync(
          { id: 1 },
          { with: ['owner', { owner: ['team'] }, { owner: [{ team: [] }, 'avatars'] }] },
        )
      const { owner } = await read()
      expect(owner).toMatchObject({ team: { id: 1 }, avatars: [{ id: 1 }, { id: 2 }] })
      expect(Object.keys(owner?.team ?? {})).toEqual(['id', 'name'])
    })

    test('outside of any scope as well', async () => {
      const { User } = models
      const read = () =>
        User.cache.filterAsync({ team_id: 1 }, { with: [{ team: [{ users: ['avatars'] }] }] })
      await expectTrips(portal.cache, cold(2, 3), read)
      const [one, two] = await expectTrips(portal.cache, { mget: 2 }, read)
      expect(one?.team?.users).toMatchObject([{ avatars: [{ id: 1 }, { id: 2 }] }, { id: 2 }])
      expect(two?.team).toBe(one?.team)
    })
  })

  describe('where there is nothing', () => {
    test('a row that is absent: told as ever, after one wave', async () => {
      const { User, Tag } = models
      const options = { with: [{ team: ['users'] }, { avatars: [] }] } as const
      await expect(User.cache.getAsync({ id: 9 }, options)).rejects.toThrow(NotFoundError)
      await expect(User.cache.getAsyncOr404({ id: 9 }, options)).rejects.toThrow(NotFoundHttpError)
      expect(await trips(WARM, () => User.cache.getAsyncOrNone({ id: 9 }, options))).toBeNull()
      expect(await User.cache.filterAsync({ team_id: 9 }, options)).toEqual([])
      // The links of a tag that is gone are asked for, as its key tells theirs; where they lead is not.
      await portal.unseen(
        'alter table event_tags drop constraint event_tags_tag_id_fkey; insert into event_tags values (1, 9)',
      )
      const gone = () => Tag.cache.getAsyncOrNone({ id: 9 }, { with: [{ events: ['owner'] }] })
      expect(await trips(cold(1, 2), gone)).toBeNull()
    })

    test('a foreign key that is NULL: null, and nothing behind it is asked for', async () => {
      const { User, Event } = models
      const noTeam = () => User.cache.getAsync({ id: 6 }, { with: [{ team: [{ users: ['avatars'] }] }] })
      expect((await trips(cold(1, 1), noTeam)).team).toBeNull()
      const noOwner = () =>
        Event.cache.getAsync({ id: 4 }, { with: [{ owner: ['team'] }, { tags: ['events'] }] })
      expect(await trips(cold(1, 2), noOwner)).toMatchObject({ owner: null, tags: [] })
    })

    test('only the cache: undefined until all levels are known', async () => {
      const { User } = models
      const query = User.cache.getQuery({ id: 1 }, { with: [{ team: ['users'] }] })
      const read = () => query.resolveAsync({ onlyCache: true })
      expect(await trips(WARM, read)).toBeUndefined()
      await User.cache.getAsync({ id: 1 }, { with: ['team'] })
      await portal.cache.idle()
      expect(await trips({ mget: 2 }, read)).toBeUndefined()
      await User.cache.filterAsync({ team_id: 1 })
      await portal.cache.idle()
      expect(await trips({ mget: 2 }, read)).toMatchObject({ team: { users: [{ id: 1 }, { id: 2 }] } })
    })
  })

  describe('after a write', () => {
    test('every level shows it, whoever wrote', async () => {
      const { Event } = models
      const read = () =>
        inScope(() =>
          Event.cache.getAsync(
            { id: 1 },
            { with: [{ owner: ['avatars', { team: [{ users: ['avatars'] }] }] }, { tags: ['events'] }] },
          ),
        )
      await read()
      await portal.db.updateTable('teams').set({ name: 'new' }).where('id', '=', 1).execute()
      await portal.elsewhere("update avatars set url = 'new' where id = 4")
      await portal.elsewhere('update users set team_id = 1 where id = 5')
      await portal.elsewhere('insert into event_tags values (4, 2)')
      const { owner, tags } = await read()
      expect(owner?.team?.name).toBe('new')
      expect(owner?.team?.users.map(({ id, avatars }) => [id, avatars.map(({ url }) => url)])).toEqual([
        [1, ['avatar 1', 'avatar 2']],
        [2, ['avatar 3', 'new']],
        [5, []],
      ])
      expect(tags.map(({ events }) => events.map(({ id }) => id))).toEqual([[1], [1, 2, 4]])
    })

    test('a transaction sees its own, at every level', async () => {
      const { Event } = models
      const read = () => Event.cache.getAsync({ id: 1 }, { with: [{ owner: [{ team: ['users'] }] }] })
      const before = await read()
      await portal.cache
        .transaction(async (trx) => {
          await trx.updateTable('users').set({ team_id: 3 }).where('id', '=', 1).execute()
          const { owner } = await read()
          expect(owner?.team).toMatchObject({ id: 3, users: [{ id: 1 }, { id: 5 }] })
          throw new Error('rolled back')
        })
        .catch(() => undefined)
      expect(await inScope(read)).toEqual(before)
    })
  })

  describe('what cannot work', () => {
    test.each<[string, unknown, string, string]>([
      ['an unknown relation', [{ team: ['nope'] }], 'with.team', "relations of model 'teams' (users)"],
      [
        'an unknown relation of many',
        [{ team: [{ users: [{ nope: [] }] }] }],
        'with.team.users',
        "relations of model 'users' (team, avatars)",
      ],
      ['no list', [{ team: 'users' }], 'with.team', 'a list of relations'],
      ['nothing', [{ team: undefined }], 'with.team', 'a list of relations'],
      ['a list in a list', [['team']], 'with', "relations of model 'users'"],
      ['what has no relations', [{ avatars: ['user'] }], 'with.avatars', '(none is declared)'],
    ])('%s is refused, by where it stands', async (_, list, option, wanted) => {
      const refused = models.User.cache.getAsync({ id: 1 }, { with: list as [] })
      await expect(refused).rejects.toThrow(OptionError)
      await expect(refused).rejects.toThrow(`option '${option}' must be`)
      await expect(refused).rejects.toThrow(wanted)
    })

    test('a relation of a related model that leads to none', async () => {
      const cache = portal.another()
      const User = cache.model('users', {
        keyFields: [['id']],
        relations: { team: { one: 'teams', on: { team_id: 'id' } } },
      })
      cache.model('teams', {
        keyFields: [['id']],
        relations: { events: { many: 'events', on: { id: 'id' } } },
      })
      const refused = User.cache.getAsync({ id: 1 }, { with: [{ team: ['events' as never] }] })
      await expect(refused).rejects.toThrow(ModelError)
      await expect(refused).rejects.toThrow(
        "model 'teams': relation 'events': table 'events' has no model in this cache",
      )
    })
  })

  describe('link', () => {
    test('returns the models it was given', () => {
      const { User, Team } = models
      const linked = portal.cache.link({ User, Team })
      expect(linked.User).toBe(User)
      expect(linked.Team).toBe(Team)
    })

    test('refuses what is no model of the cache, and relations that lead nowhere', () => {
      const cache = portal.another()
      const User = cache.model('users', {
        keyFields: [['id']],
        relations: { team: { one: 'teams', on: { team_id: 'id' } } },
      })
      expect(() => portal.cache.link({ User })).toThrow(/'link.User' must be a model of this cache/)
      expect(() => cache.link(null as never)).toThrow(OptionError)
      expect(() => cache.link({ User })).toThrow(
        "model 'users': relation 'team': table 'teams' has no model in this cache",
      )
      cache.model('teams', { keyFields: [['name']] })
      expect(() => cache.link({ User })).toThrow(ModelError)
    })
  })
})
