import { CamelCasePlugin, type Kysely } from 'kysely'
import { type Cache, createModelCache, ModelError, OptionError, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { Client } from 'pg'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { closeRedis } from '../support/redis.ts'
import { declareModels, PLACES, type Portal, type PortalTables } from './portal.ts'

const COLD = { mget: 1, acquire: 1, fill: 1 }
const WARM = { mget: 1 }

afterAll(closeRedis)

function declareRelated(cache: Cache<PortalTables>, models: ReturnType<typeof declareModels>) {
  const { Team, User, Avatar, Event, Tag, EventTag } = models
  return {
    /** The row a foreign key leads to. */
    OwnerOfEvent: cache.related({
      name: 'OwnerOfEvent',
      model: Event,
      keyFields: ['slug'],
      path: [{ model: User, on: { owner_id: 'id' } }],
      single: true,
    }),
    /** Two foreign keys in a row. */
    TeamOfEvent: cache.related({
      name: 'TeamOfEvent',
      model: Event,
      keyFields: ['id'],
      path: [
        { model: User, on: { owner_id: 'id' } },
        { model: Team, on: { team_id: 'id' } },
      ],
      single: true,
    }),
    /** Rows that refer to the key itself. */
    AvatarsOfUser: cache.related({
      name: 'AvatarsOfUser',
      model: User,
      keyFields: ['id'],
      path: [{ model: Avatar, on: { id: 'user_id' } }],
    }),
    /** Many to many. */
    TagsOfEvent: cache.related({
      name: 'TagsOfEvent',
      model: Event,
      keyFields: ['slug'],
      path: [
        { model: EventTag, on: { id: 'event_id' } },
        { model: Tag, on: { tag_id: 'id' } },
      ],
    }),
    /** There and back: several ways lead to one row. */
    EventsOfTeam: cache.related({
      name: 'EventsOfTeam',
      model: User,
      keyFields: ['team_id'],
      path: [{ model: Event, on: { id: 'owner_id' } }],
    }),
  }
}

const names = (rows: readonly { name: string }[]) => rows.map(({ name }) => name)
const inScope = <Result>(fn: () => Promise<Result>) => runInLoop(fn)()

describe.each(Object.entries(PLACES))('related caches, on %s', (_place, openPortal) => {
  let portal: Portal
  let related: ReturnType<typeof declareRelated>
  beforeEach(async () => {
    portal = await openPortal()
    related = declareRelated(portal.cache, portal.models)
    await portal.cache.install()
  })
  afterEach(() => portal.close())

  const tagsOf = (slug: string) => related.TagsOfEvent(slug).resolveAsync().then(names)
  const ownerOf = async (slug: string) => (await related.OwnerOfEvent(slug).resolveAsync())?.name
  const teamOf = async (id: number) => (await related.TeamOfEvent(id).resolveAsync())?.name

  test('one joined statement per path for all keys of a wave, and none when warm', async () => {
    const { OwnerOfEvent, TeamOfEvent, AvatarsOfUser, TagsOfEvent, EventsOfTeam } = related
    const read = () =>
      inScope(() =>
        Promise.all([
          ...['event-1', 'event-2', 'event-4'].map((slug) => TagsOfEvent(slug).resolveAsync()),
          ...['event-1', 'event-4', 'none'].map((slug) => OwnerOfEvent(slug).resolveAsync()),
          ...[1, 2, 4].map((id) => TeamOfEvent(id).resolveAsync()),
          AvatarsOfUser(1).resolveAsync(),
          ...[1, 3, null].map((id) => EventsOfTeam(id).resolveAsync()),
        ]),
      )
    const found = [
      [{ name: 'tag 1' }, { name: 'tag 2' }],
      [{ name: 'tag 2' }],
      [],
      { name: 'user 1' },
      null,
      null,
      { name: 'team 1' },
      { name: 'team 1' },
      null,
      [{ id: 1 }, { id: 2 }],
      [{ id: 1 }, { id: 2 }],
      [],
      [],
    ]
    expect(await expectTrips(portal.cache, { ...COLD, load: 5 }, read)).toMatchObject(found)
    expect(await expectTrips(portal.cache, WARM, read)).toMatchObject(found)
  })

  test('a row that several ways lead to is there once', async () => {
    await portal.elsewhere(`
      create table seats (user_id int not null, team_id int not null, seat int primary key);
      insert into seats values (1, 1, 1), (1, 1, 2), (2, 1, 3)`)
    const cache = portal.another() as unknown as Cache<
      PortalTables & { seats: { user_id: number; team_id: number; seat: number } }
    >
    const Team = cache.model('teams', { keyFields: [['id']] })
    const Seat = cache.model('seats', { keyFields: [['seat']] })
    const User = cache.model('users', { keyFields: [['id']] })
    const Sitting = cache.related({
      name: 'Sitting',
      model: Team,
      keyFields: ['id'],
      path: [
        { model: Seat, on: { id: 'team_id' } },
        { model: User, on: { user_id: 'id' } },
      ],
    })
    expect(await Sitting(1).resolveAsync().then(names)).toEqual(['user 1', 'user 2'])
    await cache.close()
  })

  describe('follow writes to', () => {
    /** Writes in both ways: through Kysely, seen when it returns, and by another program, seen when it is relayed. */
    const ways: [
      string,
      (
        write: (db: Kysely<PortalTables>) => { execute(): Promise<unknown> },
        text: string,
      ) => Promise<unknown>,
    ][] = [
      ['through Kysely', (write) => write(portal.db).execute()],
      ['by another program', (_, text) => portal.elsewhere(text)],
    ]

    test.each(ways)('the related row, %s', async (_, write) => {
      expect([await ownerOf('event-1'), await ownerOf('event-2')]).toEqual(['user 1', 'user 2'])
      await write(
        (db) => db.updateTable('users').set({ name: 'Ada' }).where('id', '=', 1),
        `update users set name = 'Ada' where id = 1`,
      )
      expect([await ownerOf('event-1'), await ownerOf('event-2')]).toEqual(['Ada', 'user 2'])
    })

    test.each(ways)('the row of the model: another foreign key, %s', async (_, write) => {
      expect([await ownerOf('event-1'), await teamOf(1)]).toEqual(['user 1', 'team 1'])
      await write(
        (db) => db.updateTable('events').set({ owner_id: 5 }).where('id', '=', 1),
        'update events set owner_id = 5 where id = 1',
      )
      expect([await ownerOf('event-1'), await teamOf(1)]).toEqual(['user 5', 'team 3'])
    })

    test.each(ways)('a row between: it leads elsewhere, %s', async (_, write) => {
      expect([await teamOf(1), await teamOf(2), await teamOf(3)]).toEqual(['team 1', 'team 1', 'team 2'])
      await write(
        (db) => db.updateTable('users').set({ team_id: 3 }).where('id', '=', 2),
        'update users set team_id = 3 where id = 2',
      )
      expect([await teamOf(1), await teamOf(2), await teamOf(3)]).toEqual(['team 1', 'team 3', 'team 2'])
    })

    test.each(ways)('the end of a long path, %s', async (_, write) => {
      expect([await teamOf(1), await teamOf(2), await teamOf(3)]).toEqual(['team 1', 'team 1', 'team 2'])
      await write(
        (db) => db.updateTable('teams').set({ name: 'A' }).where('id', '=', 1),
        `update teams set name = 'A' where id = 1`,
      )
      expect([await teamOf(1), await teamOf(2), await teamOf(3)]).toEqual(['A', 'A', 'team 2'])
    })

    test.each(ways)('a through table: add, %s', async (_, write) => {
      expect([await tagsOf('event-1'), await tagsOf('event-4')]).toEqual([['tag 1', 'tag 2'], []])
      await write(
        (db) => db.insertInto('event_tags').values({ event_id: 4, tag_id: 1 }),
        'insert into event_tags values (4, 1)',
      )
      expect([await tagsOf('event-1'), await tagsOf('event-4')]).toEqual([['tag 1', 'tag 2'], ['tag 1']])
    })

    test.each(ways)('a through table: remove, %s', async (_, write) => {
      expect([await tagsOf('event-1'), await tagsOf('event-2')]).toEqual([['tag 1', 'tag 2'], ['tag 2']])
      await write(
        (db) => db.deleteFrom('event_tags').where('tag_id', '=', 2),
        'delete from event_tags where tag_id = 2',
      )
      expect([await tagsOf('event-1'), await tagsOf('event-2')]).toEqual([['tag 1'], []])
    })

    test.each(ways)('what a cascade takes along, %s', async (_, write) => {
      expect([await tagsOf('event-1'), await tagsOf('event-2')]).toEqual([['tag 1', 'tag 2'], ['tag 2']])
      await write((db) => db.deleteFrom('tags').where('id', '=', 2), 'delete from tags where id = 2')
      expect([await tagsOf('event-1'), await tagsOf('event-2')]).toEqual([['tag 1'], []])
    })

    test.each(ways)('a key field: the old key is absent, the new one has it all, %s', async (_, write) => {
      expect([await tagsOf('event-1'), await tagsOf('renamed')]).toEqual([['tag 1', 'tag 2'], []])
      await write(
        (db) => db.updateTable('events').set({ slug: 'renamed' }).where('id', '=', 1),
        `update events set slug = 'renamed' where id = 1`,
      )
      expect([await tagsOf('event-1'), await tagsOf('renamed')]).toEqual([[], ['tag 1', 'tag 2']])
    })

    test('all of a table on the path', async () => {
      expect([await tagsOf('event-1'), await teamOf(1)]).toEqual([['tag 1', 'tag 2'], 'team 1'])
      await portal.elsewhere('truncate event_tags')
      expect([await tagsOf('event-1'), await teamOf(1)]).toEqual([[], 'team 1'])
      await portal.elsewhere('truncate teams cascade')
      expect(await teamOf(1)).toBeUndefined()
    })
  })

  test('a write clears what it is about, and nothing else', async () => {
    const slugs = ['event-1', 'event-2', 'event-3', 'event-4']
    const read = () => inScope(() => Promise.all(slugs.map(tagsOf)))
    await read()
    await portal.cache.idle()
    await portal.db.updateTable('tags').set({ name: 'two' }).where('id', '=', 2).execute()
    await portal.cache.idle()
    const before = portal.cache.stats()
    await read()
    await portal.cache.idle()
    expect(portal.cache.stats().misses - before.misses).toBe(2)
  })

  test('inside a transaction they see its writes, and nobody else does', async () => {
    expect(await tagsOf('event-4')).toEqual([])
    await portal.cache
      .transaction(async (trx) => {
        await trx.insertInto('event_tags').values({ event_id: 4, tag_id: 3 }).execute()
        expect(await tagsOf('event-4')).toEqual(['tag 3'])
        throw new Error('rolled back')
      })
      .catch(() => undefined)
    expect(await tagsOf('event-4')).toEqual([])
  })

  test('the memo of the writer forgets them too', async () => {
    await inScope(async () => {
      expect(await teamOf(2)).toBe('team 1')
      await portal.db.updateTable('teams').set({ name: 'A' }).where('id', '=', 1).execute()
      expect(await teamOf(2)).toBe('A')
    })
  })

  test('a field between whose table came to be cached by other code meanwhile is still told of', async () => {
    // Code that knows nothing of the related caches installs; it must not take them away from those who do.
    const older = portal.another()
    declareModels(older)
    await older.install()
    expect(await teamOf(1)).toBe('team 1')
    await portal.elsewhere(`update teams set name = 'A' where id = 1`)
    expect(await teamOf(1)).toBe('A')
  })
})

describe.each(Object.entries(PLACES))('a path by the names of relations, on %s', (_place, openPortal) => {
  let portal: Portal
  beforeEach(async () => {
    portal = await openPortal()
  })
  afterEach(() => portal.close())

  function declareByNames({ cache, models: { Event, User, Avatar } }: Portal) {
    return {
      TeamOfEvent: cache.related({
        name: 'TeamOfEvent',
        model: Event,
        keyFields: ['id'],
        path: ['owner', 'team'],
        single: true,
      }),
      /** One name, two hops: it leads through a table. */
      TagsOfEvent: cache.related({ name: 'TagsOfEvent', model: Event, keyFields: ['slug'], path: ['tags'] }),
      /** There and back, by one table twice. */
      Mates: cache.related({ name: 'Mates', model: User, keyFields: ['id'], path: ['team', 'users'] }),
      /** A name, then a hop. */
      AvatarsOfOwner: cache.related({
        name: 'AvatarsOfOwner',
        model: Event,
        keyFields: ['id'],
        path: ['owner', { model: Avatar, on: { id: 'user_id' } }],
      }),
      /** All there is: the tags of the events that have a tag of the event. */
      Kin: cache.related({ name: 'Kin', model: Event, keyFields: ['id'], path: ['tags', 'events', 'tags'] }),
    }
  }

  test('is the path of its hops: one joined statement for each cache', async () => {
    const { TeamOfEvent, TagsOfEvent, Mates, AvatarsOfOwner, Kin } = declareByNames(portal)
    await portal.cache.install()
    const read = () =>
      inScope(() =>
        Promise.all([
          ...[1, 3, 4].map((id) => TeamOfEvent(id).resolveAsync()),
          ...['event-1', 'event-4'].map((slug) => TagsOfEvent(slug).resolveAsync()),
          ...[1, 3, 6].map((id) => Mates(id).resolveAsync()),
          AvatarsOfOwner(2).resolveAsync(),
          ...[1, 3].map((id) => Kin(id).resolveAsync()),
        ]),
      )
    const found = [
      { name: 'team 1' },
      { name: 'team 2' },
      null,
      [{ id: 1 }, { id: 2 }],
      [],
      [{ id: 1 }, { id: 2 }],
      [{ id: 3 }, { id: 4 }],
      [],
      [{ id: 3 }, { id: 4 }],
      [{ id: 1 }, { id: 2 }],
      [{ id: 3 }],
    ]
    expect(await expectTrips(portal.cache, { ...COLD, load: 5 }, read)).toMatchObject(found)
    expect(await expectTrips(portal.cache, WARM, read)).toMatchObject(found)
  })

  test('follows writes to every table on it, whoever wrote', async () => {
    const { TeamOfEvent, TagsOfEvent, Mates, AvatarsOfOwner, Kin } = declareByNames(portal)
    await portal.cache.install()
    const ids = (rows: readonly { id: number }[]) => rows.map(({ id }) => id)
    const read = () =>
      inScope(() =>
        Promise.all([
          TeamOfEvent(1)
            .resolveAsync()
            .then((team) => team?.name),
          TagsOfEvent('event-1').resolveAsync().then(names),
          Mates(1).resolveAsync().then(ids),
          AvatarsOfOwner(1).resolveAsync().then(ids),
          Kin(1).resolveAsync().then(ids),
        ]),
      )
    expect(await read()).toEqual(['team 1', ['tag 1', 'tag 2'], [1, 2], [1, 2], [1, 2]])
    await portal.db.updateTable('teams').set({ name: 'A' }).where('id', '=', 1).execute()
    await portal.elsewhere(`update tags set name = 'B' where id = 1`)
    expect(await read()).toEqual(['A', ['B', 'tag 2'], [1, 2], [1, 2], [1, 2]])
    await portal.db.updateTable('users').set({ team_id: 1 }).where('id', '=', 5).execute()
    await portal.elsewhere('insert into event_tags values (2, 4)')
    expect(await read()).toEqual(['A', ['B', 'tag 2'], [1, 2, 5], [1, 2], [1, 2, 4]])
    await portal.elsewhere('update users set team_id = 3 where id = 1')
    await portal.db.deleteFrom('avatars').where('id', '=', 2).execute()
    await portal.db.deleteFrom('event_tags').where('event_id', '=', 1).where('tag_id', '=', 2).execute()
    expect(await read()).toEqual(['team 3', ['B'], [1], [1], [1]])
    await portal.elsewhere('update events set owner_id = 3 where id = 1')
    expect(await read()).toEqual(['team 2', ['B'], [1], [5, 6], [1]])
  })

  test('that leads nowhere is refused, by name', async () => {
    const { cache, models } = portal
    const declare = (path: unknown, model: object = models.Event) =>
      cache.related({ name: 'A', model: model as typeof models.Event, keyFields: ['id'], path: path as [] })
    expect(() => declare(['owners'])).toThrow(
      new OptionError('A.path', "made of the relations of model 'events' (owner, tags)", 'owners'),
    )
    expect(() => declare(['owner', 'tags'])).toThrow(/relations of model 'users' \(team, avatars\)/)
    expect(() => declare([{ model: models.Tag, on: { id: 'id' } }, 'owner'])).toThrow(
      /relations of model 'tags' \(events\)/,
    )
    expect(() => declare(['owner'], {})).toThrow(/'A.model' must be a model of this cache/)
    const other = portal.another()
    const User = other.model('users', {
      keyFields: [['id']],
      relations: { team: { one: 'teams', on: { team_id: 'id' } } },
    })
    expect(() => other.related({ name: 'A', model: User, keyFields: ['id'], path: ['team'] })).toThrow(
      "model 'users': relation 'team': table 'teams' has no model in this cache",
    )
  })
})

describe('on a server', () => {
  let portal: Portal
  beforeEach(async () => {
    portal = await (PLACES['Redis and Postgres'] as () => Promise<Portal>)()
  })
  afterEach(() => portal.close())

  test('a link that another transaction makes while the row at its end is written: never the old row for good', async () => {
    const { TeamOfEvent } = declareRelated(portal.cache, portal.models)
    await portal.cache.install()
    const [renaming, linking] = [0, 0].map(() => new Client({ connectionString: portal.databaseUrl }))
    await renaming?.connect()
    await linking?.connect()
    try {
      // The trigger of the rename sees no link to the row, and that of the link no new name.
      await renaming?.query(`begin; update teams set name = 'A' where id = 3`)
      await linking?.query('update users set team_id = 3 where id = 1')
      const { relay } = insidesOf(portal.cache)
      while ((await relay.turn(0)) > 0);
      expect(await TeamOfEvent(1).resolveAsync()).toMatchObject({ name: 'team 3' })
      await renaming?.query('commit')
      while ((await relay.turn(0)) > 0);
      expect(await TeamOfEvent(1).resolveAsync()).toMatchObject({ name: 'A' })
    } finally {
      await renaming?.end()
      await linking?.end()
    }
  })

  test('a path by names shares its entries with code that has the same path in hops', async () => {
    const TeamOfEvent = portal.cache.related({
      name: 'TeamOfEvent',
      model: portal.models.Event,
      keyFields: ['id'],
      path: ['owner', 'team'],
      single: true,
    })
    await portal.cache.install()
    const other = portal.another()
    const { TeamOfEvent: InHops } = declareRelated(other, declareModels(other))
    expect(await TeamOfEvent(1).resolveAsync()).toMatchObject({ name: 'team 1' })
    await portal.cache.idle()
    expect(await expectTrips(other, WARM, () => InHops(1).resolveAsync())).toMatchObject({ name: 'team 1' })
  })

  test('through a pool of one connection', async () => {
    const { TeamOfEvent } = declareRelated(portal.cache, portal.models)
    await portal.cache.install()
    const one = portal.withPool(1)
    const cache = createModelCache({ ...portal.options, db: one })
    declareRelated(cache, declareModels(cache))
    expect(await TeamOfEvent(1).resolveAsync()).toMatchObject({ name: 'team 1' })
    await one.updateTable('teams').set({ name: 'A' }).where('id', '=', 1).execute()
    expect(await TeamOfEvent(1).resolveAsync()).toMatchObject({ name: 'A' })
    await cache.close()
  })

  test('with CamelCasePlugin', async () => {
    const db = portal.db.withPlugin(new CamelCasePlugin()) as unknown as Kysely<{
      users: { id: number; teamId: number | null; name: string }
      events: { id: number; ownerId: number | null; title: string }
      teams: { id: number; name: string }
    }>
    const cache = createModelCache({ ...portal.options, db, namespace: `${portal.options.namespace}-camel` })
    const Team = cache.model('teams', { keyFields: [['id']] })
    const User = cache.model('users', { keyFields: [['id']] })
    const Event = cache.model('events', { keyFields: [['id']] })
    const TeamOfEvent = cache.related({
      name: 'TeamOfEvent',
      model: Event,
      keyFields: ['ownerId'],
      path: [
        { model: User, on: { ownerId: 'id' } },
        { model: Team, on: { teamId: 'id' } },
      ],
      single: true,
    })
    await cache.install()
    expect(await TeamOfEvent(1).resolveAsync()).toEqual({ id: 1, name: 'team 1' })
    await db.updateTable('users').set({ teamId: 2 }).where('id', '=', 1).execute()
    expect(await TeamOfEvent(1).resolveAsync()).toEqual({ id: 2, name: 'team 2' })
    await cache.close()
  })
})

test('what is wrong is refused, by name', async () => {
  const portal = await (PLACES['in-process store and PGlite'] as () => Promise<Portal>)()
  try {
    const { cache, models } = portal
    const good = { name: 'A', model: models.Event, keyFields: ['id'] as const }
    const bad = (path: unknown) => () => cache.related({ ...good, path: path as never })
    expect(bad([])).toThrow(OptionError)
    expect(bad('owner')).toThrow(/'A.path' must be a list of relations and hops/)
    expect(bad([{ model: {}, on: { id: 'id' } }])).toThrow(/'A.path'/)
    expect(bad([{ model: models.User, on: {} }])).toThrow(/'A.path'/)
    const Strict = cache.model('strict' as 'teams', { keyFields: [['id']], consistency: 'strict' })
    expect(() =>
      cache.related({
        name: 'B',
        model: Strict,
        keyFields: ['id'],
        path: [{ model: models.User, on: { id: 'team_id' } }],
      }),
    ).toThrow(ModelError)
    const Odd = cache.related({ ...good, path: [{ model: models.User, on: { owner_id: 'nope' } }] })
    await expect(Odd(1).resolveAsync()).rejects.toThrow(/'nope'/)
  } finally {
    await portal.close()
  }
})
