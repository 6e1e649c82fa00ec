import { runInLoop } from 'loadstone'
import { afterEach, describe, expect, onTestFinished, test } from 'vitest'
import { startRedis } from '../servers/redis.ts'
import { closeRedis } from '../support/redis.ts'
import {
  CONSISTENCIES,
  type Consistency,
  hold,
  kindOf,
  lookAt,
  openBank,
  type Process,
  quiet,
} from './bank.ts'

afterEach(closeRedis)

const ROWS = 100_000
/** Below maxTouchedRows, so each statement is recorded row by row. */
const STATEMENT = 5000
const SAMPLE = [1, 4999, 5000, 5001, 54_321, ROWS]

describe.each(CONSISTENCIES)(
  'one transaction that writes 100,000 cached rows of a %s model',
  (consistency) => {
    test('has them all cleared when it returns, and its debt paid soon after', {
      timeout: 120_000,
    }, async () => {
      const { bank, here, there, entries } = await openLargeBank(consistency)
      expect(await entries()).toEqual({ value: ROWS })
      const began = performance.now()
      await writeAll(here)
      expect(performance.now() - began).toBeLessThan(60_000)
      expect(await entries()).toEqual({})
      expect(await balances(there, SAMPLE)).toEqual(SAMPLE.map(() => 90))
      await here.cache.idle()
      expect(await bank.debt()).toBe(0)
      expect(here.cache.stats()).toMatchObject({ cleared: ROWS, deferred: 0 })
    })
  },
)

test('before COMMIT it has an intent on every one of 100,000 rows of a strict model', {
  timeout: 120_000,
}, async () => {
  const { here, there, entries } = await openLargeBank('strict')
  const intended = hold(here, 'after', 'intend')
  const writing = writeAll(here)
  await intended.reached
  expect(await entries()).toEqual({ intent: ROWS })
  expect(await balances(there, SAMPLE)).toEqual(SAMPLE.map(() => 100))
  expect(await entries()).toEqual({ intent: ROWS })
  intended.goOn()
  await writing
  expect(await entries()).toEqual({})
  expect(await balances(there, SAMPLE)).toEqual(SAMPLE.map(() => 90))
})

/** All of its accounts are cached. */
async function openLargeBank(consistency: Consistency) {
  const redis = await startRedis()
  onTestFinished(redis.stop)
  const bank = await openBank(consistency, { redisUrl: redis.url })
  await bank.foreign(`insert into accounts select i, 100 from generate_series(2, ${ROWS}) i`)
  const [here, there] = [await bank.open({ intentTtl: '30s' }), await bank.open()]
  await quiet(here, there)
  const ids = Array.from({ length: ROWS }, (_, i) => i + 1)
  await balances(there, ids)
  await there.cache.idle()

  /** How many accounts Redis has a record for, by its kind. */
  async function entries() {
    const client = lookAt(redis.url)
    const prefix = bank.key.replace(/1$/, '')
    const count: Record<string, number> = {}
    for (let i = 0; i < ids.length; i += STATEMENT) {
      const records = await client.mget(ids.slice(i, i + STATEMENT).map((id) => prefix + id))
      for (const record of records) {
        if (record === null) continue
        const kind = kindOf(record)
        count[kind] = (count[kind] ?? 0) + 1
      }
    }
    return count
  }
  return { bank, here, there, entries }
}

const balances = runInLoop(async ({ Account }: Process, ids: readonly number[]) => {
  const accounts = await Promise.all(ids.map((id) => Account.cache.getAsync({ id })))
  return accounts.map(({ balance }) => balance)
})

function writeAll({ db }: Process): Promise<void> {
  return db.transaction().execute(async (trx) => {
    for (let from = 1; from <= ROWS; from += STATEMENT) {
      await trx
        .updateTable('accounts')
        .set({ balance: 90 })
        .where('id', '>=', from)
        .where('id', '<', from + STATEMENT)
        .execute()
    }
  })
}
