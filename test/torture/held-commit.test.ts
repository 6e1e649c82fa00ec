import { setTimeout as pause } from 'node:timers/promises'
import { sql } from 'kysely'
import { CommitOutcomeUnknownError } from 'loadstone'
import { Client } from 'pg'
import { afterEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { type Bank, openBank, type Process, quiet, readPastRedis, warm } from '../invalidation/bank.ts'
import { startPostgres } from '../servers/postgres.ts'
import { closeRedis } from '../support/redis.ts'

// A COMMIT that waits for a synchronous standby is on disk, and nobody sees its rows. A client that is cut off
// meanwhile ends nothing: it may become visible at any time, or with the next restart.

afterEach(closeRedis)

/**
 * A bank on a Postgres whose one synchronous standby is missing, with three processes. COMMITs wait for the standby
 * only where they are told to.
 */
async function openWaitingBank(options: Parameters<Bank['open']>[0] = {}) {
  const postgres = await startPostgres({ settings: { synchronous_commit: 'local' } })
  onTestFinished(postgres.stop)
  const superuser = new Client({ connectionString: postgres.url })
  await superuser.connect()
  await superuser.query(`alter system set synchronous_standby_names = 'missing'`)
  await superuser.end()
  // A reload would do as well, but nobody could tell when it has come through.
  await postgres.restart()
  const bank = await openBank('strict', { databaseUrl: postgres.url })
  const [here, there, past] = [await bank.open(options), await bank.open(), await bank.open()] as const
  await warm(here, there)
  return { postgres, bank, here, there, past }
}

/** Whoever waits for the standby waits no more: what is committed can be seen. */
async function land(bank: Bank): Promise<void> {
  await bank.foreign('alter system reset synchronous_standby_names')
  await bank.foreign('select pg_reload_conf()')
}

/** Sets the balance to 90, as far as that COMMIT waits. */
async function writeIntoCommit(bank: Bank, { db }: Process) {
  const writing = db.transaction().execute(async (trx) => {
    await sql`set local synchronous_commit = on`.execute(trx)
    await trx.updateTable('accounts').set({ balance: 90 }).execute()
  })
  const outcome = writing.then(
    () => 'returned',
    (error: unknown) => error,
  )
  const waiting = () => bank.foreign(`select from pg_stat_activity where wait_event = 'SyncRep'`)
  await until(async () => expect(await waiting()).toHaveLength(1))
  return { outcome }
}

const until = (check: () => unknown) => vi.waitFor(check, { timeout: 10_000, interval: 10 })

/** Reads all the time, past Redis in one process and through it in the other. */
function watch(past: Process, there: Process) {
  const seen = new Set<number>()
  const backwards: string[] = []
  let stopped = false
  const keepReading = async (read: () => Promise<number>) => {
    while (!stopped) {
      const known = Math.min(100, ...seen)
      const balance = await read()
      if (balance > known) backwards.push(`${balance} after ${known}`)
      seen.add(balance)
      await pause(1)
    }
  }
  const reading = [keepReading(() => readPastRedis(past)), keepReading(there.read)]
  onTestFinished(() => {
    stopped = true
  })
  return {
    /** The balances that were read so far. */
    seen,
    /** Goes on until both have read 90 some times, and returns what they were told after it that was older. */
    async end() {
      await until(() => expect([...seen]).toContain(90))
      for (let i = 0; i < 10; i++) await Promise.all([past.read(), there.read()])
      stopped = true
      await Promise.all(reading)
      return backwards
    },
  }
}

describe('a COMMIT that waits for a missing standby', () => {
  test('for longer than an intent lasts: the intents are renewed', async () => {
    const { bank, here, there, past } = await openWaitingBank({ intentTtl: '3s' })
    const { store } = insidesOf(here.cache)
    const intend = vi.spyOn(store, 'intend')
    const watched = watch(past, there)
    const { outcome } = await writeIntoCommit(bank, here)
    const given = performance.now()
    await until(() => expect(performance.now() - given).toBeGreaterThan(4000))
    expect(intend.mock.calls.length).toBeGreaterThanOrEqual(4)
    expect([await bank.entry(), [...watched.seen]]).toEqual(['intent', [100]])
    await land(bank)
    expect(await outcome).toBe('returned')
    expect(await watched.end()).toEqual([])
  })

  test('and is ended by a superuser, which makes it visible: the call returns', async () => {
    const { bank, here, there, past } = await openWaitingBank()
    const watched = watch(past, there)
    const { outcome } = await writeIntoCommit(bank, here)
    await bank.foreign(`select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'`)
    expect(await outcome).toBe('returned')
    expect(await watched.end()).toEqual([])
  })

  describe('its connection lost', () => {
    test('and lands while it is asked what became of it: the call returns', async () => {
      const { bank, here, there, past } = await openWaitingBank()
      const watched = watch(past, there)
      const { outcome } = await writeIntoCommit(bank, here)
      here.databaseNetwork.cut()
      await until(async () => {
        const asked = `select from pg_stat_activity where query like '%from pg_xact_status(%' and pid <> pg_backend_pid()`
        expect(await bank.foreign(asked)).not.toEqual([])
      })
      expect([...watched.seen]).toEqual([100])
      await land(bank)
      expect(await outcome).toBe('returned')
      expect(await watched.end()).toEqual([])
    })

    test('and lands later: the call says that it does not know, and nobody sees the old value after the new one', async () => {
      const { bank, here, there, past } = await openWaitingBank()
      const watched = watch(past, there)
      const { outcome } = await writeIntoCommit(bank, here)
      here.databaseNetwork.cut()
      expect(await outcome).toBeInstanceOf(CommitOutcomeUnknownError)
      expect([await bank.entry(), [...watched.seen]]).toEqual(['intent', [100]])
      await land(bank)
      expect(await watched.end()).toEqual([])
      expect(await bank.debt()).toBe(1)
      await quiet(there)
      expect([await there.read(), await bank.debt()]).toEqual([90, 0])
    })

    test('and lands with the next start of the server: the call says that it does not know', async () => {
      const { postgres, bank, here, there, past } = await openWaitingBank()
      const { outcome } = await writeIntoCommit(bank, here)
      await postgres.kill()
      await postgres.restart()
      expect(await outcome).toBeInstanceOf(CommitOutcomeUnknownError)
      expect(await bank.entry()).toBe('intent')
      // Until its pool has found out that all its connections are lost, a read may fail.
      const read = (how: () => Promise<number>) => vi.waitFor(how, { timeout: 5000, interval: 10 })
      expect(await read(() => readPastRedis(past))).toBe(90)
      expect(await read(there.read)).toBe(90)
    })

    test('and lands when its intents have ended: until the relay has its turn, the old value may be seen after the new one', async () => {
      const { bank, here, there, past } = await openWaitingBank({ intentTtl: '1s' })
      const { outcome } = await writeIntoCommit(bank, here)
      here.databaseNetwork.cut()
      expect(await outcome).toBeInstanceOf(CommitOutcomeUnknownError)
      await until(async () => expect(await bank.entry()).toBe('nothing'))
      await warm(there)
      await land(bank)
      await until(async () => expect(await readPastRedis(past)).toBe(90))
      expect(await there.read()).toBe(100)
      await quiet(there)
      expect(await there.read()).toBe(90)
    })
  })
})
