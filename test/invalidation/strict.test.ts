import { Kysely, PostgresDialect, sql } from 'kysely'
import {
  CommitOutcomeUnknownError,
  createModelCache,
  OptionError,
  runInLoop,
  StrictWriteError,
} from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, describe, expect, inject, test, vi } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { stateOf } from '../../src/stores/entry.ts'
import { newToken } from '../../src/stores/store.ts'
import { startRedis } from '../servers/redis.ts'
import { startProxy } from '../support/proxy.ts'
import { closeRedis, testRedis } from '../support/redis.ts'
import { type Company, onServers, PLACES } from './company.ts'

afterAll(closeRedis)

let company: Company
afterEach(() => company.close())

const balanceOf = runInLoop(async (id: number) => (await company.Account.cache.getAsync({ id })).balance)

/** What the store holds for an account. */
async function entryOf(id: number) {
  const [record] = await insidesOf(company.cache).store.getMany([keyOf(id)])
  return stateOf(record ?? null, 0)
}
const keyOf = (id: number) => `${company.options.namespace}:accounts:id:${id}`

function pay(id: number, balance: number) {
  return company.db.updateTable('accounts').set({ balance }).where('id', '=', id).execute()
}

describe.each(Object.entries(PLACES))('a strict model, on %s', (_place, openCompany) => {
  test('is under an intent from before COMMIT until the write returns', async () => {
    company = await openCompany()
    await balanceOf(1)
    await company.cache.idle()
    const seen: string[] = []
    const { store } = insidesOf(company.cache)
    const intend = store.intend.bind(store)
    store.intend = async (...args) => {
      const session = await intend(...args)
      seen.push(await entryOf(1))
      return session
    }
    await pay(1, 90)
    expect([...seen, await entryOf(1)]).toEqual(['intended', 'none'])
    expect(await balanceOf(1)).toBe(90)
  })

  test('is read from SQL, and filled by nobody, while it is being written', async () => {
    company = await openCompany()
    const { store } = insidesOf(company.cache)
    const token = newToken()
    await store.intend([keyOf(1)], token, 30_000)
    // Looked at again for as long as the wait lasts, then SQL, and no fill.
    await expectTrips(company.cache, { mget: 6, select: 1 }, () => balanceOf(1))
    expect(await entryOf(1)).toBe('intended')
    await store.clear([keyOf(1)], token, true)
    await expectTrips(company.cache, { mget: 1, acquire: 1, select: 1, fill: 1 }, () => balanceOf(1))
  })

  test('of concurrent writers each takes away its own intent only', async () => {
    company = await openCompany()
    const { store } = insidesOf(company.cache)
    const other = newToken()
    await store.intend([keyOf(1)], other, 30_000)
    await pay(1, 90)
    expect(await entryOf(1)).toBe('intended')
    await store.clear([keyOf(1)], other, true)
    expect(await entryOf(1)).toBe('none')
  })

  test('a rollback takes its intents away', async () => {
    company = await openCompany()
    await company.foreign('alter table accounts add constraint no_debt check (balance >= 0)')
    await company.foreign(`
      create function refuse() returns trigger language plpgsql as $$ begin raise exception 'refused'; end $$;
      create constraint trigger refuse after update on accounts deferrable initially deferred
        for each row when (new.balance = 13) execute function refuse()`)
    await expect(pay(1, 13)).rejects.toThrow('refused')
    await expect(pay(1, -1)).rejects.toThrow('no_debt')
    expect(await entryOf(1)).toBe('none')
    expect(await balanceOf(1)).toBe(100)
  })

  test('refuses a statement that writes more rows than it can give intents for', async () => {
    company = await openCompany()
    const small = company.another({ maxTouchedRows: 1 })
    await small.cache.install()
    const all = company.db.updateTable('accounts').set({ balance: 0 }).execute()
    await expect(all).rejects.toThrow(StrictWriteError)
    await expect(all).rejects.toMatchObject({ transient: false, models: ['accounts'] })
    expect(await balanceOf(1)).toBe(100)
  })
})

describe('a strict model whose store fails', () => {
  async function onOwnRedis() {
    const server = await startRedis()
    const { redis, namespace } = testRedis({ url: server.url })
    redis.on('error', () => {})
    company = await onServers({ redis, namespace })
    return server
  }

  test('before COMMIT: the write is rolled back with a typed, transient error', async () => {
    const server = await onOwnRedis()
    expect(await balanceOf(1)).toBe(100)
    await server.kill()
    const paid = pay(1, 90)
    await expect(paid).rejects.toThrow(StrictWriteError)
    await expect(paid).rejects.toMatchObject({ code: 'ERR_STRICT_WRITE', transient: true })
    const inTransaction = company.cache.transaction(async (trx) => {
      await trx.updateTable('accounts').set({ balance: 80 }).where('id', '=', 1).execute()
    })
    await expect(inTransaction).rejects.toThrow(StrictWriteError)
    expect(await balanceOf(1)).toBe(100)
    // Default models go on.
    await company.db.updateTable('people').set({ name: 'Ada' }).where('id', '=', 1).execute()
    await server.restart()
    await untilBack()
    await pay(1, 90)
    expect(await balanceOf(1)).toBe(90)
    await company.cache.close()
    await server.stop()
  })

  async function untilBack() {
    const { store } = insidesOf(company.cache)
    await vi.waitFor(() => store.getMany(['ping']), { timeout: 5000, interval: 20 })
  }
})

test('a strict model needs a db that tells of commits', async () => {
  company = await onServers()
  const db = new Kysely<{ accounts: { id: number } }>({ dialect: new PostgresDialect({ pool: {} as never }) })
  const cache = createModelCache({ db, namespace: 'x', relay: false })
  expect(() => cache.model('accounts', { keyFields: [['id']], consistency: 'strict' })).toThrow(OptionError)
  await cache.close()
})

describe('a connection that breaks during COMMIT', () => {
  test.each([
    ['the COMMIT arrived: the write says so, as it is', 'replies', 90],
    ['the COMMIT did not arrive: the write fails, as it did', 'requests', 100],
  ] as const)('%s', async (_what, direction, after) => {
    const proxy = await startProxy(Number(new URL(inject('databaseUrl')).port))
    company = await onServers({ databasePort: proxy.port })
    expect(await balanceOf(1)).toBe(100)
    const { store } = insidesOf(company.cache)
    const intend = store.intend.bind(store)
    // The intents are the last step before COMMIT: from here on the network holds it, or the answer to it.
    store.intend = async (...args) => {
      const session = await intend(...args)
      proxy.hold(direction)
      setTimeout(() => {
        proxy.cut()
        proxy.release()
      }, 150)
      return session
    }
    const paid = pay(1, 90).then(
      () => 'returned',
      (error) => error,
    )
    const outcome = await paid
    if (after === 90) expect(outcome).toBe('returned')
    else expect(outcome).toBeInstanceOf(Error)
    expect(outcome).not.toBeInstanceOf(CommitOutcomeUnknownError)
    store.intend = intend
    expect(await balanceOf(1)).toBe(after)
    const { rows } = await sql<{ balance: number }>`select balance from accounts where id = 1`.execute(
      company.db,
    )
    expect(rows[0]?.balance).toBe(after)
    await company.cache.close()
    await company.db.destroy()
    await proxy.close()
  })
})
