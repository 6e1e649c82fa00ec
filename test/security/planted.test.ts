import { Kysely, PostgresDialect } from 'kysely'
import { createModelCache, runInLoop, withInvalidation } from 'loadstone'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { relayKey } from '../../src/models/key.ts'
import { createTestDatabase, type TestDatabase } from '../support/database.ts'
import { mutate, randomFrom } from '../support/mutations.ts'
import { closeRedis, testRedis } from '../support/redis.ts'

interface Tables {
  notes: { id: number; title: string; body: unknown }
}

const COUNT = 400
const ids = Array.from({ length: COUNT }, (_, i) => i + 1)

afterAll(closeRedis)

describe('what somebody else has put into Redis', () => {
  let database: TestDatabase
  let db: Kysely<Tables>
  beforeEach(async () => {
    database = await createTestDatabase()
    await database.pool.query(`create table notes (id int primary key, title text not null, body jsonb);
      insert into notes select i, 'note ' || i, jsonb_build_object('i', i, 'é', array[i]) from generate_series(1, ${COUNT}) i`)
    db = new Kysely<Tables>({ dialect: withInvalidation(new PostgresDialect({ pool: database.pool })) })
  })
  afterEach(() => database.drop())

  function open() {
    const { redis, namespace } = testRedis()
    const cache = createModelCache<Tables>({ db, redis, namespace, storeTimeout: '5s', relay: false })
    const Note = cache.model('notes', { keyFields: [['id']], filterFields: [['title']] })
    const all = runInLoop(() => Promise.all(ids.map((id) => Note.cache.getAsync({ id }))))
    return { redis, namespace, cache, Note, all }
  }

  test('mutated entries: rows of the right form or SQL, and never a failed lookup', async () => {
    const { redis, cache, Note, all } = open()
    const rows = await all()
    await cache.idle()
    const keys = await Promise.all(ids.map((id) => Note.cache.keyOf({ id })))
    const records = (await redis.mgetBuffer(keys)) as Buffer[]
    expect(records.every((record) => record !== null)).toBe(true)
    const random = randomFrom(5)
    for (let round = 0; round < 5; round++) {
      const mutated = records.map((record) => mutate(record, records, random, 18))
      await redis.mset(keys.flatMap((key, i) => [key, mutated[i] as Buffer]))
      const answers = await all()
      for (const answer of answers) expect(Object.keys(answer)).toEqual(['id', 'title', 'body'])
      await cache.idle()
    }
    expect(cache.stats().damaged).toBeGreaterThan(COUNT)
    expect(cache.stats().sourceErrors).toBe(0)
    await Note.cache.clear()
    expect(await all()).toEqual(rows)
    await cache.close()
  })

  test('other types of keys: taken over, and the cache goes on', async () => {
    const { redis, namespace, cache, Note, all } = open()
    await cache.install()
    const rows = await all()
    await cache.idle()
    const keys = await redis.keys(`${namespace}:*`)
    // The entries and the marks.
    expect(keys).toHaveLength(COUNT + 1)
    for (const [i, key] of keys.entries()) {
      await redis.del(key)
      if (i % 3 === 0) await redis.hset(key, 'field', 'value')
      else if (i % 3 === 1) await redis.rpush(key, 'item')
      else await redis.zadd(key, 1, 'member')
    }
    expect(await all()).toEqual(rows)
    await cache.idle()
    const { hits } = cache.stats()
    expect(await all()).toEqual(rows)
    expect(cache.stats().hits - hits).toBe(COUNT)
    // A relay can be elected as well.
    await redis.hset(relayKey(namespace), 'field', 'value')
    expect(await insidesOf(cache).store.lead(relayKey(namespace), 'me', 1000)).toBe(true)
    await db.updateTable('notes').set({ title: 'new' }).where('id', '=', 1).execute()
    expect((await Note.cache.getAsync({ id: 1 })).title).toBe('new')
    await cache.close()
  })
})
