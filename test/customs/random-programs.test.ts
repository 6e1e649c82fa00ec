import fc from 'fast-check'
import { sql } from 'kysely'
import { batch, type Cache, compressed, runInLoop } from 'loadstone'
import { afterAll, expect, test } from 'vitest'
import { closeRedis } from '../support/redis.ts'
import { declareModels, PLACES, type PortalTables } from './portal.ts'

afterAll(closeRedis)

/** Every kind of cache there is, and lookups of everything that the programs write to. */
function declareAll(cache: Cache<PortalTables>, models: ReturnType<typeof declareModels>) {
  const { Team, User, Avatar, Event, Tag, EventTag } = models
  const PrimaryAvatar = cache.instance({
    name: 'PrimaryAvatar',
    model: Avatar,
    keyFields: ['user_id'],
    loadOne: async ({ user_id }, { db }) =>
      (await db
        .selectFrom('avatars')
        .select(['id', 'url'])
        .where('user_id', '=', user_id)
        .where('is_primary', '=', true)
        .orderBy('id')
        .executeTakeFirst()) ?? null,
  })
  const AvatarsOfUser = cache.queryset({ name: 'AvatarsOfUser', model: Avatar, keyFields: ['user_id'] })
  const FirstAvatar = cache.queryset({
    name: 'FirstAvatar',
    model: Avatar,
    keyFields: ['user_id'],
    single: true,
  })
  const HasAvatar = cache.exists({ name: 'HasAvatar', model: Avatar, keyFields: ['user_id'] })
  const MembersOfTeam = cache.count({ name: 'MembersOfTeam', model: User, keyFields: ['team_id'] })
  const TagsOfEvent = cache.related({
    name: 'TagsOfEvent',
    model: Event,
    keyFields: ['slug'],
    path: [
      { model: EventTag, on: { id: 'event_id' } },
      { model: Tag, on: { tag_id: 'id' } },
    ],
  })
  const TeamOfEvent = cache.related({
    name: 'TeamOfEvent',
    model: Event,
    keyFields: ['id'],
    path: [
      { model: User, on: { owner_id: 'id' } },
      { model: Team, on: { team_id: 'id' } },
    ],
    single: true,
  })
  const MatesOfUser = cache.related({
    name: 'MatesOfUser',
    model: User,
    keyFields: ['id'],
    path: ['team', 'users'],
  })
  const KinOfEvent = cache.related({
    name: 'KinOfEvent',
    model: Event,
    keyFields: ['slug'],
    path: ['tags', 'events', { model: User, on: { owner_id: 'id' } }, 'avatars'],
  })
  const EventOnSlug = cache.instance({ name: 'EventOnSlug', model: Event, keyFields: ['slug'] })
  const UserOnEmail = cache.instance({ name: 'UserOnEmail', model: User, keyFields: ['email'] })
  const TagIds = cache.queryset({
    name: 'TagIds',
    model: EventTag,
    keyFields: ['event_id'],
    codec: compressed({ threshold: 0 }),
    async load(keys, { db }) {
      const ids = keys.map(({ event_id }) => event_id)
      const rows = await db
        .selectFrom('event_tags')
        .selectAll()
        .where('event_id', 'in', ids)
        .orderBy('tag_id')
        .execute()
      return ids.map((id) => rows.flatMap(({ event_id, tag_id }) => (event_id === id ? [tag_id] : [])))
    },
  })
  const Owner = cache.polymorphic({ type: 'type', id: 'id', to: { user: User, event: Event, tag: Tag } })
  const page = cache
    .plan<{ slug: string }>()
    .node('event', ['slug'], ({ slug }) => EventOnSlug(slug))
    .node('owner', ['event'], ({ event }) => Event.cache.relationQuery(event, 'owner'))
    .node('avatar', ['owner'], ({ owner }) => PrimaryAvatar(owner.id))
  const readAll = runInLoop(() =>
    Promise.all([
      ...[1, 2, 3].flatMap((n) => [
        User.cache.getAsyncOrNone({ id: n }),
        User.cache.getAsyncOrNone({ email: `u${n}@x` }),
        User.cache.filterAsync({ team_id: n }),
        Event.cache.getAsyncOrNone({ slug: `event-${n}` }),
        Event.cache.filterAsync({ owner_id: n }),
        EventTag.cache.filterAsync({ tag_id: n }),
        PrimaryAvatar(n).resolveAsync(),
        AvatarsOfUser(n).resolveAsync(),
        FirstAvatar(n).resolveAsync(),
        HasAvatar(n).resolveAsync(),
        MembersOfTeam(n).resolveAsync(),
        TagsOfEvent(`event-${n}`).resolveAsync(),
        TeamOfEvent(n).resolveAsync(),
        MatesOfUser(n).resolveAsync(),
        KinOfEvent(`event-${n}`).resolveAsync(),
        UserOnEmail(`u${n}@x`).resolveAsync(),
        TagIds(n).resolveAsync(),
        page.resolve({ slug: `event-${n}` }, ['event', 'owner', 'avatar']),
        ...(['user', 'event', 'tag'] as const).map((type) => Owner.lookup({ type, id: n })),
        User.cache.getAsyncOrNone({ id: n }, { with: ['team', 'avatars'] }),
        Event.cache.getAsyncOrNone(
          { slug: `event-${n}` },
          { with: ['tags', { owner: ['avatars', { team: [{ users: ['avatars'] }] }] }] },
        ),
        User.cache.filterAsync({ team_id: n }, { with: [{ team: ['users'] }] }),
        Tag.cache.getAsyncOrNone({ id: n }, { with: [{ events: ['owner', { tags: ['events'] }] }] }),
        batch(
          {
            team: Team.cache.getQuery({ id: n }, { with: [{ users: ['avatars'] }] }),
            avatars: AvatarsOfUser(n),
          },
          { errors: 'null' },
        ),
      ]),
      User.cache.filterAsync({ team_id: null }),
      MembersOfTeam(null).resolveAsync(),
    ]),
  )
  return { readAll }
}

/** Writes by two small numbers; some fail on a constraint, and then change nothing. */
const WRITES: readonly ((a: number, b: number) => string)[] = [
  (a, b) => `update users set team_id = nullif(${b}, 0) where id = ${a}`,
  (a, b) => `update users set name = 'name ${b}' where id = ${a}`,
  (a, b) => `update users set email = 'u${b}@x' where id = ${a}`,
  (a, b) =>
    `insert into users values (${a}, 'u${b}@x', null, 'new') on conflict (id) do update set name = 'again ${b}'`,
  (a) => `delete from users where id = ${a}`,
  (a, b) => `update avatars set user_id = ${b} where id = ${a}`,
  (a, b) => `update avatars set is_primary = not is_primary where id in (${a}, ${b})`,
  (a, b) => `insert into avatars (user_id, url, is_primary) values (${a}, 'url ${b}', ${b % 2 === 0})`,
  (a) => `delete from avatars where user_id = ${a}`,
  (a, b) => `update events set owner_id = nullif(${b}, 0) where id = ${a}`,
  (a, b) => `update events set slug = 'event-${b}' where id = ${a}`,
  (a, b) => `insert into event_tags values (${a}, ${b}) on conflict do nothing`,
  (a) => `delete from event_tags where event_id = ${a}`,
  (a, b) => `update event_tags set tag_id = ${b} where event_id = ${a}`,
  (a, b) => `update tags set name = 'tag ${a}.${b}' where id = ${a}`,
  (a) => `delete from tags where id = ${a}`,
  (a, b) => `insert into tags values (${a}, 'tag ${a}.${b}') on conflict do nothing`,
  (a, b) => `update teams set name = 'team ${b}' where id = ${a}`,
  () => 'truncate event_tags',
]

const write = fc
  .tuple(fc.constantFrom(...WRITES), fc.integer({ min: 1, max: 4 }), fc.integer({ min: 0, max: 4 }))
  .map(([make, a, b]) => make(a, b))
const step = fc.record({
  way: fc.constantFrom('through Kysely', 'elsewhere', 'in a transaction', 'rolled back'),
  writes: fc.array(write, { minLength: 1, maxLength: 3 }),
})

test.each(Object.entries(PLACES))(
  'random writes, in every way: all caches answer as they do without a store, on %s',
  async (_, openPortal) => {
    const portal = await openPortal()
    try {
      const { cache: cached, models } = portal
      const { readAll } = declareAll(cached, models)
      const plain = portal.another({ enabled: false })
      const { readAll: readPlain } = declareAll(plain, declareModels(plain))
      await cached.install()
      const run = async (statement: string) => void (await sql.raw(statement).execute(portal.db))
      const taken = {
        'through Kysely': async (writes: readonly string[]) => {
          for (const each of writes) await run(each).catch(() => undefined)
        },
        elsewhere: async (writes: readonly string[]) => {
          for (const each of writes) await portal.elsewhere(each).catch(() => undefined)
        },
        'in a transaction': async (writes: readonly string[]) => {
          await cached
            .transaction(async (trx) => {
              for (const each of writes) await sql.raw(each).execute(trx)
              await readAll()
            })
            .catch(() => undefined)
        },
        'rolled back': async (writes: readonly string[]) => {
          await cached
            .transaction(async (trx) => {
              for (const each of writes) await sql.raw(each).execute(trx)
              throw new Error('rolled back')
            })
            .catch(() => undefined)
        },
      }
      await fc.assert(
        fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 8 }), async (program) => {
          for (const { way, writes } of program) {
            await readAll()
            await taken[way](writes)
            expect(await readAll()).toEqual(await readPlain())
          }
        }),
        { numRuns: 25, endOnFailure: true },
      )
      const { hits, storeErrors } = cached.stats()
      expect(hits).toBeGreaterThan(100)
      expect(storeErrors).toBe(0)
    } finally {
      await portal.close()
    }
  },
  120_000,
)
