import {
  type Cache,
  InvalidKeyError,
  type ModelCache,
  ModelError,
  NotFoundError,
  NotFoundHttpError,
  OptionError,
  runInLoop,
} from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Portal, type PortalTables } from './portal.ts'

const WARM = { mget: 1 }
/** What a wave costs that finds nothing in the store, but for its statements. */
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

  describe('a row with its relations', () => {
    test('is a new object; what its key tells goes in the wave of the row, the rest in the next', async () => {
      const { User, Team, Avatar } = models
      const read = () => User.cache.getAsync({ id: 1 }, { with: ['team', 'avatars'] })
      const found = {
        id: 1,
        email: 'u1@x',
        team_id: 1,
        name: 'user 1',
        team: { id: 1, name: 'team 1' },
        avatars: [
          { id: 1, user_id: 1, url: 'avatar 1', is_primary: false },
          { id: 2, user_id: 1, url: 'avatar 2', is_primary: true },
        ],
      }
      expect(await trips(cold(2, 3), read)).toEqual(found)
      expect(await trips({ mget: 2 }, read)).toEqual(found)
      await trips(WARM, () => User.cache.getAsync({ id: 1 }, { with: ['avatars'] }))

      await inScope(async () => {
        const row = await User.cache.getAsync({ id: 1 })
        const { team, avatars, ...rest } = await read()
        expect(await User.cache.getAsync({ id: 1 })).toBe(row)
        expect(row).toEqual(rest)
        expect(team).toBe(await Team.cache.getAsync({ id: 1 }))
        expect(avatars).toBe(await Avatar.cache.filterAsync({ user_id: 1 }))
      })
    })

    test('shares the entries of lookups by the related models', async () => {
      const { User, Team, Avatar } = models
      await User.cache.getAsync({ id: 3 }, { with: ['team', 'avatars'] })
      await trips(WARM, async () =>
        Promise.all([Team.cache.getAsync({ id: 2 }), Avatar.cache.filterAsync({ user_id: 3 })]),
      )
    })

    test('all ways of looking it up', async () => {
      const { User } = models
      const team = { id: 2, name: 'team 2' }
      const options = { with: ['team'] } as const
      expect(await User.cache.getAsyncOr404({ id: 3 }, options)).toMatchObject({ id: 3, team })
      expect(await User.cache.getAsyncOrNone({ email: 'u3@x' }, options)).toMatchObject({ id: 3, team })
      expect(await User.cache.getQuery({ id: 3 }, options).resolveAsync()).toMatchObject({ id: 3, team })
      const list = [
        { id: 3, team },
        { id: 4, team },
      ]
      expect(await User.cache.filterAsync({ team_id: 2 }, options)).toMatchObject(list)
      expect(await User.cache.filterQuery({ team_id: 2 }, options).resolveAsync()).toMatchObject(list)
      expect(await User.cache.filterAsync({ team_id: 9 }, options)).toEqual([])
      expect(await User.cache.getAsync({ id: 3 }, { with: [] })).toEqual(await User.cache.getAsync({ id: 3 }))
    })

    test('that is not there: told as without them', async () => {
      const { User } = models
      const options = { with: ['team', 'avatars'] } as const
      await expect(User.cache.getAsync({ id: 9 }, options)).rejects.toThrow(NotFoundError)
      await expect(User.cache.getAsyncOr404({ id: 9 }, options)).rejects.toThrow(NotFoundHttpError)
      expect(await User.cache.getAsyncOrNone({ id: 9 }, options)).toBeNull()
      await expect(User.cache.getAsync({ id: 'x' as never }, options)).rejects.toThrow(InvalidKeyError)
    })

    test('a NULL leads nowhere, without a trip', async () => {
      const { User } = models
      await User.cache.getAsync({ id: 6 })
      const found = await trips(WARM, () => User.cache.getAsync({ id: 6 }, { with: ['team'] }))
      expect(found.team).toBeNull()
      expect(await trips({}, () => User.cache.relation(found, 'team'))).toBeNull()
      const { Team } = models
      const nobody = { id: null as never, name: '' }
      expect(await trips({}, () => Team.cache.relation(nobody, 'users'))).toEqual([])
    })

    test('relations of many rows are one wave', async () => {
      const { User, Event } = models
      const users = () =>
        Promise.all([1, 2, 3, 4, 5].map((id) => User.cache.getAsync({ id }, { with: ['team', 'avatars'] })))
      await trips(cold(2, 3), users)
      // The event; its owner and its links; its tags.
      const event = () => Event.cache.getAsync({ slug: 'event-1' }, { with: ['owner', 'tags'] })
      await trips({ mget: 3, acquire: 3, fill: 3, select: 3 }, event)
      const list = () => User.cache.filterAsync({ team_id: 1 }, { with: ['team', 'avatars'] })
      await list()
      const [ofUsers, ofEvent, ofList] = await trips({ mget: 3 }, () =>
        Promise.all([users(), event(), list()]),
      )
      expect(ofUsers.map(({ team }) => team?.id)).toEqual([1, 1, 2, 2, 3])
      expect(ofEvent).toMatchObject({ owner: { id: 1 }, tags: [{ id: 1 }, { id: 2 }] })
      expect(ofList.map(({ avatars }) => avatars.map(({ id }) => id))).toEqual([
        [1, 2],
        [3, 4],
      ])
    })

    test('what a filter tells goes in the wave of the list', async () => {
      const { User } = models
      const read = () => User.cache.filterAsync({ team_id: 1 }, { with: ['team'] })
      await trips(cold(1, 2), read)
      const [first, second] = await trips(WARM, read)
      expect(first?.team).toEqual({ id: 1, name: 'team 1' })
      expect(second?.team).toBe(first?.team)
    })

    test('a key in another form than the row has it leads to the same relation', async () => {
      const { User } = models
      const read = () => User.cache.getAsync({ id: 1n as never }, { with: ['avatars'] })
      await trips(cold(1, 2), read)
      expect((await trips(WARM, read)).avatars).toHaveLength(2)
    })

    test('a key in a form that only its own column holds equal leads where the row leads', async () => {
      await portal.elsewhere(`
        create table rooms (code char(3) primary key);
        create table doors (id int primary key, room text not null);
        insert into rooms values ('a');
        insert into doors values (1, 'a'), (2, 'a  ')`)
      type Tables = PortalTables & { rooms: { code: string }; doors: { id: number; room: string } }
      const cache = portal.another() as unknown as Cache<Tables>
      const Room = cache.model('rooms', {
        keyFields: [['code']],
        relations: { doors: { many: 'doors', on: { code: 'room' } } },
      })
      cache.model('doors', { keyFields: [['id']], filterFields: [['room']] })
      const room = await inScope(() => Room.cache.getAsync({ code: 'a' }, { with: ['doors'] }))
      expect(room).toEqual({ code: 'a  ', doors: [{ id: 2, room: 'a  ' }] })
      expect(await Room.cache.relation({ code: 'a  ' }, 'doors')).toEqual(room.doors)
    })

    test('out of scope as well', async () => {
      const { User } = models
      const read = () =>
        Promise.all([1, 1, 2].map((id) => User.cache.getAsync({ id }, { with: ['team', 'avatars'] })))
      await expectTrips(portal.cache, cold(2, 3), read)
      const [one, again, two] = await expectTrips(portal.cache, { mget: 2 }, read)
      expect(one).toEqual(again)
      expect(one?.team).not.toBe(two?.team)
    })

    test('in a transaction it sees what was written there', async () => {
      const { User, Event } = models
      const read = () => User.cache.getAsync({ id: 1 }, { with: ['team', 'avatars'] })
      await read()
      await portal.cache.transaction(async (trx) => {
        await trx.updateTable('users').set({ team_id: 3 }).where('id', '=', 1).execute()
        await trx.updateTable('teams').set({ name: 'new' }).where('id', '=', 3).execute()
        await trx.deleteFrom('avatars').where('id', '=', 1).execute()
        expect(await read()).toMatchObject({ team: { name: 'new' }, avatars: [{ id: 2 }] })
        await trx.insertInto('event_tags').values({ event_id: 1, tag_id: 4 }).execute()
        const { tags } = await Event.cache.getAsync({ id: 1 }, { with: ['tags'] })
        expect(tags.map(({ id }) => id)).toEqual([1, 2, 4])
      })
      expect(await read()).toMatchObject({ team: { name: 'new' }, avatars: [{ id: 2 }] })
    })
  })

  describe('relation(row, name)', () => {
    test('of many rows is one wave, and of rows with the same key one lookup', async () => {
      const { User } = models
      const users = await inScope(() => Promise.all([1, 2, 3, 6].map((id) => User.cache.getAsync({ id }))))
      const read = () => Promise.all(users.map((user) => User.cache.relation(user, 'team')))
      await trips(cold(1, 1), read)
      const [one, two, three, none] = await trips(WARM, read)
      expect([one?.id, three?.id, none]).toEqual([1, 2, null])
      expect(two).toBe(one)
      expect(await User.cache.relationQuery(users[0] as never, 'avatars').resolveAsync()).toHaveLength(2)
    })

    test('through a table', async () => {
      const { Event, Tag } = models
      const event = await Event.cache.getAsync({ id: 1 })
      const read = () => Event.cache.relation(event, 'tags')
      expect(await trips(cold(2, 2), read)).toEqual([
        { id: 1, name: 'tag 1' },
        { id: 2, name: 'tag 2' },
      ])
      await trips({ mget: 2 }, read)
      const events = await Tag.cache.relation({ id: 2, name: '' }, 'events')
      expect(events.map(({ id }) => id)).toEqual([1, 2])
      expect(await Event.cache.relation({ ...event, id: 4 }, 'tags')).toEqual([])
    })
  })

  describe('after a write', () => {
    test('a related row changes: with shows it', async () => {
      const { User } = models
      const read = () => inScope(() => User.cache.getAsync({ id: 1 }, { with: ['team', 'avatars'] }))
      await read()
      await portal.db.updateTable('teams').set({ name: 'new' }).where('id', '=', 1).execute()
      expect((await read()).team).toEqual({ id: 1, name: 'new' })
      await portal.elsewhere("update avatars set url = 'new' where id = 2")
      expect((await read()).avatars.map(({ url }) => url)).toEqual(['avatar 1', 'new'])
      await portal.elsewhere('delete from teams where id = 1')
      expect(await read()).toMatchObject({ team_id: null, team: null })
    })

    test('a key field changes: the old key is absent, and the foreign key leads elsewhere', async () => {
      const { User } = models
      const read = (email: string) =>
        inScope(() => User.cache.getAsyncOrNone({ email }, { with: ['team', 'avatars'] }))
      expect([await read('u1@x'), await read('new@x')]).toMatchObject([{ id: 1, team: { id: 1 } }, null])
      await portal.db.updateTable('users').set({ email: 'new@x', team_id: 2 }).where('id', '=', 1).execute()
      expect([await read('u1@x'), await read('new@x')]).toMatchObject([null, { id: 1, team: { id: 2 } }])
      await portal.elsewhere('update avatars set user_id = 1 where id = 3')
      expect((await read('new@x'))?.avatars.map(({ id }) => id)).toEqual([1, 2, 3])
      expect((await read('u2@x'))?.avatars.map(({ id }) => id)).toEqual([4])
    })

    test('many-to-many: add, remove, and rename', async () => {
      const { Event, Tag } = models
      const tagsOf = async (id: number) =>
        (await inScope(() => Event.cache.getAsync({ id }, { with: ['tags'] }))).tags.map(({ name }) => name)
      const eventsOf = async (id: number) =>
        (await inScope(() => Tag.cache.getAsync({ id }, { with: ['events'] }))).events.map((row) => row.id)
      expect([await tagsOf(2), await eventsOf(4)]).toEqual([['tag 2'], []])
      await portal.db.insertInto('event_tags').values({ event_id: 2, tag_id: 4 }).execute()
      expect([await tagsOf(2), await eventsOf(4)]).toEqual([['tag 2', 'tag 4'], [2]])
      await portal.elsewhere('delete from event_tags where event_id = 2 and tag_id = 2')
      expect([await tagsOf(2), await eventsOf(2)]).toEqual([['tag 4'], [1]])
      await portal.elsewhere("update tags set name = 'new' where id = 4")
      expect(await tagsOf(2)).toEqual(['new'])
      await portal.elsewhere('update event_tags set event_id = 3 where tag_id = 4')
      expect([await tagsOf(2), await tagsOf(3), await eventsOf(4)]).toEqual([[], ['tag 3', 'new'], [3]])
      await portal.elsewhere('delete from tags where id = 4')
      expect(await tagsOf(3)).toEqual(['tag 3'])
    })
  })

  describe('a foreign key given as a row', () => {
    test('stands for its key, in lookups, peek and invalidate', async () => {
      const { User, Team } = models
      const team = await Team.cache.getAsync({ id: 1 })
      await inScope(async () => {
        const users = await User.cache.filterAsync({ team_id: team })
        expect(users.map(({ id }) => id)).toEqual([1, 2])
        expect(await User.cache.filterAsync({ team_id: 1 })).toBe(users)
        expect(await User.cache.filterQuery({ team_id: { id: 1 } }).resolveAsync()).toBe(users)
      })
      await portal.cache.idle()
      await User.cache.invalidate({ team_id: team })
      await trips(cold(1, 1), () => User.cache.filterAsync({ team_id: team }))
      await expect(User.cache.filterAsync({ team_id: { name: 'x' } as never })).rejects.toThrow(
        InvalidKeyError,
      )
    })

    test('and in custom caches, whose load gets the key', async () => {
      const keys: unknown[] = []
      const UsersOfTeam = portal.cache.queryset({
        name: 'UsersOfTeam',
        model: models.User,
        keyFields: ['team_id'],
      })
      const Sizes = portal.cache.instance({
        name: 'Sizes',
        model: models.User,
        keyFields: ['team_id', 'name'],
        loadOne: async (key) => {
          keys.push(key)
          return 1
        },
      })
      await portal.cache.install()
      const team = await models.Team.cache.getAsync({ id: 1 })
      await inScope(async () => {
        const users = await UsersOfTeam({ team_id: team }).resolveAsync()
        expect(users.map(({ id }) => id)).toEqual([1, 2])
        expect(await UsersOfTeam(1).resolveAsync()).toBe(users)
        expect(UsersOfTeam.peek({ team_id: team })).toBe(users)
        await Sizes({ team_id: team, name: 'x' }).resolveAsync()
      })
      expect(keys).toEqual([{ team_id: 1, name: 'x' }])
      await UsersOfTeam.invalidate({ team_id: team })
    })
  })

  test('extend adds methods, which look up in the wave of the tick', async () => {
    const { User } = models
    const read = () => Promise.all([User.cache.named('u1@x'), User.cache.withTeam(1)])
    expect(await trips(cold(2, 3), read)).toMatchObject(['user 1', { team: { id: 1 } }])
    await trips({ mget: 2 }, read)
  })

  test('what several models share is spread into the methods of each', async () => {
    const cache = portal.another()
    const shared = <Result>(c: ModelCache<{ id: number }, never, Result>) => ({
      many: (ids: readonly number[]) => Promise.all(ids.map((id) => c.getAsyncOrNone({ id }))),
    })
    const Team = cache.model('teams', { keyFields: [['id']], extend: shared })
    const Tag = cache.model('tags', {
      keyFields: [['id']],
      extend: (c) => ({ ...shared(c), nameOf: async (id: number) => (await c.getAsync({ id })).name }),
    })
    const read = () =>
      inScope(() => Promise.all([Team.cache.many([1, 9]), Tag.cache.many([2, 3]), Tag.cache.nameOf(2)]))
    const found = [[{ name: 'team 1' }, null], [{ id: 2 }, { id: 3 }], 'tag 2']
    expect(await expectTrips(cache, cold(1, 2), read)).toMatchObject(found)
    expect(await expectTrips(cache, WARM, read)).toMatchObject(found)
  })

  describe('what cannot work', () => {
    const declare = (meta: object, others: (cache: ReturnType<Portal['another']>) => void = () => {}) => {
      const cache = portal.another()
      others(cache)
      return cache.model('users', { keyFields: [['id']], ...meta } as never) as unknown as {
        cache: Portal['models']['User']['cache']
      }
    }
    const team = { team: { one: 'teams', on: { team_id: 'id' } } }

    test('an unknown relation, or option', async () => {
      const { User } = models
      const unknown = User.cache.getAsync({ id: 1 }, { with: ['nope' as 'team'] })
      await expect(unknown).rejects.toThrow(
        new OptionError('with', "made of the relations of model 'users' (team, avatars)", 'nope'),
      )
      await expect(User.cache.relation({} as never, 'nope' as 'team')).rejects.toThrow(/option 'relation'/)
      await expect(User.cache.getAsync({ id: 1 }, { wit: [] } as never)).rejects.toThrow(/known are with/)
      await expect(User.cache.getAsync({ id: 1 }, { with: 'team' } as never)).rejects.toThrow(OptionError)
      await expect(User.cache.getAsync({ id: 1 }, null as never)).rejects.toThrow(OptionError)
      const { Avatar } = models
      const none = (Avatar.cache as unknown as typeof User.cache).getAsync({ id: 1 }, { with: ['team'] })
      await expect(none).rejects.toThrow(/relations of model 'avatars' \(none is declared\)/)
    })

    test('a row that lacks the field', async () => {
      await expect(models.User.cache.relation({ id: 1 } as never, 'team')).rejects.toThrow(
        "model 'users': field 'team_id' must not be undefined: relation 'team' follows it",
      )
    })

    test.each<[string, object, ((cache: ReturnType<Portal['another']>) => void) | undefined, string]>([
      [
        'without a model',
        team,
        undefined,
        "relation 'team': table 'teams' has no model in this cache; declare cache.model('teams', { ... }) with keyFields ['id']",
      ],
      [
        'whose model lacks the key fields',
        team,
        (cache) => cache.model('teams', { keyFields: [['name']] }),
        "relation 'team': model 'teams' has no keyFields ['id']; add them to its keyFields",
      ],
      [
        'whose model lacks the filter fields',
        { team: { many: 'avatars', on: { id: 'user_id' } } },
        (cache) => cache.model('avatars', { keyFields: [['id']] }),
        "relation 'team': model 'avatars' has no filterFields ['user_id']; add them to its filterFields",
      ],
      [
        'whose model has not all columns',
        team,
        (cache) => cache.model('teams', { keyFields: [['id']], columns: ['name'] }),
        "relation 'team': model 'teams' has only the columns name; declare it without columns",
      ],
      [
        'through a table that has not the columns',
        {
          team: { many: 'tags', through: 'event_tags', on: { id: 'event_id' }, to: { tag_id: 'id' } },
        },
        (cache) =>
          cache.model('event_tags', {
            keyFields: [['event_id', 'tag_id']],
            filterFields: [['event_id']],
            columns: ['event_id'],
          }),
        "relation 'team': model 'event_tags' has only the columns event_id; declare it without columns",
      ],
    ])('a table %s', async (_, relations, others, message) => {
      const User = declare({ relations }, others)
      const refused = User.cache.getAsync({ id: 1 }, { with: ['team'] })
      await expect(refused).rejects.toThrow(ModelError)
      await expect(refused).rejects.toThrow(`model 'users': ${message}`)
      await expect(User.cache.relation({ id: 1 } as never, 'team')).rejects.toThrow(ModelError)
      expect(await User.cache.getAsync({ id: 1 })).toMatchObject({ id: 1 })
    })

    test('a model that is declared later is found', async () => {
      const cache = portal.another()
      const User = cache.model('users', {
        keyFields: [['id']],
        relations: { team: { one: 'teams', on: { team_id: 'id' } } },
      })
      const read = () => User.cache.getAsync({ id: 1 }, { with: ['team'] })
      await expect(read()).rejects.toThrow(ModelError)
      cache.model('teams', { keyFields: [['id']] })
      expect(await read()).toMatchObject({ team: { id: 1 } })
    })

    test('a relation named as a column is', async () => {
      const relations = { name: { one: 'teams', on: { team_id: 'id' } } }
      const User = declare({ relations }, (cache) => cache.model('teams', { keyFields: [['id']] }))
      await expect(User.cache.getAsync({ id: 1 }, { with: ['name' as 'team'] })).rejects.toThrow(
        "relation 'name' is named as a column is; give it another name",
      )
    })

    test.each<[string, unknown, RegExp]>([
      ['no object', [], /'users.relations' must be an object such as/],
      ['no relation', { team: 'teams' }, /'users.relations.team' must be an object such as/],
      ['neither one nor many', { team: { on: { a: 'b' } } }, /'one' or 'many'/],
      ['both', { team: { one: 'a', many: 'b', on: { a: 'b' } } }, /'one' or 'many'/],
      ['no table', { team: { one: 1, on: { a: 'b' } } }, /'users.relations.team.one' must be the name/],
      ['no fields', { team: { one: 'teams', on: {} } }, /'users.relations.team.on'/],
      ['a field that is none', { team: { one: 'teams', on: { a: 1 } } }, /'users.relations.team.on'/],
      ['two fields to one', { team: { one: 'a', on: { a: 'x', b: 'x' } } }, /'users.relations.team.on'/],
      ['to alone', { team: { many: 'a', on: { a: 'b' }, to: { a: 'b' } } }, /left out without 'through'/],
      ['one through', { team: { one: 'a', through: 'b', on: { a: 'b' } } }, /left out but for 'many'/],
      ['through to nowhere', { team: { many: 'a', through: 'b', on: { a: 'b' } } }, /team.to'/],
      ['a misspelt option', { team: { one: 'a', On: {} } }, /'users.relations.team.On' must be left out/],
    ])('declared badly: %s', (_, relations, message) => {
      expect(() => declare({ relations })).toThrow(OptionError)
      expect(() => declare({ relations })).toThrow(message)
    })

    test('columns that leave out what a relation needs', () => {
      expect(() => declare({ relations: team, columns: ['id'] })).toThrow(
        /'users.relations.team.on' must be made of fields among columns \(id\)/,
      )
      expect(() => declare({ relations: team, columns: ['team', 'team_id'] })).toThrow(
        /'users.relations.team' must be named as no column is/,
      )
    })

    test('extend: no function, no methods, a name that is taken; nothing is declared then', async () => {
      const cache = portal.another()
      const extended = (extend: unknown) => () =>
        cache.model('users', { keyFields: [['id']], extend: extend as () => Record<never, never> })
      expect(extended(1)).toThrow(/'users.extend' must be a function/)
      expect(extended(() => 1)).toThrow(/'users.extend' must be a function that returns/)
      expect(extended(() => ({ a: 1 }))).toThrow(/'users.extend.a' must be a function/)
      for (const name of ['getAsync', 'relation', 'lookUp', 'constructor', 'toString']) {
        expect(extended(() => ({ [name]: () => 1 }))).toThrow(OptionError)
      }
      expect(cache.modelNames).toEqual([])
      expect(extended(() => ({ a: () => 1 }))).not.toThrow()
    })
  })
})
