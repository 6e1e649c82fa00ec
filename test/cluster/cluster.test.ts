import { Cluster } from 'ioredis'
import { Cluster as Cluster5 } from 'ioredis-5'
import { Kysely, PostgresDialect } from 'kysely'
import { type CacheOptions, createModelCache, runInLoop, StrictWriteError, withInvalidation } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { startCluster, type TestCluster } from '../servers/cluster.ts'
import { ClusterView, newNamespace } from '../support/cluster.ts'
import { createTestDatabase } from '../support/database.ts'

interface Tables {
  accounts: { id: number; owner: string; balance: number }
  notes: { id: number; account_id: number; text: string }
}

const COLD = { mget: 1, acquire: 1, fill: 1 }
const WARM = { mget: 1 }
const IDS = Array.from({ length: 30 }, (_, i) => i + 1)

let cluster: TestCluster

beforeAll(async () => {
  cluster = await startCluster({ args: ['--cluster-require-full-coverage', 'no'] })
})
afterAll(() => cluster?.stop())

/** A process with a cache over the cluster: 30 accounts, and 30 notes, three on each of the first ten accounts. */
async function openBank(options: Partial<CacheOptions<Tables>> = {}) {
  const view = new ClusterView(cluster)
  onTestFinished(() => view.close())
  const database = await createTestDatabase()
  onTestFinished(() => database.drop())
  await database.pool.query(`
    create table accounts (id int primary key, owner text not null, balance int not null);
    create table notes (id int primary key, account_id int not null, text text not null);
    insert into accounts select i, 'owner ' || i, 100 from generate_series(1, 30) i;
    insert into notes select i, (i + 2) / 3, 'note ' || i from generate_series(1, 30) i`)
  const namespace = newNamespace()
  const db = new Kysely<Tables>({ dialect: withInvalidation(new PostgresDialect({ pool: database.pool })) })
  function another(more: Partial<CacheOptions<Tables>> = {}) {
    const redis = new Cluster([...cluster.nodes], { lazyConnect: true })
    const cache = createModelCache<Tables>({
      db,
      redis,
      namespace,
      storeTimeout: '5s',
      relay: false,
      ...options,
      ...more,
    })
    onTestFinished(() => cache.close())
    const Account = cache.model('accounts', { keyFields: [['id'], ['owner']], consistency: 'strict' })
    const Note = cache.model('notes', { keyFields: [['id']], filterFields: [['account_id']] })
    const NoteCount = cache.count({
      name: 'NoteCount',
      model: Note,
      keyFields: ['account_id'],
      invalidation: 'mark-stale',
      staleFor: '1m',
    })
    const settled = <Result>(fn: () => Promise<Result>) =>
      runInLoop(async () => {
        const result = await fn()
        await cache.idle()
        return result
      })()
    return {
      cache,
      Account,
      Note,
      NoteCount,
      /** A wave of both models, keys and lists, on all masters. */
      page: () =>
        settled(async () => {
          const [accounts, notes, owner] = await Promise.all([
            Promise.all(IDS.map((id) => Account.cache.getAsync({ id }))),
            Promise.all(IDS.map((id) => Note.cache.filterAsync({ account_id: id }))),
            Account.cache.getAsyncOrNone({ owner: 'nobody {here}' }),
          ])
          return {
            balances: accounts.map(({ balance }) => balance),
            notes: notes.map((list) => list.length),
            owner,
          }
        }),
      balance: (id: number) => settled(async () => (await Account.cache.getAsync({ id })).balance),
      count: (id: number) => settled(() => NoteCount(id).resolveAsync()),
    }
  }
  const process = another()
  await process.cache.install()
  await process.page() // every master is connected to from now on
  return {
    ...process,
    another,
    db,
    view,
    namespace,
    /** SQL by another program. */
    foreign: (statement: string) => database.pool.query(statement),
  }
}

const PAGE = {
  balances: IDS.map(() => 100),
  notes: IDS.map((id) => (id <= 10 ? 3 : 0)),
  owner: null,
}

describe('a cache on Redis Cluster', () => {
  test('mixed waves: one step each, and one write to each master', async () => {
    const { cache, page, another, view } = await openBank()
    expect(await expectTrips(cache, WARM, page)).toEqual(PAGE)
    expect(await view.grown(page)).toEqual([1, 1, 1])
    const other = another()
    expect(await expectTrips(other.cache, WARM, other.page)).toEqual(PAGE)
    await cache.clear()
    expect(await expectTrips(cache, { ...COLD, select: 3 }, page)).toEqual(PAGE)
    expect(cache.stats()).toMatchObject({ storeErrors: 0 })
  })

  test('what is written is invalidated wherever it is: strict with intents, and in every process', async () => {
    const { cache, page, another, db, view } = await openBank()
    const other = another()
    await other.page()
    const { store } = insidesOf(cache)
    const seen: string[] = []
    const intend = store.intend.bind(store)
    store.intend = async (...args) => {
      const session = await intend(...args)
      seen.push(
        ...(await Promise.all(args[0].map(async (key) => String(await view.client.get(key)).charAt(0)))),
      )
      return session
    }
    await db.updateTable('accounts').set({ balance: 50 }).execute()
    // Ids and owners.
    expect(seen).toEqual(Array.from({ length: 60 }, () => 'W'))
    for (const each of [{ page }, other]) expect((await each.page()).balances).toEqual(IDS.map(() => 50))

    await db.deleteFrom('notes').where('account_id', '<=', 5).execute()
    for (const each of [{ page }, other])
      expect((await each.page()).notes).toEqual(IDS.map((id) => (id > 5 && id <= 10 ? 3 : 0)))
  })

  test('what other programs write, the relay applies', async () => {
    const { cache, page, foreign } = await openBank()
    await foreign('update accounts set balance = 70')
    const { relay } = insidesOf(cache)
    expect(await relay.turn(0)).toBeGreaterThan(0)
    expect((await page()).balances).toEqual(IDS.map(() => 70))
  })

  test('relays elect one of them, which applies by itself', async () => {
    const { page, foreign, another } = await openBank()
    another({ relay: { poll: '10ms', grace: 0, election: '100ms' } })
    another({ relay: { poll: '10ms', grace: 0, election: '100ms' } })
    await foreign('update accounts set balance = 70')
    await vi.waitFor(async () => expect((await page()).balances).toEqual(IDS.map(() => 70)))
  })

  test("'mark-stale': the old answer once more, from next to its key, then the new one", async () => {
    const { cache, count, db } = await openBank()
    expect(await Promise.all(IDS.map(count))).toEqual(PAGE.notes)
    await db.deleteFrom('notes').execute()
    expect(await expectTrips(cache, { ...COLD, load: 1 }, () => count(1))).toBe(3)
    expect(await expectTrips(cache, WARM, () => count(1))).toBe(0)
    expect(cache.stats()).toMatchObject({ stale: 1 })
  })

  test('clear forgets a model on all masters, also what was being loaded', async () => {
    const { cache, page, another, foreign } = await openBank()
    const other = another()
    await other.page()
    await foreign('alter table accounts disable trigger user; update accounts set balance = 1')
    await cache.clear(['accounts'])
    expect((await other.page()).balances).toEqual(IDS.map(() => 1))
    expect((await page()).balances).toEqual(IDS.map(() => 1))
  })

  test('verify finds what no trigger has seen, on every master, and repairs it', async () => {
    const { cache, page, foreign } = await openBank()
    expect(await cache.verify({ settleMs: 10 })).toMatchObject({ stale: 0 })
    await foreign('alter table accounts disable trigger user; update accounts set balance = 1')
    expect(await cache.verify({ settleMs: 10, repair: true })).toMatchObject({ stale: IDS.length })
    expect((await page()).balances).toEqual(IDS.map(() => 1))
  })

  test('doctor looks at each master', async () => {
    const { cache } = await openBank()
    const findings = (await cache.doctor()).filter(({ area }) => area === 'store')
    expect(findings[0]).toMatchObject({
      status: 'ok',
      finding: 'it is a Redis Cluster: 3 of 3 masters answer',
    })
    for (const { port } of cluster.masters) {
      expect(findings).toContainEqual(
        expect.objectContaining({ status: 'ok', finding: `127.0.0.1:${port}: it is a master` }),
      )
    }
    expect(findings.filter(({ status }) => status === 'fail')).toEqual([])
  })

  test('an ioredis 5 Cluster does as well', async () => {
    const { another, page } = await openBank()
    await page()
    const other = another({ redis: new Cluster5([...cluster.nodes], { lazyConnect: true }) })
    await expectTrips(other.cache, WARM, other.page)
  })
})

describe('a slot that moves under load', () => {
  test('every answer is right while it moves, there and back, and writes go on', async () => {
    const { db, view, namespace, balance, cache } = await openBank()
    const key = `${namespace}:accounts:id:1`
    const home = await view.ownerOf(key)
    let moved = false
    let written = 100
    /** What a read may find: it began after `atLeast` had been written. */
    const reader = async () => {
      while (!moved) {
        const atLeast = written
        expect(await balance(1)).toBeGreaterThanOrEqual(atLeast)
      }
    }
    const writer = async () => {
      while (!moved) {
        const next = written + 1
        await db.updateTable('accounts').set({ balance: next }).where('id', '=', 1).execute()
        written = next
      }
    }
    const load = Promise.all([reader(), reader(), reader(), writer()])
    try {
      for (const to of [(home + 1) % 3, home]) {
        const move = await view.move(key, to)
        for (let i = 0; i < 5; i++) {
          await move.keys()
          const before = written
          await vi.waitFor(() => expect(written).toBeGreaterThan(before + 2), { interval: 5 })
        }
        await move.finish()
        const before = written
        await vi.waitFor(() => expect(written).toBeGreaterThan(before + 2), { interval: 5 })
      }
    } finally {
      moved = true
    }
    await load
    expect(await balance(1)).toBe(written)
    expect(await expectTrips(cache, WARM, () => balance(1))).toBe(written)
  })
})

describe('a master that is down', () => {
  test('its keys are answered by SQL, the others hit; strict writes of its keys fail before COMMIT', async () => {
    const { cache, page, db, namespace, view, Account } = await openBank()
    const owners = await Promise.all(IDS.map((id) => view.ownerOf(`${namespace}:accounts:id:${id}`)))
    const lost = cluster.masters[0]
    await lost?.kill()
    try {
      // The first ones may find out on the way that their connection is lost.
      await vi.waitFor(async () => {
        const before = cache.stats()
        expect(await page()).toEqual(PAGE)
        const after = cache.stats()
        expect(after.hits - before.hits).toBeGreaterThan(0)
        expect(after.trips.acquire).toBe(before.trips.acquire)
        expect(after.storeErrors - before.storeErrors).toBe(1)
      })
      const setBalance = (id: number) =>
        db.updateTable('accounts').set({ balance: 7 }).where('id', '=', id).execute()
      await expect(setBalance(IDS[owners.indexOf(0)] as number)).rejects.toThrow(StrictWriteError)
      const findings = await cache.doctor()
      expect(findings).toContainEqual(
        expect.objectContaining({
          status: 'fail',
          finding: expect.stringContaining(`127.0.0.1:${lost?.port}: it cannot be asked`),
        }),
      )
      expect((await Account.cache.getAsync({ id: IDS[owners.indexOf(0)] as number })).balance).toBe(100)
    } finally {
      await lost?.restart()
    }
    await vi.waitFor(
      async () => {
        await page()
        await expectTrips(cache, WARM, page)
        expect(cache.stats().hits).toBeGreaterThan(0)
      },
      { timeout: 15_000, interval: 50 },
    )
  })
})
