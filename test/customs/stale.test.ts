import { OptionError, runInLoop } from 'loadstone'
import { expectTrips, holdSteps } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { staleKeyOf } from '../../src/models/key.ts'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Portal } from './portal.ts'

afterAll(closeRedis)

const COLD = { mget: 1, acquire: 1, fill: 1 }
const WARM = { mget: 1 }
const inScope = <Result>(fn: () => Promise<Result>) => runInLoop(fn)()

describe.each(Object.entries(PLACES))("invalidation: 'mark-stale', on %s", (_place, openPortal) => {
  let portal: Portal
  beforeEach(async () => {
    portal = await openPortal()
  })
  afterEach(() => portal.close())

  /** A count of avatars, and the team of an event, both marked stale by writes. */
  async function marked() {
    const { cache, models } = portal
    const AvatarCount = cache.count({
      name: 'AvatarCount',
      model: models.Avatar,
      keyFields: ['user_id'],
      invalidation: 'mark-stale',
      staleFor: '1m',
    })
    const OwnerOfEvent = cache.related({
      name: 'OwnerOfEvent',
      model: models.Event,
      keyFields: ['slug'],
      path: [{ model: models.User, on: { owner_id: 'id' } }],
      single: true,
      invalidation: 'mark-stale',
      staleFor: '1m',
    })
    await cache.install()
    const settled = async <Result>(fn: () => Promise<Result>) => {
      const result = await inScope(fn)
      await cache.idle()
      return result
    }
    return {
      AvatarCount,
      count: (id: number) => settled(() => AvatarCount(id).resolveAsync()),
      owner: (slug: string) => settled(async () => (await OwnerOfEvent(slug).resolveAsync())?.name),
    }
  }

  test('after a write, the old answer is given at once, one loads anew, and then the new one is given', async () => {
    const { count } = await marked()
    expect(await count(1)).toBe(2)
    await portal.elsewhere('delete from avatars where id = 1')
    expect(await expectTrips(portal.cache, { ...COLD, load: 1 }, () => count(1))).toBe(2)
    expect(await expectTrips(portal.cache, WARM, () => count(1))).toBe(1)
    expect(portal.cache.stats()).toMatchObject({ stale: 1 })
  })

  test('no longer than staleFor: then whoever asks waits for the new one', async () => {
    const cache = portal.another()
    const Team = cache.model('teams', { keyFields: [['id']], invalidation: 'mark-stale', staleFor: '20ms' })
    await cache.install()
    const read = () => inScope(() => Team.cache.getAsync({ id: 1 }).then(({ name }) => name))
    await expectTrips(cache, { ...COLD, select: 1 }, read)
    await portal.db.updateTable('teams').set({ name: 'A' }).where('id', '=', 1).execute()
    const stale = staleKeyOf(await Team.cache.keyOf({ id: 1 }))
    const { store } = insidesOf(cache)
    await expect.poll(() => store.getMany([stale]), { interval: 5 }).toEqual([null])
    expect(await expectTrips(cache, { ...COLD, select: 1 }, read)).toBe('A')
    expect(cache.stats().stale).toBe(0)
  })

  test('only the holder of the lease loads: the others are answered, and do not wait', async () => {
    const { AvatarCount, count } = await marked()
    await count(1)
    await portal.elsewhere('delete from avatars where id = 1')
    const steps = holdSteps(portal.cache)
    const first = inScope(() => AvatarCount(1).resolveAsync())
    await steps.take('getMany')
    expect(await first).toBe(2)
    await steps.take('acquire')
    const load = await steps.next('load')
    // Somebody else comes while it loads.
    const second = inScope(() => AvatarCount(1).resolveAsync())
    await steps.take('getMany')
    expect(await second).toBe(2)
    expect(steps.held).toEqual([load])
    steps.release()
    await portal.cache.idle()
    expect(await count(1)).toBe(1)
  })

  test('a write while one loads: what is loaded by then is not kept, and another one loads', async () => {
    const { AvatarCount, count } = await marked()
    await count(1)
    await portal.elsewhere('delete from avatars where id = 1')
    const steps = holdSteps(portal.cache)
    await Promise.all([inScope(() => AvatarCount(1).resolveAsync()), steps.take('getMany')])
    await steps.take('acquire')
    await steps.take('load')
    const fill = await steps.next('fill')
    await portal.elsewhere('delete from avatars where id = 2')
    await fill.take()
    steps.release()
    await portal.cache.idle()
    expect(await count(1)).toBe(2) // the last one that was stored
    expect(await count(1)).toBe(0)
  })

  test('a known absence is marked as well', async () => {
    const { owner } = await marked()
    expect(await owner('event-4')).toBeUndefined()
    await portal.elsewhere('update events set owner_id = 5 where id = 4')
    expect(await owner('event-4')).toBeUndefined()
    expect(await owner('event-4')).toBe('user 5')
  })

  test('a related row that is written marks what is made of it', async () => {
    const { owner } = await marked()
    expect(await owner('event-1')).toBe('user 1')
    await portal.db.updateTable('users').set({ name: 'Ada' }).where('id', '=', 1).execute()
    expect(await owner('event-1')).toBe('user 1')
    expect(await owner('event-1')).toBe('Ada')
  })

  test('rows of a model may be marked too; what is not declared so is deleted', async () => {
    const cache = portal.another()
    const Team = cache.model('teams', { keyFields: [['id']], invalidation: 'mark-stale', staleFor: '1m' })
    const User = cache.model('users', { keyFields: [['id']] })
    await cache.install()
    const read = async () => {
      const names = await inScope(() =>
        Promise.all([
          Team.cache.getAsync({ id: 1 }).then(({ name }) => name),
          User.cache.getAsync({ id: 1 }).then(({ name }) => name),
        ]),
      )
      await cache.idle()
      return names
    }
    expect(await read()).toEqual(['team 1', 'user 1'])
    await portal.db.updateTable('teams').set({ name: 'A' }).where('id', '=', 1).execute()
    await portal.db.updateTable('users').set({ name: 'B' }).where('id', '=', 1).execute()
    expect(await read()).toEqual(['team 1', 'B'])
    expect(await read()).toEqual(['A', 'B'])
  })

  test('invalidate and clear forget what is stale too, and so does a TRUNCATE', async () => {
    const { AvatarCount, count } = await marked()
    for (const forget of [
      () => AvatarCount.invalidate({ user_id: 1 }),
      () => portal.models.Avatar.cache.invalidate({ user_id: 1 }),
      () => portal.models.Avatar.cache.clear(),
    ]) {
      await count(1)
      await portal.elsewhere('update avatars set is_primary = not is_primary where id = 1')
      await forget()
      await expectTrips(portal.cache, { ...COLD, load: 1 }, () => count(1))
      expect(portal.cache.stats().stale).toBe(0)
    }
    await portal.elsewhere('truncate avatars')
    expect(await count(1)).toBe(0)
  })

  test('inside a transaction, nothing stale is given', async () => {
    const { AvatarCount, count } = await marked()
    await count(1)
    await portal.cache.transaction(async (trx) => {
      await trx.deleteFrom('avatars').where('user_id', '=', 1).execute()
      expect(await AvatarCount(1).resolveAsync()).toBe(0)
    })
    expect(await count(1)).toBe(2)
    expect(await count(1)).toBe(0)
  })

  test('answers tell where they came from, how old they are, and whether they are stale', async () => {
    const { AvatarCount, count } = await marked()
    const { User } = portal.models
    const began = Date.now()
    const look = () =>
      inScope(async () => {
        expect(AvatarCount.metaOf({ user_id: 1 })).toBeUndefined()
        await Promise.all([
          AvatarCount(1).resolveAsync(),
          User.cache.getAsync({ id: 1 }),
          User.cache.getAsyncOrNone({ id: 99 }),
          User.cache.filterAsync({ team_id: 1 }),
        ])
        const metas = [
          AvatarCount.metaOf({ user_id: 1 }),
          User.cache.metaOf({ id: 1 }),
          User.cache.metaOf({ id: 99 }),
          User.cache.metaOf({ team_id: 1 }),
        ]
        for (const meta of metas) {
          expect(meta?.ageMs).toBeGreaterThanOrEqual(0)
          expect(meta?.ageMs).toBeLessThanOrEqual(Date.now() - began)
        }
        return metas.map((meta) => (meta?.stale ? 'stale' : meta?.source))
      })
    expect(await look()).toEqual(['sql', 'sql', 'sql', 'sql'])
    await portal.cache.idle()
    expect(await look()).toEqual(['store', 'store', 'store', 'store'])
    await portal.elsewhere('delete from avatars where id = 1')
    expect(await look()).toEqual(['stale', 'store', 'store', 'store'])
    await portal.cache.idle()
    expect(await count(1)).toBe(1)
    await inScope(async () => {
      User.cache.prime({ id: 2 }, null)
      expect(User.cache.metaOf({ id: 2 })).toMatchObject({ source: 'primed', stale: false })
      // An age is that of the data, not of the scope.
      await User.cache.getAsync({ id: 1 })
      const first = User.cache.metaOf({ id: 1 })?.ageMs as number
      await new Promise((resolve) => setTimeout(resolve, 15))
      expect(User.cache.metaOf({ id: 1 })?.ageMs).toBeGreaterThan(first)
    })
  })

  test("'off': writes change nothing, and nothing is recorded", async () => {
    const cache = portal.another({ namespace: 'off' })
    const Team = cache.model('teams', { keyFields: [['id']], invalidation: 'off' })
    const changes = await cache.install()
    expect(changes.filter((line) => line.includes('teams'))).toEqual([])
    await cache.ready()
    const read = async () => (await inScope(() => Team.cache.getAsync({ id: 1 }))).name
    await expectTrips(cache, { ...COLD, select: 1 }, read)
    await portal.db.updateTable('teams').set({ name: 'A' }).where('id', '=', 1).execute()
    expect(await expectTrips(cache, WARM, read)).toBe('team 1')
    await Team.cache.invalidate({ id: 1 })
    expect(await expectTrips(cache, { ...COLD, select: 1 }, read)).toBe('A')
    await cache.clear()
  })
})

test('wrong options are refused, by name', async () => {
  const portal = await (PLACES['in-process store and PGlite'] as () => Promise<Portal>)()
  try {
    const { cache } = portal
    const declare = (meta: object) => () => cache.model('other' as 'teams', { keyFields: [['id']], ...meta })
    expect(declare({ invalidation: 'never' })).toThrow(
      /'other.invalidation' must be 'delete', 'off' or 'mark-stale'/,
    )
    expect(declare({ invalidation: 'mark-stale' })).toThrow(/'other.staleFor'/)
    expect(declare({ staleFor: '1m' })).toThrow(OptionError)
    expect(declare({ invalidation: 'off', consistency: 'strict' })).toThrow(/'delete' for a strict model/)
  } finally {
    await portal.close()
  }
})
