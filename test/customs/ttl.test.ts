import { type Cache, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, expect, test } from 'vitest'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Portal, type PortalTables } from './portal.ts'

afterAll(closeRedis)

const HOUR = 3_600_000
const DAY = 24 * HOUR

let portal: Portal
beforeEach(async () => {
  portal = await (PLACES['Redis and Postgres'] as () => Promise<Portal>)()
})
afterEach(() => portal.close())

/** Asks Redis how long it goes on keeping a key; a tenth at most was taken off at random, and little time has passed. */
async function expectTtl(key: string, ms: number): Promise<number> {
  const left = await (portal.options.redis as unknown as { pttl(key: string): Promise<number> }).pttl(key)
  expect(left).toBeLessThanOrEqual(ms)
  expect(left).toBeGreaterThan(0.9 * ms - 60_000)
  return left
}

/** Values and absences of two models and of custom caches over the first, in the store. */
async function fill(cache: Cache<PortalTables>, ofUser: object, ofCustom: object) {
  const User = cache.model('users', { keyFields: [['id']], filterFields: [['team_id']], ...ofUser })
  const Team = cache.model('teams', { keyFields: [['id']] })
  const common = { model: User, keyFields: ['id'], ...ofCustom } as const
  const Name = cache.instance({
    ...common,
    name: 'Name',
    loadOne: async ({ id }) => (id > 6 ? null : `user ${id}`),
  })
  const Exists = cache.exists({ ...common, name: 'Exists' })
  await runInLoop(() =>
    Promise.all([
      ...[1, 9].flatMap((id) => [
        User.cache.getAsyncOrNone({ id }),
        User.cache.filterAsync({ team_id: id }),
        Team.cache.getAsyncOrNone({ id }),
        Name(id).resolveAsync(),
        Exists(id).resolveAsync(),
      ]),
    ]),
  )()
  await cache.idle()
  return {
    user: await User.cache.keyOf({ id: 1 }),
    noUser: await User.cache.keyOf({ id: 9 }),
    users: await User.cache.keyOf({ team_id: 1 }),
    noUsers: await User.cache.keyOf({ team_id: 9 }),
    team: await Team.cache.keyOf({ id: 1 }),
    noTeam: await Team.cache.keyOf({ id: 9 }),
    name: await Name.keyOf({ id: 1 }),
    noName: await Name.keyOf({ id: 9 }),
    exists: await Exists.keyOf({ id: 9 }),
  }
}

test('by default a week, and an hour for what is known not to exist, an empty list of rows included', async () => {
  const keys = await fill(portal.another(), {}, {})
  for (const key of [keys.user, keys.users, keys.team, keys.name, keys.exists]) await expectTtl(key, 7 * DAY)
  for (const key of [keys.noUser, keys.noUsers, keys.noTeam, keys.noName]) await expectTtl(key, HOUR)
})

test('that of the cache is for every model, that of a model for its custom caches', async () => {
  const keys = await fill(portal.another({ ttl: '2d' }), { ttl: '3d', negativeTtl: '10m' }, {})
  for (const key of [keys.user, keys.users, keys.name, keys.exists]) await expectTtl(key, 3 * DAY)
  for (const key of [keys.noUser, keys.noUsers, keys.noName]) await expectTtl(key, HOUR / 6)
  await expectTtl(keys.team, 2 * DAY)
  await expectTtl(keys.noTeam, HOUR)
})

test('a custom cache may have its own', async () => {
  const keys = await fill(portal.another(), { ttl: '3d' }, { ttl: '1d', negativeTtl: '5h' })
  await expectTtl(keys.user, 3 * DAY)
  for (const key of [keys.name, keys.exists]) await expectTtl(key, DAY)
  await expectTtl(keys.noName, 5 * HOUR)
})

test('absence is not kept for longer than values are', async () => {
  const keys = await fill(portal.another({ ttl: '30m' }), {}, { ttl: '20m' })
  for (const key of [keys.user, keys.noUser, keys.noTeam]) await expectTtl(key, HOUR / 2)
  for (const key of [keys.name, keys.noName]) await expectTtl(key, HOUR / 3)
})

test('what was filled together does not end together', async () => {
  const cache = portal.another()
  const User = cache.model('users', { keyFields: [['id']] })
  const ids = [1, 2, 3, 4, 5, 6]
  const read = runInLoop(() => Promise.all(ids.map((id) => User.cache.getAsync({ id }))))
  await expectTrips(cache, { mget: 1, acquire: 1, select: 1, fill: 1 }, read)
  await cache.idle()
  const ends = await Promise.all(ids.map(async (id) => expectTtl(await User.cache.keyOf({ id }), 7 * DAY)))
  // Of a tenth of a week, minutes apart: six equal ones come up once in 10^15 runs.
  expect(new Set(ends.map((ms) => Math.round(ms / 60_000))).size).toBeGreaterThan(1)
})
