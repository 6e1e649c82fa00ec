import { readFileSync } from 'node:fs'
import { Redis } from 'ioredis'
import { Redis as Redis5 } from 'ioredis-5'
import { Kysely, PostgresDialect } from 'kysely'
import { createModelCache, type Finding, runInLoop, withInvalidation } from 'loadstone'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import type { RedisClient } from '../../src/stores/redis.ts'
import { startRedis } from '../servers/redis.ts'
import type { Server } from '../servers/server.ts'
import { createTestDatabase, type TestDatabase } from '../support/database.ts'

interface Tables {
  users: { id: number; name: string }
  sums: { id: number; name: string }
}

const DOCS = readFileSync(new URL('../../docs/security.md', import.meta.url), 'utf8')
/** As documented, word by word. */
const RULES = (/^ACL SETUSER loadstone (.*)$/m.exec(DOCS)?.[1] ?? '').split(' ')
const COMMANDS = RULES.filter((rule) => rule.startsWith('+')).map((rule) => rule.slice(1))

let server: Server
let admin: Redis
let database: TestDatabase
beforeAll(async () => {
  server = await startRedis()
  admin = new Redis(server.url)
  database = await createTestDatabase()
  await database.pool.query(`create table users (id int primary key, name text not null);
    create table sums (id int primary key, name text not null)`)
})
afterAll(async () => {
  await database.drop()
  admin.disconnect()
  await server.stop()
})
beforeEach(async () => {
  await admin.flushall()
  await admin.call('ACL', 'SETUSER', 'loadstone', 'reset', ...RULES)
  await admin.call('ACL', 'LOG', 'RESET')
  await database.pool.query(`drop schema if exists loadstone cascade; truncate users, sums;
    insert into users values (1, 'Ada'), (2, 'Grace'); insert into sums values (1, 'one')`)
})
afterEach(() => admin.call('ACL', 'DELUSER', 'loadstone'))

const CLIENTS: Record<string, (port: number) => RedisClient> = {
  'ioredis 6': (port) => quiet(new Redis(port, { ...USER, lazyConnect: true })),
  'ioredis 5': (port) => quiet(new Redis5(port, { ...USER, lazyConnect: true })),
}
const USER = { username: 'loadstone', password: 'secret', disableClientInfo: true }

function quiet<Client extends { on(event: 'error', listener: () => void): unknown }>(client: Client): Client {
  client.on('error', () => {})
  return client
}

async function open(redis: RedisClient, namespace = 'shop') {
  const db = new Kysely<Tables>({
    dialect: withInvalidation(new PostgresDialect({ pool: database.pool })),
  })
  const cache = createModelCache<Tables>({ db, redis, namespace, storeTimeout: '5s', relay: false })
  const User = cache.model('users', { keyFields: [['id']], filterFields: [['name']] })
  const Sum = cache.model('sums', { keyFields: [['id']], consistency: 'strict', onRedisDown: 'proceed' })
  const Count = cache.count({
    name: 'Count',
    model: User,
    keyFields: ['name'],
    invalidation: 'mark-stale',
    staleFor: '1h',
  })
  onTestFinished(() => cache.close())
  await cache.install()
  return { db, cache, User, Sum, Count }
}

/** Every denial that the server has noted. */
async function denials(): Promise<string[]> {
  const log = (await admin.call('ACL', 'LOG')) as unknown[][]
  return log.map((entry) => entry.map(String).join(' '))
}

const failed = (findings: readonly Finding[]) =>
  findings.filter(({ area, status, finding }) => {
    return area === 'store' && status !== 'ok' && !finding.startsWith('a round trip')
  })

describe.each(Object.entries(CLIENTS))(
  'a Redis user with exactly the rights of docs/security.md, %s',
  (_, client) => {
    test('can do all there is to do, and is refused nothing', async () => {
      const { db, cache, User, Sum, Count } = await open(client(server.port))
      const look = runInLoop(() =>
        Promise.all([
          User.cache.getAsync({ id: 1 }),
          User.cache.filterAsync({ name: 'Ada' }),
          User.cache.getAsyncOrNone({ id: 99 }),
          Sum.cache.getAsync({ id: 1 }),
          Count({ name: 'Ada' }).resolveAsync(),
        ]),
      )
      const first = await look() // misses and fills
      await cache.idle()
      expect(await look()).toEqual(first)
      expect(cache.stats()).toMatchObject({ hits: 4, absents: 1, storeErrors: 0 })

      // Clears, marks stale, intents.
      await db.updateTable('users').set({ name: 'Eve' }).where('id', '=', 1).execute()
      await db.updateTable('sums').set({ name: 'two' }).where('id', '=', 1).execute()
      const [user, , , sum, count] = await look()
      expect([user.name, sum.name, count]).toEqual(['Eve', 'two', 1])
      await cache.idle()
      await admin.script('FLUSH')
      await User.cache.clear()
      await look()
      await cache.idle()

      const { store, relay } = insidesOf(cache)
      expect(await store.lead('shop:~relay', 'me', 1000)).toBe(true)
      await database.pool.query("update users set name = 'Zoe' where id = 1")
      expect(await relay.turn(0)).toBe(1)
      expect((await look())[0].name).toBe('Zoe')

      await cache.idle()
      expect(await cache.verify({ settleMs: 0 })).toMatchObject({ stale: 0 })
      expect(failed(await cache.doctor())).toEqual([])
      expect(cache.stats().storeErrors).toBe(0)
      expect(await denials()).toEqual([])
    })

    test.each(COMMANDS)(
      'without %s: doctor names it, SQL answers, and nothing stale is given',
      async (command) => {
        await admin.call('ACL', 'SETUSER', 'loadstone', `-${command}`)
        const { db, cache, User } = await open(client(server.port))
        const look = runInLoop(async () => (await User.cache.getAsync({ id: 1 })).name)
        expect(await look()).toBe('Ada')
        await cache.idle()
        expect(await look()).toBe('Ada')
        await db.updateTable('users').set({ name: 'Eve' }).where('id', '=', 1).execute()
        expect(await look()).toBe('Eve')
        await cache.idle()
        expect(await look()).toBe('Eve')
        const [finding, ...others] = failed(await cache.doctor())
        expect(others).toEqual([])
        expect(finding).toMatchObject({
          status: command === 'scan' ? 'warn' : 'fail',
          cure: `ACL SETUSER <user> +${command}; docs/security.md has all that is needed`,
        })
      },
    )
  },
)

test('a user of one namespace cannot read, fill or forget in another one', async () => {
  const { cache, User } = await open(CLIENTS['ioredis 6']?.(server.port) as RedisClient, 'other')
  const look = runInLoop(async () => (await User.cache.getAsync({ id: 1 })).name)
  expect(await look()).toBe('Ada')
  await cache.idle()
  expect(await look()).toBe('Ada')
  expect(await admin.keys('*')).toEqual([])
  expect(failed(await cache.doctor())).toEqual([
    expect.objectContaining({
      cure: 'ACL SETUSER <user> ~other:~marks* ~other:users:* ~other:sums:*; docs/security.md has all that is needed',
    }),
  ])
})

test('rights that are given later are noticed without a restart', async () => {
  await admin.call('ACL', 'SETUSER', 'loadstone', '-del')
  const { cache } = await open(CLIENTS['ioredis 6']?.(server.port) as RedisClient)
  const { store } = insidesOf(cache)
  await expect(store.getMany(['shop:x'])).rejects.toThrow('its user lacks rights in scripts: del')
  await admin.call('ACL', 'SETUSER', 'loadstone', '+del')
  await expect
    .poll(() => store.getMany(['shop:x']).catch(() => 'not yet'), { timeout: 10_000 })
    .toEqual([null])
})
