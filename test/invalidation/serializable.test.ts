import { Kysely, PostgresDialect } from 'kysely'
import { expectTrips } from 'loadstone/testing'
import { Pool } from 'pg'
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { closeRedis } from '../support/redis.ts'
import { type Bank, type BankTables, hold, openBank, type Process, quiet } from './bank.ts'

// Postgres refuses a SERIALIZABLE transaction (SQLSTATE 40001) whenever it cannot rule out that it saw what others
// wrote in an impossible order; it is to be run again then. What was read it remembers by rows, pages or tables. A
// writer reads its own rows of the outbox before COMMIT, so there it meets others, whatever else they write.

afterEach(closeRedis)

/** Far apart: no two are on one page, neither of the table nor of its index. */
const IDS = [1, 10_000, 19_000] as const

let bank: Bank
let processes: readonly [Process, Process, Process]

beforeEach(async () => {
  bank = await openBank('strict')
  await bank.foreign('insert into accounts select i, 100 from generate_series(2, 20000) i; analyze accounts')
  processes = [await bank.open(), await bank.open(), await bank.open()]
  await quiet(...processes)
})

/** A transaction that sets the balance of one account, and has its snapshot. */
async function begin(db: Kysely<BankTables>, id: number) {
  const trx = await db.startTransaction().setIsolationLevel('serializable').execute()
  await trx.selectFrom('accounts').select('balance').where('id', '=', id).execute()
  return {
    write: () => trx.updateTable('accounts').set({ balance: 90 }).where('id', '=', id).execute(),
    /** `committed`, or the SQLSTATE. */
    async commit(): Promise<string> {
      try {
        await trx.commit().execute()
        return 'committed'
      } catch (error) {
        await trx.rollback().execute()
        return (error as { code: string }).code
      }
    },
  }
}

/** One in each process, of an account that no other one reads or writes. */
async function beginThree() {
  const [one, two, three] = processes
  return Promise.all([begin(one.db, IDS[0]), begin(two.db, IDS[1]), begin(three.db, IDS[2])])
}

/** As far as that nothing but COMMIT is left to be done: the outbox is read, the intents are given. */
async function commitUpTo(process: Process, transaction: Awaited<ReturnType<typeof begin>>) {
  const intended = hold(process, 'after', 'intend')
  const outcome = transaction.commit()
  await intended.reached
  return () => {
    intended.goOn()
    return outcome
  }
}

async function expectEverywhere(balances: readonly number[]): Promise<void> {
  const rows = await bank.foreign(`select balance from accounts where id in (${IDS.join(', ')}) order by id`)
  expect(rows.map(({ balance }) => balance)).toEqual(balances)
  for (const { Account } of processes) {
    const cached = await Promise.all(IDS.map((id) => Account.cache.getAsync({ id })))
    expect(cached.map(({ balance }) => balance)).toEqual(balances)
  }
}

describe('strict writes of different rows in SERIALIZABLE transactions', () => {
  test('two at a time are both committed, however their steps lie', async () => {
    const [one, two] = processes
    const beginTwo = () => Promise.all([begin(one.db, IDS[0]), begin(two.db, IDS[1])])
    const [first, second] = await beginTwo()
    await first.write()
    await second.write()
    expect([await first.commit(), await second.commit()]).toEqual(['committed', 'committed'])

    const [third, fourth] = await beginTwo()
    await third.write()
    const goOn = await commitUpTo(one, third)
    await fourth.write()
    expect([await fourth.commit(), await goOn()]).toEqual(['committed', 'committed'])
    await expectEverywhere([90, 90, 100])
  })

  test('of three at a time one may be refused, although nothing is wrong with it; run again, it is committed', async () => {
    const [one, two, three] = processes
    const [first, second, third] = await beginThree()
    await first.write()
    const goOnFirst = await commitUpTo(one, first)
    await second.write()
    const goOnSecond = await commitUpTo(two, second)
    await third.write()
    expect([await third.commit(), await goOnFirst(), await goOnSecond()]).toEqual([
      'committed',
      'committed',
      '40001',
    ])
    await expectEverywhere([90, 100, 90])

    const again = await begin(two.db, IDS[1])
    await again.write()
    expect(await again.commit()).toBe('committed')
    await expectEverywhere([90, 90, 90])
    await Promise.all([one, two, three].map(({ cache }) => cache.idle()))
    expect(await bank.debt()).toBe(0)
  })

  test('one that is refused leaves no intent behind: what it wanted to write is cached as before', async () => {
    const [one, two] = processes
    const [first, second, third] = await beginThree()
    await first.write()
    const goOnFirst = await commitUpTo(one, first)
    await second.write()
    const goOnSecond = await commitUpTo(two, second)
    await third.write()
    await third.commit()
    await goOnFirst()
    expect(await goOnSecond()).toBe('40001')
    await expectTrips(two.cache, { mget: 1, acquire: 1, select: 1, fill: 1 }, () =>
      two.Account.cache.getAsync({ id: IDS[1] }),
    )
  })

  test('also after a VACUUM of a small outbox, of which Postgres would rather read all than use its index', async () => {
    const [one, two] = processes
    await one.write(100)
    await one.cache.idle()
    await bank.foreign('vacuum loadstone.outbox')
    const [first, second] = await Promise.all([begin(one.db, IDS[0]), begin(two.db, IDS[1])])
    await first.write()
    await second.write()
    expect([await first.commit(), await second.commit()]).toEqual(['committed', 'committed'])
    await expectEverywhere([90, 90, 100])
  })

  test('without Loadstone none of them is refused: it is the outbox where they meet', async () => {
    const pool = new Pool({ connectionString: bank.databaseUrl })
    const db = new Kysely<BankTables>({ dialect: new PostgresDialect({ pool }) })
    onTestFinished(() => db.destroy())
    const [first, second, third] = await Promise.all(IDS.map((id) => begin(db, id)))
    for (const transaction of [first, second, third]) await transaction?.write()
    const outcomes = [await third?.commit(), await first?.commit(), await second?.commit()]
    expect(outcomes).toEqual(['committed', 'committed', 'committed'])
  })
})
