import { sql } from 'kysely'
import { createModelCache, runInLoop } from 'loadstone'
import { Client } from 'pg'
import { afterAll, afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { startRedis } from '../servers/redis.ts'
import { closeRedis, testRedis } from '../support/redis.ts'
import { type Company, onServers, PLACES } from './company.ts'

afterAll(closeRedis)

let company: Company
afterEach(() => company.close())

const nameOf = runInLoop(async (id: number) => (await company.Person.cache.getAsync({ id })).name)

async function backlog(): Promise<number> {
  const { rows } = await sql<{ n: string }>`select count(*)::text as n from loadstone.outbox`.execute(
    company.db,
  )
  return Number(rows[0]?.n)
}

/** Turns the relay by hand, without its pauses. */
const relay = () => insidesOf(company.cache).relay.turn(0)

describe.each(Object.entries(PLACES))('the relay, on %s', (_place, openCompany) => {
  beforeEach(async () => {
    company = await openCompany()
    await nameOf(1)
    await company.cache.idle()
  })

  test('applies what other programs wrote', async () => {
    await company.foreign(`update people set name = 'Ada' where id = 1`)
    expect(await nameOf(1)).toBe('person 1')
    expect(await relay()).toBe(1)
    expect(await nameOf(1)).toBe('Ada')
    expect(await backlog()).toBe(0)
  })

  test('takes away the lease of a slow reader', async () => {
    await company.foreign(`update people set name = 'Ada' where id = 1`)
    await relay()
    const { store } = insidesOf(company.cache)
    const key = `${company.options.namespace}:people:id:1`
    const { lease } = await store.acquire([key], [0], 60_000)
    await company.foreign(`update people set name = 'Grace' where id = 1`)
    await relay()
    expect(await store.fill(lease, [{ key, schema: 0, payload: Buffer.from('old'), ttlMs: 60_000 }])).toBe(0)
    expect(await nameOf(1)).toBe('Grace')
  })

  test('leaves young rows to whoever wrote them', async () => {
    await company.foreign(`update people set name = 'Ada' where id = 1`)
    const { relay: turned } = insidesOf(company.cache)
    expect(await turned.turn(60_000)).toBe(0)
    expect(await backlog()).toBe(1)
  })

  test('works through its own rows beside those of a namespace that nobody serves', async () => {
    const unserved = createModelCache({ ...company.options, namespace: 'unserved', relay: false })
    unserved.model('people', { keyFields: [['id']] })
    await unserved.install()
    await company.foreign(`update people set name = 'Ada' where id = 1`)
    expect([await relay(), await relay()]).toEqual([1, 0])
    await company.foreign(`update people set name = 'Grace' where id = 1`)
    expect([await relay(), await relay()]).toEqual([1, 0])
    expect(await backlog()).toBe(2)
    await unserved.close()
  })

  test('applies rows of a model that this process does not declare', async () => {
    const stranger = createModelCache({ ...company.options, relay: false })
    const { relay: turned } = insidesOf(stranger)
    await company.foreign(`update people set name = 'Ada' where id = 1`)
    expect(await turned.turn(0)).toBe(1)
    // Its in-process store is another one.
    if (company.options.redis) expect(await nameOf(1)).toBe('Ada')
    await stranger.close()
  })

  test('applies rows once more when it was stopped between the store and the outbox', async () => {
    await company.foreign(`
      create function stop() returns trigger language plpgsql as $$ begin raise exception 'stopped'; end $$;
      create trigger stop before delete on loadstone.outbox execute function stop();
      update people set name = 'Ada' where id = 1`)
    await expect(relay()).rejects.toThrow('stopped')
    expect([await nameOf(1), await backlog()]).toEqual(['Ada', 1])
    await company.foreign('drop trigger stop on loadstone.outbox')
    expect(await relay()).toBe(1)
    expect(await backlog()).toBe(0)
  })
})

describe('the relay, by itself', () => {
  test('finds the rows of a transaction that began before others and ends after they were applied', async () => {
    company = await onServers()
    await nameOf(2)
    const slow = new Client({ connectionString: company.databaseUrl })
    await slow.connect()
    try {
      await slow.query(`begin; update people set name = 'Grace' where id = 2`)
      await company.foreign(`update people set name = 'Ada' where id = 1`)
      expect([await relay(), await relay()]).toEqual([1, 0])
      await slow.query('commit')
      expect(await relay()).toBe(1)
      expect(await nameOf(2)).toBe('Grace')
    } finally {
      await slow.end()
    }
  })

  test('makes a write of psql visible within 200 ms, at defaults', async () => {
    company = await onServers({ relay: {} })
    await nameOf(1)
    await company.foreign(`update people set name = 'warmed up' where id = 1`)
    await vi.waitFor(async () => expect(await nameOf(1)).toBe('warmed up'), { timeout: 5000, interval: 10 })
    const delays: number[] = []
    for (let i = 0; i < 5; i++) {
      await company.foreign(`update people set name = 'name ${i}' where id = 1`)
      const written = performance.now()
      await vi.waitFor(async () => expect(await nameOf(1)).toBe(`name ${i}`), { timeout: 5000, interval: 1 })
      delays.push(performance.now() - written)
    }
    // The fastest tells what the pauses add up to, even where this machine is busy with other things.
    expect(Math.min(...delays)).toBeLessThan(200)
    expect(company.cache.stats().relayed).toBeGreaterThanOrEqual(6)
  })

  test('works in one process at a time; another takes over when it ends', async () => {
    company = await onServers({ relay: { election: '100ms' } })
    const second = company.another()
    const both = [company.cache, second.cache] as const
    const before = both.map((cache) => cache.stats().relayed)
    const gained = () => both.map((cache, i) => cache.stats().relayed - (before[i] as number))
    for (let i = 1; i <= 3; i++) {
      await company.foreign(`update people set name = 'name ${i}' where id = 1`)
      await vi.waitFor(() => expect(sum(gained())).toBe(i), { timeout: 5000 })
    }
    // All of them by one, and nothing by the other.
    expect([...gained()].sort()).toEqual([0, 3])
    const [leader, follower] = gained()[0] === 3 ? both : ([both[1], both[0]] as const)
    const had = follower.stats().relayed
    await leader.close()
    await company.foreign(`update people set name = 'Grace' where id = 1`)
    await vi.waitFor(() => expect(follower.stats().relayed).toBe(had + 1), { timeout: 5000 })
  })

  test('goes on when all its connections are killed', async () => {
    company = await onServers({ relay: { election: '100ms' } })
    await nameOf(1)
    await company.foreign(
      'select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()',
    )
    await company.foreign(`update people set name = 'Grace' where id = 1`)
    await vi.waitFor(async () => expect(await nameOf(1).catch(() => 'no connection')).toBe('Grace'), {
      timeout: 5000,
    })
  })

  test('keeps the debt while Redis is away, and pays it when Redis is back', async () => {
    const server = await startRedis()
    try {
      const { redis, namespace } = testRedis({ url: server.url, retryStrategy: () => 50 })
      redis.on('error', () => {})
      company = await onServers({ redis, namespace, relay: { poll: '20ms', grace: '10ms' } })
      expect(await nameOf(1)).toBe('person 1')
      await company.cache.idle()
      await server.kill()
      // The write goes on: what it owes stands in the outbox.
      await company.db.updateTable('people').set({ name: 'Ada' }).where('id', '=', 1).execute()
      expect(company.cache.stats().deferred).toBe(1)
      expect(await nameOf(1)).toBe('Ada')
      await vi.waitFor(() => expect(company.cache.stats().relayErrors).toBeGreaterThan(0), { timeout: 5000 })
      expect(await backlog()).toBe(1)
      await server.restart()
      await vi.waitFor(async () => expect(await backlog()).toBe(0), { timeout: 10_000 })
      expect(await nameOf(1)).toBe('Ada')
    } finally {
      await company.cache.close()
      await server.stop()
    }
  })
})

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, each) => total + each, 0)
}
