import { runInLoop } from 'loadstone'
import { afterAll, expect, test } from 'vitest'
import { closeRedis } from '../support/redis.ts'
import { PLACES } from './portal.ts'

afterAll(closeRedis)

test.each(Object.entries(PLACES))(
  'verify finds stale entries of custom caches, on %s',
  async (_, openPortal) => {
    const portal = await openPortal()
    try {
      const { cache, models, elsewhere } = portal
      const common = { model: models.Avatar, keyFields: ['user_id'] } as const
      const caches = [
        cache.count({ name: 'AvatarCount', ...common }),
        cache.exists({ name: 'HasAvatar', ...common }),
        cache.queryset({ name: 'FirstAvatar', ...common, single: true }),
        cache.instance({ name: 'Loaded', ...common, loadOne: async ({ user_id }) => `of ${user_id}` }),
      ]
      const OwnerOfEvent = cache.related({
        name: 'OwnerOfEvent',
        model: models.Event,
        keyFields: ['id'],
        path: [{ model: models.User, on: { owner_id: 'id' } }],
        single: true,
      })
      await cache.install()
      const fill = async () => {
        await runInLoop(() =>
          Promise.all([
            ...[1, 2, 6].flatMap((id) => caches.map((each) => each(id).resolveAsync() as Promise<unknown>)),
            ...[1, 4].map((id) => OwnerOfEvent(id).resolveAsync()),
          ]),
        )()
        await cache.idle()
      }
      const verify = () => cache.verify({ settleMs: 0, sample: Number.POSITIVE_INFINITY, repair: true })
      await fill()
      expect(await verify()).toMatchObject({ checked: 11, stale: 0 })

      // Nobody is told of these writes.
      await elsewhere(`
      set session_replication_role = replica;
      delete from avatars where user_id = 1;
      update users set name = 'Ada' where id = 1;
      reset session_replication_role`)
      const report = await verify()
      expect(report).toMatchObject({ checked: 11, stale: 4, repaired: 4 })
      expect(await verify()).toMatchObject({ checked: 7, stale: 0 })
      await fill()
      expect(await verify()).toMatchObject({ checked: 11, stale: 0 })
    } finally {
      await portal.close()
    }
  },
)
