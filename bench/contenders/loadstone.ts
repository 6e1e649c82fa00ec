import { AsyncLocalStorage } from 'node:async_hooks'
import { Redis } from 'ioredis'
import { createModelCache, runInLoop } from '../../src/index.ts'
import type { Prepare } from '../contender.ts'
import { TABLES } from '../data.ts'
import { openDatabase } from './database.ts'

export const prepare: Prepare = async ({ redisUrl, databaseUrl }) => {
  const redis = new Redis(redisUrl)
  const db = openDatabase(databaseUrl)
  // The deadline is far off, so that a busy machine does not turn warm lookups into SQL. It costs the same.
  const cache = createModelCache({ db, redis, namespace: 'bench', storeTimeout: '2s' })
  const models = TABLES.map((table) =>
    cache.model(table, { keyFields: [['id'], ['email']], filterFields: [['org_id'], ['org_id', 'role']] }),
  )
  const [User] = models as [(typeof models)[number]]
  const loadAll = (ids: readonly number[]) => Promise.all(ids.map((id) => User.cache.getAsync({ id })))
  const nothing = runInLoop(() => {})

  return {
    rows: runInLoop(loadAll),
    mixed: runInLoop((ids) =>
      Promise.all(models.flatMap((model) => ids.map((id) => model.cache.getAsync({ id })))),
    ),
    lists: runInLoop((orgs) => Promise.all(orgs.map((org_id) => User.cache.filterAsync({ org_id })))),
    async known(ids) {
      const inScope = runInLoop(() => AsyncLocalStorage.snapshot())()
      await inScope(loadAll, ids)
      return {
        load: (wanted) => inScope(loadAll, wanted),
        peek: (wanted) => inScope(() => wanted.map((id) => User.cache.peek({ id }))),
      }
    },
    emptyRequests(count) {
      for (let i = 0; i < count; i++) nothing()
    },
    async idle() {
      await cache.idle()
      const { storeErrors, sourceErrors } = cache.stats()
      if (storeErrors + sourceErrors > 0)
        throw new Error(`${storeErrors} store and ${sourceErrors} source errors`)
    },
    async close() {
      await cache.close()
      redis.disconnect()
      await db.destroy()
    },
  }
}
