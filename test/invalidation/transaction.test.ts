import { AsyncResource } from 'node:async_hooks'
import { sql } from 'kysely'
import { resetScope, runInLoop, TransactionUseError } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, test } from 'vitest'
import { closeRedis } from '../support/redis.ts'
import { type Company, onServers, PLACES } from './company.ts'

afterAll(closeRedis)

describe.each(Object.entries(PLACES))('cache.transaction, on %s', (_place, openCompany) => {
  let company: Company

  beforeEach(async () => {
    company = await openCompany()
  })
  afterEach(() => company.close())

  const nameOf = async (id: number) => (await company.Person.cache.getAsyncOrNone({ id }))?.name
  const idsOf = async (team: string) => (await company.Person.cache.filterAsync({ team })).map(({ id }) => id)

  test('lookups inside see what it has written; nobody outside does before the commit', async () => {
    const { cache } = company
    const elsewhere = company.another()
    const outside = runInLoop(async () => (await elsewhere.Person.cache.getAsync({ id: 1 })).name)
    await cache.transaction(async (trx) => {
      await trx.updateTable('people').set({ name: 'Ada', team: 'b' }).where('id', '=', 1).execute()
      expect(await nameOf(1)).toBe('Ada')
      expect(await idsOf('a')).toEqual([2, 3])
      expect(await idsOf('b')).toEqual([1, 4, 5])
      // PGlite has a single connection, which is taken.
      if (_place.startsWith('Redis')) expect(await outside()).toBe('person 1')
    })
    expect(await outside()).toBe('Ada')
    expect(await idsOf('b')).toEqual([1, 4, 5])
  })

  test('the first lookup of all may be inside: it needs no other connection', async () => {
    const { cache, Person } = company.another()
    await cache.transaction(async (trx) => {
      await trx.updateTable('people').set({ name: 'Ada' }).where('id', '=', 1).execute()
      expect((await Person.cache.getAsync({ id: 1 })).name).toBe('Ada')
    })
  })

  test('a scope that begins inside is inside too', async () => {
    const inner = runInLoop(async () => (await company.Person.cache.getAsync({ id: 1 })).name)
    expect(await inner()).toBe('person 1')
    await company.cache.transaction(async (trx) => {
      await trx.updateTable('people').set({ name: 'Ada' }).where('id', '=', 1).execute()
      expect(await inner()).toBe('Ada')
      await runInLoop(async () => {
        resetScope()
        expect(await inner()).toBe('Ada')
        await expect(company.cache.transaction(async () => {})).rejects.toThrow(TransactionUseError)
      })()
    })
    expect(await inner()).toBe('Ada')
  })

  test('lookups inside are batched: one statement per shape, and nothing at the store', async () => {
    const { cache, Person } = company
    await nameOf(1) // cached, and still not taken from there
    await cache.idle()
    await expectTrips(cache, { select: 2 }, () =>
      cache.transaction(async () => {
        await Promise.all([
          ...[1, 2, 3, 1].map((id) => Person.cache.getAsync({ id })),
          Person.cache.filterAsync({ team: 'a' }),
        ])
      }),
    )
  })

  test('what was read inside is nowhere afterwards when it is rolled back', async () => {
    const { cache } = company
    const undone = cache.transaction(async (trx) => {
      await trx.updateTable('people').set({ name: 'Ada' }).where('id', '=', 1).execute()
      expect(await nameOf(1)).toBe('Ada')
      throw new Error('changed my mind')
    })
    await expect(undone).rejects.toThrow('changed my mind')
    expect(await nameOf(1)).toBe('person 1')
  })

  test('the memo of the scope is right before, inside and after', async () => {
    const { cache, Person } = company
    await runInLoop(async () => {
      expect([await nameOf(1), await nameOf(2)]).toEqual(['person 1', 'person 2'])
      await cache.transaction(async (trx) => {
        await trx.updateTable('people').set({ name: 'Ada' }).where('id', '=', 1).execute()
        expect(await nameOf(1)).toBe('Ada')
        expect(Person.cache.peek({ id: 1 })).toBeUndefined()
        const part = await trx
          .updateTable('people')
          .set({ name: 'Grace' })
          .where('id', '=', 1)
          .returning('name')
          .execute()
        expect(part).toEqual([{ name: 'Grace' }])
        expect(await nameOf(1)).toBe('Grace')
      })
      // Untouched by the transaction, so the scope still knows it.
      expect(Person.cache.peek({ id: 2 })?.name).toBe('person 2')
      expect(await nameOf(1)).toBe('Grace')
    })()
  })

  test('a savepoint that is rolled back takes its rows back, inside and in the scope around', async () => {
    const { db } = company
    await runInLoop(async () => {
      expect(await nameOf(1)).toBe('person 1')
      const trx = await db.startTransaction().execute()
      const part = await trx.savepoint('part').execute()
      await part.updateTable('people').set({ name: 'Ada' }).where('id', '=', 1).execute()
      await part.rollbackToSavepoint('part').execute()
      await trx.commit().execute()
      expect(await nameOf(1)).toBe('person 1')
    })()
  })

  test('refuses another one inside', async () => {
    const { cache } = company
    const nested = cache.transaction(() => cache.transaction(async () => 1))
    await expect(nested).rejects.toThrow(TransactionUseError)
    expect(await nameOf(1)).toBe('person 1')
  })

  test('refuses lookups and statements after its end', async () => {
    const { cache } = company
    let late: (() => Promise<unknown>) | undefined
    let ended: Parameters<Parameters<typeof cache.transaction>[0]>[0] | undefined
    await cache.transaction(async (trx) => {
      ended = trx
      // The function keeps the context of the transaction, as a forgotten promise would.
      late = AsyncResource.bind(() => nameOf(1))
    })
    await expect(late?.()).rejects.toThrow(TransactionUseError)
    await expect(ended?.selectFrom('people').selectAll().execute()).rejects.toThrow(/already committed/i)
  })
})

test('cache.transaction takes an isolation level', async () => {
  const company = await onServers()
  const read = company.cache.transaction(
    async (trx) => {
      const { rows } = await sql<{
        level: string
      }>`select current_setting('transaction_isolation') as level`.execute(trx)
      return rows[0]?.level
    },
    { isolationLevel: 'repeatable read' },
  )
  expect(await read).toBe('repeatable read')
  await company.close()
})
