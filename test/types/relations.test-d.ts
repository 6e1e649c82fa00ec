import { batch, type ModelCache, openBatch, type Query, type Row } from 'loadstone'
import { expectTypeOf, test } from 'vitest'
import type { PortalTables } from '../customs/portal.ts'
import {
  type Avatar,
  Event,
  linked,
  PrimaryAvatar,
  portal,
  Team,
  User,
  UsersOfTeam,
} from './relations-fixture.ts'

/* Checked by `npm run typecheck`, never run. */

type TeamRow = Row<PortalTables, 'teams'>
type UserRow = Row<PortalTables, 'users'>
type AvatarRow = Row<PortalTables, 'avatars'>

const keyFields = [['id']] as const

test('a relation is to a table, by columns of either side', () => {
  portal.model('users', { keyFields, relations: { team: { one: 'teams', on: { team_id: 'id' } } } })
  portal.model('users', { keyFields, relations: {} })

  // @ts-expect-error no such table
  portal.model('users', { keyFields, relations: { team: { one: 'team', on: { team_id: 'id' } } } })
  // @ts-expect-error no such column here
  portal.model('users', { keyFields, relations: { team: { one: 'teams', on: { team: 'id' } } } })
  portal.model('users', {
    keyFields,
    // @ts-expect-error no such column here, next to one that is there
    relations: { team: { one: 'teams', on: { team_id: 'id', nope: 'name' } } },
  })
  // @ts-expect-error no such column there
  portal.model('users', { keyFields, relations: { team: { one: 'teams', on: { team_id: 'team_id' } } } })
  // @ts-expect-error it has no fields
  portal.model('users', { keyFields, relations: { team: { one: 'teams' } } })
  // @ts-expect-error neither one nor many
  portal.model('users', { keyFields, relations: { team: { on: { team_id: 'id' } } } })
  // @ts-expect-error a column has this name
  portal.model('users', { keyFields, relations: { name: { one: 'teams', on: { team_id: 'id' } } } })
  portal.model('events', {
    keyFields,
    relations: {
      // @ts-expect-error no column of the table in between
      tags: { many: 'tags', through: 'event_tags', on: { id: 'id' }, to: { tag_id: 'id' } },
    },
  })
  portal.model('events', {
    keyFields,
    relations: {
      // @ts-expect-error no column of the table in between
      tags: { many: 'tags', through: 'event_tags', on: { id: 'event_id' }, to: { id: 'id' } },
    },
  })
  portal.model('events', {
    keyFields,
    // @ts-expect-error no such table
    relations: { tags: { many: 'tags', through: 'tagged', on: { id: 'event_id' }, to: { tag_id: 'id' } } },
  })
})

test('with adds the relations that are named', async () => {
  const user = await User.cache.getAsync({ id: 1 }, { with: ['team', 'avatars'] })
  expectTypeOf(user.team).toEqualTypeOf<TeamRow | null>()
  expectTypeOf(user.avatars).toEqualTypeOf<readonly AvatarRow[]>()
  expectTypeOf(user.email).toEqualTypeOf<string>()
  expectTypeOf(await User.cache.getAsync({ id: 1 })).toEqualTypeOf<UserRow>()
  expectTypeOf((await User.cache.getAsyncOrNone({ id: 1 }, { with: ['team'] }))?.team).toEqualTypeOf<
    TeamRow | null | undefined
  >()
  const [first] = await User.cache.filterAsync({ name: 'x' }, { with: ['avatars'] })
  expectTypeOf(first?.avatars).toEqualTypeOf<readonly AvatarRow[] | undefined>()
  // @ts-expect-error it was not asked for
  void first?.team
  // @ts-expect-error no such relation
  void User.cache.getAsync({ id: 1 }, { with: ['teams'] })
  // @ts-expect-error that of another model
  void User.cache.filterAsync({ name: 'x' }, { with: ['tags'] })
  // @ts-expect-error no such option
  void User.cache.getAsync({ id: 1 }, { with: ['team'], only: true })
  // @ts-expect-error no field list has it
  void User.cache.getAsync({ name: 'x' }, { with: ['team'] })
  const { Plain } = { Plain: portal.model('avatars', { keyFields }) }
  // @ts-expect-error a model without relations
  void Plain.cache.getAsync({ id: 1 }, { with: [] })
  // @ts-expect-error it is read-only as well
  user.team = null
})

test('relations of relations, to any depth, where models are linked', async () => {
  const event = await linked.Event.cache.getAsync(
    { id: 1 },
    { with: ['tags', { owner: ['avatars', { team: [{ users: ['avatars'] }] }] }] },
  )
  expectTypeOf(event.title).toEqualTypeOf<string>()
  expectTypeOf(event.tags).toEqualTypeOf<readonly Row<PortalTables, 'tags'>[]>()
  expectTypeOf(event.owner).toExtend<UserRow | null>()
  expectTypeOf(event.owner?.avatars).toEqualTypeOf<readonly AvatarRow[] | undefined>()
  expectTypeOf(event.owner?.team).toExtend<TeamRow | null | undefined>()
  const [user] = event.owner?.team?.users ?? []
  expectTypeOf(user?.avatars).toEqualTypeOf<readonly AvatarRow[] | undefined>()
  // @ts-expect-error it was not asked for
  void user?.team

  const { User, Tag, Team: Group } = linked
  const options = { with: [{ team: ['users'] }] } as const
  type Users = readonly UserRow[] | undefined
  expectTypeOf((await User.cache.getAsyncOrNone({ id: 1 }, options))?.team?.users).toEqualTypeOf<Users>()
  expectTypeOf((await User.cache.getAsyncOr404({ id: 1 }, options)).team?.users).toEqualTypeOf<Users>()
  expectTypeOf((await User.cache.filterAsync({ name: 'x' }, options))[0]?.team?.users).toEqualTypeOf<Users>()
  const { one, list } = await batch({
    one: User.cache.getQuery({ id: 1 }, options),
    list: User.cache.filterQuery({ name: 'x' }, options),
  })
  expectTypeOf(one.team?.users).toEqualTypeOf<Users>()
  expectTypeOf(list[0]?.team?.users).toEqualTypeOf<Users>()
  const known = await User.cache.getQuery({ id: 1 }, options).resolveAsync({ onlyCache: true })
  expectTypeOf(known?.team?.users).toEqualTypeOf<Users>()
  const tag = await Tag.cache.getAsync({ id: 1 }, { with: [{ events: ['owner'] }, { events: ['tags'] }] })
  expectTypeOf(tag.events[0]?.owner).toEqualTypeOf<UserRow | null | undefined>()
  expectTypeOf(tag.events[0]?.tags).toEqualTypeOf<readonly Row<PortalTables, 'tags'>[] | undefined>()
  const plain = await User.cache.getAsync({ id: 1 }, { with: ['team', { team: [] }] })
  expectTypeOf(plain.team).toEqualTypeOf<TeamRow | null>()
  const two = await User.cache.getAsync({ id: 1 }, { with: [{ team: ['users'], avatars: [] }] })
  expectTypeOf(two.team?.users).toEqualTypeOf<Users>()
  expectTypeOf(two.avatars).toEqualTypeOf<readonly AvatarRow[]>()
  expectTypeOf(Group.cache.relation(await Group.cache.getAsync({ id: 1 }), 'users')).toEqualTypeOf<
    Promise<readonly UserRow[]>
  >()

  // @ts-expect-error no such relation of users
  void User.cache.getAsync({ id: 1 }, { with: [{ teams: ['users'] }] })
  // @ts-expect-error no such relation of teams
  void User.cache.getAsync({ id: 1 }, { with: [{ team: ['avatars'] }] })
  // @ts-expect-error no such relation of teams, next to one there is
  void User.cache.getAsync({ id: 1 }, { with: [{ team: ['users', 'avatars'] }] })
  // @ts-expect-error no such relation of teams, deep inside
  void linked.Event.cache.filterAsync({ owner_id: 1 }, { with: [{ owner: [{ team: [{ user: [] }] }] }] })
  // @ts-expect-error no such relation of users, in an object that has one there is
  void User.cache.getAsync({ id: 1 }, { with: ['avatars', { team: [], teams: [] }] })
  // @ts-expect-error no such relation of teams, in an object that has one there is
  void User.cache.getAsync({ id: 1 }, { with: [{ team: ['users', { users: [], user: [] }] }] })
  // @ts-expect-error an avatar has no relations
  void User.cache.getAsync({ id: 1 }, { with: [{ avatars: ['user'] }] })
  // @ts-expect-error no list
  void User.cache.getAsync({ id: 1 }, { with: [{ team: 'users' }] })
  // @ts-expect-error nothing asks for the relations of teams
  void (await User.cache.getAsync({ id: 1 }, { with: ['team'] })).team?.users
  const { User: Unlinked } = { User: Team }
  // @ts-expect-error what users are related to is not known to a model that is not linked
  void Unlinked.cache.getAsync({ id: 1 }, { with: [{ users: ['avatars'] }] })
  // @ts-expect-error no model
  portal.link({ User: { cache: User.cache } })
})

test('a linked model is otherwise the one it was', async () => {
  expectTypeOf(linked.Avatar).toEqualTypeOf<typeof Avatar>()
  expectTypeOf(linked.User.cache.ofTeam).toEqualTypeOf<typeof User.cache.ofTeam>()
  expectTypeOf(linked.User.cache.peek).toEqualTypeOf<typeof User.cache.peek>()
  expectTypeOf(await linked.User.cache.getAsync({ id: 1 })).toEqualTypeOf<UserRow>()
  void linked.User.cache.filterAsync({ team_id: await linked.Team.cache.getAsync({ id: 1 }) })
  const Count = portal.count({ name: 'Count', model: linked.User, keyFields: ['team_id'] })
  void Count({ team_id: { id: 1 } })
})

test('a relation of a row at hand, with the relations of its own rows', async () => {
  const user = await linked.User.cache.getAsync({ id: 1 })
  const team = linked.User.cache.relation(user, 'team', { with: [{ users: ['avatars'] }] })
  expectTypeOf((await team)?.users[0]?.avatars).toEqualTypeOf<readonly AvatarRow[] | undefined>()
  const query = linked.User.cache.relationQuery(user, 'team', { with: ['users'] })
  expectTypeOf((await query.resolveAsync())?.users).toEqualTypeOf<readonly UserRow[] | undefined>()
  // @ts-expect-error no such relation of teams
  void linked.User.cache.relation(user, 'team', { with: ['avatars'] })
})

test('a relation of a row at hand', async () => {
  const user = await User.cache.getAsync({ id: 1 })
  expectTypeOf(User.cache.relation(user, 'team')).toEqualTypeOf<Promise<TeamRow | null>>()
  expectTypeOf(User.cache.relationQuery(user, 'avatars')).toEqualTypeOf<Query<readonly AvatarRow[]>>()
  // @ts-expect-error no such relation
  void User.cache.relation(user, 'tags')
  // @ts-expect-error the row of another table
  void Event.cache.relation(user, 'tags')
})

test('a path of related leads by the names of relations', async () => {
  const { User, Team: Group, Event: Happening, Avatar } = linked
  const common = { model: Happening, keyFields: ['slug'] } as const
  const TeamOfEvent = portal.related({ ...common, name: 'A', path: ['owner', 'team'], single: true })
  expectTypeOf(TeamOfEvent('x').resolveAsync()).toEqualTypeOf<Promise<TeamRow | null>>()
  const Mates = portal.related({ ...common, name: 'B', path: ['owner', 'team', 'users'] })
  expectTypeOf(Mates('x').resolveAsync()).toEqualTypeOf<Promise<readonly UserRow[]>>()
  const TagsOfEvent = portal.related({ name: 'C', model: Event, keyFields: ['id'], path: ['tags'] })
  expectTypeOf(TagsOfEvent(1).resolveAsync()).toEqualTypeOf<Promise<readonly Row<PortalTables, 'tags'>[]>>()
  const hop = { model: Avatar, on: { id: 'user_id' } } as const
  const Avatars = portal.related({ ...common, name: 'D', path: ['owner', hop] })
  expectTypeOf(Avatars('x').resolveAsync()).toEqualTypeOf<Promise<readonly AvatarRow[]>>()
  const toUser = { model: User, on: { owner_id: 'id' } } as const
  const Team2 = portal.related({ ...common, name: 'E', path: [toUser, 'team'], single: true })
  expectTypeOf(Team2('x').resolveAsync()).toEqualTypeOf<Promise<TeamRow | null>>()
  const MatesOfTeam = portal.related({ name: 'F', model: Group, keyFields: ['id'], path: ['users'] })
  expectTypeOf(MatesOfTeam(1).resolveAsync()).toEqualTypeOf<Promise<readonly UserRow[]>>()

  // @ts-expect-error no such relation of events
  portal.related({ ...common, name: 'X', path: ['owners'] })
  // @ts-expect-error no such relation of users
  portal.related({ ...common, name: 'X', path: ['owner', 'owner'] })
  // @ts-expect-error no such relation of avatars
  portal.related({ ...common, name: 'X', path: ['owner', 'avatars', 'owner'], single: true })
  // @ts-expect-error no such relation of users, after a hop
  portal.related({ ...common, name: 'X', path: [toUser, 'owner'] })
  // @ts-expect-error what users are related to is not known to a model that is not linked
  portal.related({ name: 'X', model: Event, keyFields: ['id'], path: ['owner', 'team'] })
  // @ts-expect-error neither a name nor a hop
  portal.related({ ...common, name: 'X', path: [1] })
})

test('a foreign key is an id or a row', async () => {
  const team = await Team.cache.getAsync({ id: 1 })
  const event = await Event.cache.getAsync({ id: 1 })
  void User.cache.filterAsync({ team_id: team })
  void User.cache.filterAsync({ team_id: null })
  void UsersOfTeam({ team_id: team })
  void UsersOfTeam({ team_id: { id: 3 } })
  void UsersOfTeam.peek({ team_id: team })
  void UsersOfTeam(3)
  // @ts-expect-error a row of what it has no key of
  void User.cache.filterAsync({ team_id: { slug: event.slug } })
  // @ts-expect-error not a foreign key
  void User.cache.getAsync({ id: team })
  // @ts-expect-error the key of the row is a number
  void UsersOfTeam({ team_id: { id: '3' } })
  portal.instance({
    name: 'X',
    model: User,
    keyFields: ['team_id'],
    loadOne: async (key) => {
      expectTypeOf(key.team_id).toEqualTypeOf<number | null>()
      return 1
    },
  })
})

test('extend adds methods of its own types', async () => {
  expectTypeOf(User.cache.ofTeam).toEqualTypeOf<(id: number) => Promise<readonly UserRow[]>>()
  expectTypeOf(User.cache.primaryAvatar(1)).toEqualTypeOf<Promise<string | null>>()
  // @ts-expect-error a text for a number
  void User.cache.ofTeam('1')
  portal.model('users', {
    keyFields,
    extend: (c) => ({
      // @ts-expect-error no field list has it
      bad: () => c.getAsync({ name: 'x' }),
    }),
  })
  // @ts-expect-error a method is a function
  portal.model('users', { keyFields, extend: () => ({ bad: 1 }) })
})

test('several models share helpers', async () => {
  const shared = <Result>(c: ModelCache<{ id: number }, never, Result>) => ({
    orNothing: async (id: number) => (await c.getAsyncOrNone({ id })) ?? 'nothing',
  })
  const Tag = portal.model('tags', {
    keyFields,
    extend: (c) => ({ ...shared(c), more: (n: number) => n + 1 }),
  })
  const Some = portal.model('teams', {
    keyFields,
    relations: { users: { many: 'users', on: { id: 'team_id' } } },
    extend: (c) => ({ ...shared(c) }),
  })
  expectTypeOf(Tag.cache.orNothing(1)).toEqualTypeOf<Promise<Row<PortalTables, 'tags'> | 'nothing'>>()
  expectTypeOf(Some.cache.orNothing(1)).toEqualTypeOf<Promise<TeamRow | 'nothing'>>()
  expectTypeOf(Tag.cache.more(1)).toEqualTypeOf<number>()
})

test('models that refer to each other: a method that leads back tells its type', async () => {
  const A = portal.model('teams', {
    keyFields,
    relations: { users: { many: 'users', on: { id: 'team_id' } } },
    extend: () => ({ first: (id: number): Promise<UserRow> => B.cache.getAsync({ id }) }),
  })
  const B = portal.model('users', {
    keyFields,
    relations: { team: { one: 'teams', on: { team_id: 'id' } } },
    extend: () => ({ home: (id: number) => A.cache.getAsync({ id }) }),
  })
  expectTypeOf(A.cache.first(1)).toEqualTypeOf<Promise<UserRow>>()
  expectTypeOf(B.cache.home(1)).toEqualTypeOf<Promise<TeamRow>>()
})

test('a batch has the types of its queries', async () => {
  const queries = {
    team: Team.cache.getQuery({ id: 1 }),
    users: User.cache.filterQuery({ name: 'x' }),
    avatar: PrimaryAvatar(1),
    nested: { list: [1, 2].map((id) => PrimaryAvatar(id)) },
  }
  expectTypeOf(await batch(queries)).toEqualTypeOf<{
    team: TeamRow
    users: readonly UserRow[]
    avatar: string | null
    nested: { list: (string | null)[] }
  }>()
  expectTypeOf(await batch(queries, { errors: 'throw', onlyCache: false })).toEqualTypeOf<
    Awaited<ReturnType<typeof batch<typeof queries>>>
  >()
  expectTypeOf((await batch(queries, { errors: 'null' })).team).toEqualTypeOf<TeamRow | null>()
  expectTypeOf((await batch(queries, { errors: 'return' })).team).toEqualTypeOf<TeamRow | Error>()
  const known = await batch(queries, { onlyCache: true })
  expectTypeOf(known.team).toEqualTypeOf<TeamRow | null | undefined>()
  expectTypeOf(known.users).toEqualTypeOf<readonly UserRow[] | undefined>()
  expectTypeOf(await batch([PrimaryAvatar(1), Team.cache.getQuery({ id: 1 })])).toEqualTypeOf<
    [string | null, TeamRow]
  >()
  expectTypeOf(openBatch({ errors: 'null' }).push(queries.team)).toEqualTypeOf<Promise<TeamRow | null>>()
  expectTypeOf(openBatch().push(queries.team)).toEqualTypeOf<Promise<TeamRow>>()
  // @ts-expect-error no query
  void batch({ team: 1 })
  // @ts-expect-error a promise is no query
  void batch({ team: Team.cache.getAsync({ id: 1 }) })
  // @ts-expect-error no such choice
  void batch(queries, { errors: 'ignore' })
  // @ts-expect-error no such option
  void batch(queries, { only_cache: true })
  // @ts-expect-error no query
  void openBatch().push(1)
})

test('a query may ask only the cache', () => {
  const query = Team.cache.getQuery({ id: 1 })
  expectTypeOf(query.resolveAsync({ onlyCache: true })).toEqualTypeOf<Promise<TeamRow | null | undefined>>()
  expectTypeOf(query.resolveAsync({ onlyCache: false })).toEqualTypeOf<Promise<TeamRow>>()
  expectTypeOf(query.resolveAsync({})).toEqualTypeOf<Promise<TeamRow>>()
})

test('an instance cache has rows with the relations that it names', async () => {
  const EventOnSlug = portal.instance({
    name: 'EventOnSlug',
    model: linked.Event,
    keyFields: ['slug'],
    with: ['tags', { owner: ['team'] }],
  })
  const event = await EventOnSlug('launch').resolveAsync()
  expectTypeOf(event?.owner?.team).toEqualTypeOf<TeamRow | null | undefined>()
  expectTypeOf(event?.tags).toEqualTypeOf<readonly Row<PortalTables, 'tags'>[] | undefined>()
  // @ts-expect-error its entries are those of the models
  EventOnSlug.prime({ slug: 'launch' }, null)
  // @ts-expect-error no such relation
  portal.instance({ name: 'Odd', model: linked.Event, keyFields: ['slug'], with: ['owners'] })
  // @ts-expect-error not with a load
  portal.instance({ name: 'Odd', model: Event, keyFields: ['slug'], with: ['owner'], loadOne: async () => 1 })
})
