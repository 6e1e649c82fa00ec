import { readFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { CommitOutcomeUnknownError } from 'loadstone'
import { expectTrips, holdSteps } from 'loadstone/testing'
import { Client } from 'pg'
import { afterEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { SCRIPTS } from '../../src/stores/scripts.ts'
import { startRedis } from '../servers/redis.ts'
import type { Server } from '../servers/server.ts'
import { startProxy } from '../support/proxy.ts'
import { closeRedis } from '../support/redis.ts'
import {
  type Bank,
  CONSISTENCIES,
  type Consistency,
  gate,
  hold,
  lookAt,
  openBank,
  type Process,
  quiet,
  readPastRedis,
  slowReader,
  untilConnected,
  warm,
} from './bank.ts'

// The table "What you are promised" of README.md, row by row. A cell that says no has a test that shows how far it
// goes, and where it ends.

afterEach(closeRedis)

const ROWS = {
  quiet:
    'at quiet, cache = database without waiting for a ttl; through slow readers, rollbacks, lease expiry, writer crash, lost messages, psql writers, Redis restart, failover',
  uncommitted: 'uncommitted data is never cached',
  returned: 'a read that starts after a write call **returned** sees it or newer, in any process',
  linearizable: 'nobody sees the new value and then the old one (linearizable per key)',
  foreign: 'writes by psql and other programs',
  oneStatement: 'one SQL per key while a lease lives',
  trips: 'awaited Redis trips: hit / miss / write',
}

test('these are the rows of the table in README.md', async () => {
  const readme = await readFile(new URL('../../README.md', import.meta.url), 'utf8')
  const [, section = ''] = readme.split('### What you are promised\n')
  const [, ...rows] = (/(?:^\|.*\n)+/m.exec(section)?.[0] ?? '').trim().split('\n')
  expect(rows.slice(1).map((row) => row.split('|')[1]?.trim())).toEqual(Object.values(ROWS))
})

async function onSharedServers(consistency: Consistency) {
  const bank = await openBank(consistency)
  return { bank, here: await bank.open(), there: await bank.open() }
}

async function onOwnRedis(consistency: Consistency, options: Parameters<Bank['open']>[0] = {}) {
  const redis = await serve()
  const bank = await openBank(consistency, { redisUrl: redis.url })
  return { bank, redis, here: await bank.open(options), there: await bank.open(options) }
}

async function serve(args: readonly string[] = []): Promise<Server> {
  const server = await startRedis({ args: ['--repl-diskless-sync-delay', '0', ...args] })
  onTestFinished(server.stop)
  return server
}

/** A replica of `master`, and the network between the two. It has all that the master has. */
async function replicate(master: Server) {
  const link = await startProxy(master.port)
  onTestFinished(link.close)
  const replica = await serve(['--replicaof', '127.0.0.1', String(link.port)])
  await soon(async () => expect(await lookAt(master.url).wait(1, 100)).toBe(1))
  return { replica, link }
}

/** The master is lost, and the replica takes its place and its address. */
async function failOver(master: Server, replica: Server, processes: readonly Process[]): Promise<void> {
  await master.kill()
  await lookAt(replica.url).replicaof('NO', 'ONE')
  for (const { redisNetwork } of processes) {
    redisNetwork.leadTo(replica.port)
    redisNetwork.cut()
  }
  await untilConnected(...processes)
}

const soon = (check: () => unknown) => vi.waitFor(check, { timeout: 10_000, interval: 10 })

/** What account 1 is said to be, by one process and the other. */
async function everywhere(...processes: readonly Process[]): Promise<number[]> {
  const balances: number[] = []
  for (const { read } of processes) balances.push(await read())
  return balances
}

/** Pays 90 from account 1, and stops after COMMIT, before anything is cleared. */
async function writeUpToCommit(process: Process) {
  const clear = hold(process, 'before', 'clear')
  const writing = process.write(90)
  await Promise.race([clear.reached, writing])
  return {
    clear,
    writing,
    async goOn() {
      clear.goOn()
      await writing
    },
  }
}

/** The clear gets as far as the network, and is lost there together with the connection. */
async function loseTheClear(process: Process): Promise<void> {
  const { clear, writing } = await writeUpToCommit(process)
  process.redisNetwork.hold('requests')
  clear.goOn()
  await new Promise(setImmediate)
  process.redisNetwork.cut()
  process.redisNetwork.release()
  await writing
}

describe(ROWS.quiet, () => {
  interface Scene {
    readonly consistency: Consistency
    readonly bank: Bank
    readonly redis: Server
    /** The one that writes. A crash leaves its successor here. */
    here: Process
    readonly there: Process
  }

  /** Each takes a bank with 100 on its account through a fault, and says what the database has then. */
  const FAULTS: Record<string, (scene: Scene) => Promise<number>> = {
    async 'a reader that fills after a write what it read before it'({ here, there }) {
      const late = await slowReader(there)
      await here.write(90)
      await late.fill()
      return 90
    },

    async 'a transaction that is rolled back'({ here, there }) {
      await warm(here, there)
      const undone = here.cache.transaction(async (trx) => {
        await trx.updateTable('accounts').set({ balance: 90 }).execute()
        expect([await here.look(), await there.read()]).toEqual([90, 100])
        throw new Error('changed my mind')
      })
      await expect(undone).rejects.toThrow('changed my mind')
      return 100
    },

    async 'a COMMIT that is refused'({ bank, here, there }) {
      await bank.foreign(`
        create function refuse() returns trigger language plpgsql as $$ begin raise exception 'refused'; end $$;
        create constraint trigger refuse after update on accounts deferrable initially deferred
          for each row execute function refuse()`)
      await warm(here, there)
      await expect(here.write(90)).rejects.toThrow('refused')
      return 100
    },

    async 'a lease that ends before its reader fills'({ bank, redis, here, there }) {
      const late = await slowReader(there)
      await lookAt(redis.url).pexpire(bank.key, 0)
      await here.write(90)
      await late.fill()
      return 90
    },

    async 'a lease that ends, and is another reader’s when the first one fills'({
      bank,
      redis,
      here,
      there,
    }) {
      const late = await slowReader(there)
      await lookAt(redis.url).pexpire(bank.key, 0)
      await here.write(90)
      const next = await slowReader(here)
      await late.fill()
      await next.fill()
      expect(await bank.entry()).toBe('value')
      return 90
    },

    async 'a writer that dies after COMMIT'(scene) {
      await warm(scene.here, scene.there)
      await writeUpToCommit(scene.here)
      scene.here = await scene.bank.open()
      return 90
    },

    async 'a writer that dies before COMMIT'(scene) {
      const { consistency, bank, here, there } = scene
      await warm(here, there)
      const last = consistency === 'strict' ? hold(here, 'after', 'intend') : gate()
      const writing = here.db.transaction().execute(async (trx) => {
        await trx.updateTable('accounts').set({ balance: 90 }).execute()
        if (consistency === 'default') await last.pass()
      })
      writing.catch(() => {})
      await last.reached
      here.databaseNetwork.cut()
      scene.here = await bank.open()
      return 100
    },

    async 'a clear that never arrives'({ here, there }) {
      await warm(here, there)
      await loseTheClear(here)
      return 90
    },

    async 'a clear whose answer never arrives'({ bank, here, there }) {
      await warm(here, there)
      const { clear, writing } = await writeUpToCommit(here)
      here.redisNetwork.hold('replies')
      clear.goOn()
      await soon(async () => expect(await bank.entry()).toBe('nothing'))
      here.redisNetwork.cut()
      here.redisNetwork.release()
      await writing
      return 90
    },

    async 'a fill that never arrives'({ bank, here, there }) {
      const late = await slowReader(there)
      there.redisNetwork.hold('requests')
      const filled = late.fill()
      await new Promise(setImmediate)
      there.redisNetwork.cut()
      there.redisNetwork.release()
      await filled
      expect(await bank.entry()).toBe('lease')
      await here.write(90)
      return 90
    },

    async 'a fill that was under way for longer than a write took'({ here, there }) {
      const late = await slowReader(there)
      there.redisNetwork.hold('requests')
      const filled = late.fill()
      await new Promise(setImmediate)
      await here.write(90)
      there.redisNetwork.release()
      await filled
      return 90
    },

    async 'psql writes'({ bank, here, there }) {
      await warm(here, there)
      await bank.foreign('update accounts set balance = 90')
      return 90
    },

    async 'psql writes while a reader loads'({ bank, there }) {
      const late = await slowReader(there)
      await bank.foreign('update accounts set balance = 90')
      await late.fill()
      return 90
    },

    async 'a Redis that is restarted, and comes back empty'({ bank, redis, here, there }) {
      const late = await slowReader(there)
      await redis.kill()
      await bank.foreign('update accounts set balance = 90')
      await redis.restart()
      await untilConnected(here, there)
      await late.fill()
      return 90
    },

    async 'a Redis that comes back with what was written over before'({ bank, redis, here, there }) {
      await warm(here, there)
      await lookAt(redis.url).save()
      await here.write(90)
      await nothingIsOwed(bank, here)
      await redis.kill()
      await redis.restart()
      expect(await bank.entry()).toBe('value')
      return 90
    },

    async 'a Redis that comes back with a lease that was taken away'({ bank, redis, here, there }) {
      const late = await slowReader(there)
      await lookAt(redis.url).save()
      await here.write(90)
      await nothingIsOwed(bank, here)
      await redis.kill()
      await redis.restart()
      expect(await bank.entry()).toBe('lease')
      await untilConnected(here, there)
      await late.fill()
      return 90
    },

    async 'a failover to a replica that missed a clear'({ bank, redis, here, there }) {
      await warm(here, there)
      const { replica, link } = await replicate(redis)
      link.hold('replies')
      await here.write(90)
      await nothingIsOwed(bank, here)
      await failOver(redis, replica, [here, there])
      expect(await bank.entry(replica.url)).toBe('value')
      return 90
    },

    async 'a failover to a replica that missed that a lease was taken away'({ bank, redis, here, there }) {
      const late = await slowReader(there)
      const { replica, link } = await replicate(redis)
      link.hold('replies')
      await here.write(90)
      await nothingIsOwed(bank, here)
      await failOver(redis, replica, [here, there])
      expect(await bank.entry(replica.url)).toBe('lease')
      await late.fill()
      return 90
    },
  }

  /** So whatever goes right from here on, it is no relay that puts it right. */
  async function nothingIsOwed(bank: Bank, { cache }: Process): Promise<void> {
    await cache.idle()
    expect(await bank.debt()).toBe(0)
  }

  describe.each(CONSISTENCIES)('%s, after', (consistency) => {
    test.each(Object.entries(FAULTS))('%s', async (_, strike) => {
      const scene: Scene = { consistency, ...(await onOwnRedis(consistency)) }
      const balance = await strike(scene)
      const { bank, here, there } = scene
      await quiet(there, here)
      expect([await bank.balance(), await bank.debt()]).toEqual([balance, 0])
      expect(await everywhere(there, here)).toEqual([balance, balance])
      // Once more, from what those lookups have cached.
      await Promise.all([here.cache.idle(), there.cache.idle()])
      expect(await everywhere(there, here)).toEqual([balance, balance])
    })
  })
})

describe.each(CONSISTENCIES)(`${ROWS.uncommitted}: %s`, (consistency) => {
  /** From the cache, that is, and not from SQL. */
  async function expectCached(process: Process, balance: number): Promise<void> {
    expect(await expectTrips(process.cache, { mget: 1 }, process.read)).toBe(balance)
  }

  test('what a transaction has written is read in it, and is in no cache, also when it was not cached before', async () => {
    const { bank, here, there } = await onSharedServers(consistency)
    const undone = here.cache.transaction(async (trx) => {
      await trx.updateTable('accounts').set({ balance: 90 }).execute()
      expect(await here.look()).toBe(90)
      await here.cache.idle()
      expect(await bank.entry()).toBe('nothing')
      expect(await there.read()).toBe(100)
      await there.cache.idle()
      await expectCached(there, 100)
      expect(await here.look()).toBe(90)
      throw new Error('changed my mind')
    })
    await expect(undone).rejects.toThrow('changed my mind')
    await expectCached(here, 100)
    await expectCached(there, 100)
  })

  test('an open transaction of Kysely: lookups beside it see what is committed, until it is', async () => {
    const { here, there } = await onSharedServers(consistency)
    const trx = await here.db.startTransaction().execute()
    await trx.updateTable('accounts').set({ balance: 90 }).execute()
    await warm(here, there)
    await expectCached(here, 100)
    await trx.rollback().execute()
    await expectCached(here, 100)
    await expectCached(there, 100)

    const second = await here.db.startTransaction().execute()
    await second.updateTable('accounts').set({ balance: 80 }).execute()
    await expectCached(there, 100)
    await second.commit().execute()
    expect(await everywhere(here, there)).toEqual([80, 80])
  })

  test('a transaction of another program that is rolled back', async () => {
    const { bank, here, there } = await onSharedServers(consistency)
    const psql = new Client({ connectionString: bank.databaseUrl })
    await psql.connect()
    onTestFinished(() => psql.end())
    await psql.query('begin; update accounts set balance = 90')
    await warm(here, there)
    await quiet(here, there)
    await psql.query('rollback')
    await quiet(here, there)
    await expectCached(here, 100)
    await expectCached(there, 100)
  })
})

test(`${ROWS.uncommitted}: strict, when the connection is lost between the intents and COMMIT`, async () => {
  const { bank, here, there } = await onSharedServers('strict')
  await warm(here, there)
  const intended = hold(here, 'after', 'intend')
  const writing = here.write(90)
  await intended.reached
  expect(await everywhere(here, there)).toEqual([100, 100])
  await bank.foreign(`select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and xact_start is not null and pid <> pg_backend_pid()`)
  intended.goOn()
  await expect(writing).rejects.toThrow(/terminat|connection/)
  await expect(writing).rejects.not.toBeInstanceOf(CommitOutcomeUnknownError)
  expect(await bank.entry()).toBe('nothing')
  // Until the pool has found out, it may give away the connection that was lost.
  await soon(here.read)
  expect(await everywhere(here, there)).toEqual([100, 100])
})

describe(ROWS.returned, () => {
  describe.each(CONSISTENCIES)('%s', (consistency) => {
    test('what both had cached', async () => {
      const { here, there } = await onSharedServers(consistency)
      await warm(here, there)
      await here.write(90)
      expect(await everywhere(here, there)).toEqual([90, 90])
      await warm(here, there)
      await there.write(80)
      expect(await everywhere(here, there)).toEqual([80, 80])
    })

    test('not before it is so: it returns when the clear has been answered', async () => {
      const { here, there } = await onSharedServers(consistency)
      await warm(here, there)
      const cleared = hold(here, 'after', 'clear')
      const writing = here.write(90)
      await cleared.reached
      expect(await everywhere(here, there)).toEqual([90, 90])
      expect(await isSettled(writing)).toBe(false)
      cleared.goOn()
      await writing
    })

    test('though a reader that came before is still under way in that process, and could be joined', async () => {
      const { here, there } = await onSharedServers(consistency)
      const late = await slowReader(there)
      await here.write(90)
      expect(await everywhere(there, here)).toEqual([90, 90])
      await late.fill()
      expect(late.answer).toBe(100)
      expect(await everywhere(there, here)).toEqual([90, 90])
    })

    test('though that reader’s key is being loaded by another one since', async () => {
      const { here, there } = await onSharedServers(consistency)
      const late = await slowReader(there)
      await here.write(90)
      const next = await slowReader(here)
      expect(await there.read()).toBe(90)
      await late.fill()
      await next.fill()
      expect(await everywhere(there, here)).toEqual([90, 90])
    })

    test('while both processes read and write all the time', async () => {
      const { overtakenByWrites } = await hammer(consistency)
      expect(overtakenByWrites).toEqual([])
    })
  })

  test('default, a lost clear: other processes may see the old value, until the relay has its turn', async () => {
    const { here, there } = await onSharedServers('default')
    await warm(here, there)
    await loseTheClear(here)
    expect(here.cache.stats().deferred).toBe(1)
    expect(await there.read()).toBe(100)
    expect(await insidesOf(there.cache).relay.turn(0)).toBe(1)
    expect(await everywhere(here, there)).toEqual([90, 90])
  })

  test('default, a lost clear, with a relay that nobody has to turn', async () => {
    const { bank, here, there } = await onSharedServers('default')
    await warm(here, there)
    await loseTheClear(here)
    const relaying = await bank.open({ relay: {} })
    await soon(async () => expect(await there.read()).toBe(90))
    await soon(() => expect(relaying.cache.stats().relayed).toBe(1))
  })

  test('strict, a lost clear: the intents still stand, or it is made again', async () => {
    const { here, there } = await onSharedServers('strict')
    await warm(here, there)
    await loseTheClear(here)
    expect(await everywhere(there, here)).toEqual([90, 90])
  })

  describe('strict, a lost clear, after Redis has lost the intents', () => {
    /** Redis was restarted before COMMIT, and a reader has filled the old balance before it too. */
    async function writeWithoutIntents() {
      const { redis, here, there } = await onOwnRedis('strict')
      const intended = hold(here, 'after', 'intend')
      const writing = here.write(90)
      await intended.reached
      await redis.kill()
      await redis.restart()
      await untilConnected(here, there)
      await warm(there)
      const clear = hold(here, 'before', 'clear')
      intended.goOn()
      await clear.reached
      return { here, there, clear, writing }
    }

    test('it is made again before the call returns', async () => {
      const { there, clear, writing } = await writeWithoutIntents()
      clear.fail()
      await writing
      expect(await there.read()).toBe(90)
    })

    test('no clear gets through for two seconds: old until the relay has its turn', async () => {
      const { here, there, clear, writing } = await writeWithoutIntents()
      here.redisNetwork.hold()
      here.redisNetwork.cut()
      clear.goOn()
      await writing
      expect(here.cache.stats().deferred).toBeGreaterThan(1)
      expect(await there.read()).toBe(100)
      expect(await insidesOf(there.cache).relay.turn(0)).toBe(1)
      expect(await there.read()).toBe(90)
    })
  })

  test('strict, a clear that failed on a connection that stayed: the intents still stand', async () => {
    const { bank, here, there } = await onSharedServers('strict')
    await warm(here, there)
    const { clear, writing } = await writeUpToCommit(here)
    clear.fail()
    await writing
    expect(await bank.entry()).toBe('intent')
    expect(await everywhere(there, here)).toEqual([90, 90])
  })
})

describe(ROWS.linearizable, () => {
  test('strict: not while a write is at any point of its way', async () => {
    const { here, there } = await onSharedServers('strict')
    await warm(here, there)
    const seen: number[] = []
    const look = async () => void seen.push(...(await everywhere(here, there, here, there)))
    const intended = hold(here, 'after', 'intend')
    const writing = here.write(90)
    await intended.reached
    await look()
    const clear = hold(here, 'before', 'clear')
    intended.goOn()
    await clear.reached
    seen.push(await readPastRedis(there))
    await look()
    clear.goOn()
    await writing
    await look()
    expect(seen).toEqual([100, 100, 100, 100, 90, 90, 90, 90, 90, 90, 90, 90, 90])
  })

  test('strict: not when a reader fills between COMMIT and clear what it read before', async () => {
    const { bank, here, there } = await onSharedServers('strict')
    const late = await slowReader(there)
    const write = await writeUpToCommit(here)
    expect(await readPastRedis(there)).toBe(90)
    await late.fill()
    expect(await bank.entry()).toBe('intent')
    expect(await everywhere(there, here)).toEqual([90, 90])
    await write.goOn()
    expect(await everywhere(there, here)).toEqual([90, 90])
  })

  test('strict: not when two writers follow each other so closely that the second has its intents before the first clears', async () => {
    const { bank, here, there } = await onSharedServers('strict')
    const reader = await bank.open()
    await warm(reader)
    const first = await writeUpToCommit(here)
    const intended = hold(there, 'after', 'intend')
    const second = there.write(80)
    await intended.reached
    await first.goOn()
    // Were the second one's intents gone with the clear of the first, this would cache what is about to be old.
    expect(await reader.read()).toBe(90)
    const clear = hold(there, 'before', 'clear')
    intended.goOn()
    await clear.reached
    expect([await readPastRedis(reader), await reader.read()]).toEqual([80, 80])
    clear.goOn()
    await second
    expect(await reader.read()).toBe(80)
  })

  test('strict: not when the relay comes in between', async () => {
    const { bank, here, there } = await onSharedServers('strict')
    await bank.foreign('update accounts set balance = 100')
    await warm(here, there)
    const intended = hold(here, 'after', 'intend')
    const writing = here.write(90)
    await intended.reached
    expect(await insidesOf(there.cache).relay.turn(0)).toBe(1)
    expect(await there.read()).toBe(100)
    const clear = hold(here, 'before', 'clear')
    intended.goOn()
    await clear.reached
    expect([await readPastRedis(there), await there.read()]).toEqual([90, 90])
    clear.goOn()
    await writing
  })

  test('strict: not while both processes read and write all the time', async () => {
    const { overtakenByReads } = await hammer('strict')
    expect(overtakenByReads).toEqual([])
  })

  test('default: possible between COMMIT and clear, and over when the write returns', async () => {
    const { here, there } = await onSharedServers('default')
    await warm(here, there)
    const write = await writeUpToCommit(here)
    expect([await readPastRedis(there), await there.read()]).toEqual([90, 100])
    await write.goOn()
    expect(await everywhere(here, there)).toEqual([90, 90])
  })

  describe('strict, if Redis forgets an intent in force: possible between COMMIT and clear, and over when the write returns', () => {
    test.each([
      [
        'an eviction',
        async (bank: Bank, redis: Server) => {
          await lookAt(redis.url).del(bank.key)
        },
      ],
      [
        'a flush',
        async (_: Bank, redis: Server) => {
          await lookAt(redis.url).flushall()
        },
      ],
      [
        'a failover to a replica that did not have it yet',
        async (_: Bank, redis: Server, processes: readonly Process[], replica: Server) =>
          failOver(redis, replica, processes),
      ],
    ])('%s', async (_, forget) => {
      const { bank, redis, here, there } = await onOwnRedis('strict')
      const { replica, link } = await replicate(redis)
      link.hold('replies')
      const intended = hold(here, 'after', 'intend')
      const writing = here.write(90)
      await intended.reached
      await forget(bank, redis, [here, there], replica)
      await warm(there)
      const clear = hold(here, 'before', 'clear')
      intended.goOn()
      await clear.reached
      expect([await readPastRedis(there), await there.read()]).toEqual([90, 100])
      clear.goOn()
      await writing
      expect(await everywhere(here, there)).toEqual([90, 90])
    })
  })

  test('strict, through a failover with WAIT: not, as the replica has the intents before COMMIT', async () => {
    const { bank, redis, here, there } = await onOwnRedis('strict', { intentReplicas: 1 })
    const { replica, link } = await replicate(redis)
    link.hold('replies')
    const intended = hold(here, 'after', 'intend')
    const writing = here.write(90)
    await soon(async () => expect(await bank.entry()).toBe('intent'))
    expect(await isSettled(intended.reached)).toBe(false)
    link.release()
    await intended.reached
    await failOver(redis, replica, [here, there])
    expect(await bank.entry(replica.url)).toBe('intent')
    await warm(there)
    const clear = hold(here, 'before', 'clear')
    intended.goOn()
    await clear.reached
    expect([await readPastRedis(there), await there.read()]).toEqual([90, 90])
    clear.goOn()
    await writing
    expect(await everywhere(here, there)).toEqual([90, 90])
  })
})

describe(`${ROWS.foreign}: visible within the relay's time`, () => {
  describe.each(CONSISTENCIES)('%s', (consistency) => {
    test('what is cached is seen until the relay has its turn, and never again', async () => {
      const { bank, here, there } = await onSharedServers(consistency)
      await warm(here, there)
      await bank.foreign('update accounts set balance = 90')
      expect(await everywhere(here, there)).toEqual([100, 100])
      expect(await insidesOf(here.cache).relay.turn(0)).toBe(1)
      expect(await everywhere(here, there)).toEqual([90, 90])
    })

    test('nobody has to turn it', async () => {
      const { bank, here, there } = await onSharedServers(consistency)
      const relaying = await bank.open({ relay: {} })
      await warm(here, there)
      await bank.foreign('update accounts set balance = 90')
      await soon(async () => expect(await everywhere(here, there)).toEqual([90, 90]))
      await soon(() => expect(relaying.cache.stats().relayed).toBe(1))
    })
  })
})

describe(ROWS.oneStatement, () => {
  const READERS = 10

  const statements = (...processes: readonly Process[]) =>
    processes.map(({ cache }) => cache.stats().trips.select)

  /** In a tick each: those of one tick are one wave, and so are those that have waited for their models to be bound. */
  async function herd({ cache, read }: Process): Promise<Promise<number>[]> {
    await cache.ready()
    const readers: Promise<number>[] = []
    for (let i = 0; i < READERS; i++) {
      readers.push(read())
      await new Promise((resolve) => setImmediate(resolve))
    }
    return readers
  }

  /** One reader has the lease, and its SQL is held. */
  async function loading({ cache, read }: Process) {
    const steps = holdSteps(cache)
    onTestFinished(steps.release)
    const reading = read()
    await steps.take('getMany')
    await steps.take('acquire')
    const select = await steps.next('select')
    insidesOf(cache).hook.gate = undefined
    return { reading, load: select.take }
  }

  test.each(CONSISTENCIES)('%s', async (consistency) => {
    const { here, there } = await onSharedServers(consistency)
    const before = statements(here, there)
    const { reading, load } = await loading(here)
    const joining = await herd(here)
    const steps = holdSteps(there.cache)
    onTestFinished(steps.release)
    const waiting = await herd(there)
    for (let i = 0; i < READERS; i++) await steps.take('getMany')
    // One of the other process will look again, and the rest wait for it.
    const held = [...Array(READERS - 1).fill('join'), 'sleep']
    await soon(() => expect(steps.held.map(({ op }) => op).sort()).toEqual(held))
    await load()
    await here.cache.idle()
    steps.release()
    expect(new Set(await Promise.all([reading, ...joining, ...waiting]))).toEqual(new Set([100]))
    expect(statements(here, there)).toEqual([(before[0] as number) + 1, before[1]])
  })

  test.each(CONSISTENCIES)(
    '%s, a load that takes longer than 50 ms: another process then asks SQL for itself, once for all who wait',
    async (consistency) => {
      const { here, there } = await onSharedServers(consistency)
      const before = statements(here, there)
      const { reading, load } = await loading(here)
      expect(new Set(await Promise.all(await herd(there)))).toEqual(new Set([100]))
      await load()
      await reading
      expect(statements(here, there)).toEqual(before.map((count) => count + 1))
    },
  )

  test('strict, under an intent: each reader asks SQL', async () => {
    const { here, there } = await onSharedServers('strict')
    await warm(here, there)
    const before = statements(here, there)
    const { writing, clear } = await writeUpToCommit(here)
    expect(new Set(await Promise.all([...(await herd(here)), ...(await herd(there))]))).toEqual(new Set([90]))
    expect(statements(here, there)).toEqual(before.map((count) => count + READERS))
    clear.goOn()
    await writing
  })
})

describe(ROWS.trips, () => {
  /** What was asked of Redis about account 1 since this was asked last: commands by name, scripts by theirs. */
  async function watch(bank: Bank, redis: Server) {
    // Not the `monitor` of ioredis, which fails when something is asked at the very moment that it begins.
    const socket = connect(redis.port, '127.0.0.1').setEncoding('utf8')
    onTestFinished(() => void socket.destroy())
    let log = ''
    socket.on('data', (text) => {
      log += text
    })
    const logged = (text: string) => soon(() => expect(log).toContain(text))
    socket.write('MONITOR\r\n')
    await logged('+OK')
    let marks = 0
    return async () => {
      const mark = `mark ${++marks}`
      await lookAt(redis.url).echo(mark)
      await logged(mark)
      const lines = log
        .split('\r\n')
        .filter((line) => line.includes(`"${bank.key}"`) && !line.includes(' lua] '))
      log = ''
      return lines.map((line) => {
        const [command, argument] = Array.from(line.matchAll(/"([^"]*)"/g), ([, text]) => text)
        return SCRIPTS.find(({ sha }) => sha === argument)?.name ?? command
      })
    }
  }

  const WRITE = { default: ['clear'], strict: ['intend', 'clear'] } as const

  describe.each(CONSISTENCIES)('%s', (consistency) => {
    test('hit: 1', async () => {
      const { bank, redis, there } = await onOwnRedis(consistency)
      await warm(there)
      const asked = await watch(bank, redis)
      await there.read()
      await there.cache.idle()
      expect(await asked()).toEqual(['mget'])
    })

    test('miss: 2, and the fill, for which its caller does not wait', async () => {
      const { bank, redis, here } = await onOwnRedis(consistency)
      const asked = await watch(bank, redis)
      const { answer, fill } = await slowReader(here)
      expect([answer, await asked()]).toEqual([100, ['mget', 'acquire']])
      await fill()
      expect(await asked()).toEqual(['fill'])
    })

    test(`write: ${WRITE[consistency].length}`, async () => {
      const { bank, redis, here } = await onOwnRedis(consistency)
      await warm(here)
      const asked = await watch(bank, redis)
      await here.write(90)
      expect(await asked()).toEqual(WRITE[consistency])
      await here.cache.idle()
      expect(await asked()).toEqual([])
    })

    test('write: it waits for each of them', async () => {
      const { here } = await onSharedServers(consistency)
      const held = WRITE[consistency].map((step) => hold(here, 'after', step))
      const writing = here.write(90)
      for (const { reached, goOn } of held) {
        await reached
        expect(await isSettled(writing)).toBe(false)
        goOn()
      }
      await writing
    })
  })
})

async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  const settled = promise.then(
    () => true,
    () => true,
  )
  return Promise.race([settled, new Promise<boolean>((resolve) => setImmediate(resolve, false))])
}

/**
 * Two processes read account 1 all the time, and write ever higher balances to it. Returns the reads that came back
 * with less than a write had returned before they began, or less than another read had.
 */
async function hammer(consistency: Consistency) {
  const { here, there } = await onSharedServers(consistency)
  const known = { written: 0, read: 0 }
  const overtakenByWrites: string[] = []
  const overtakenByReads: string[] = []
  let writers = 2
  let next = 101
  const keepReading = async ({ read }: Process) => {
    while (writers > 0) {
      const before = { ...known }
      const balance = await read()
      if (balance < before.written) overtakenByWrites.push(`${balance} after ${before.written}`)
      if (balance < before.read) overtakenByReads.push(`${balance} after ${before.read}`)
      known.read = Math.max(known.read, balance)
    }
  }
  let turn = Promise.resolve()
  const keepWriting = async ({ write }: Process) => {
    for (let i = 0; i < 25; i++) {
      turn = turn.then(async () => {
        const balance = next++
        await write(balance)
        known.written = balance
      })
      await turn
    }
    writers--
  }
  const reading = [here, there, here, there, here, there].map(keepReading)
  await Promise.all([keepWriting(here), keepWriting(there), ...reading])
  // It was caches that were asked, and not SQL alone.
  expect(here.cache.stats().hits + there.cache.stats().hits).toBeGreaterThan(10)
  return { overtakenByWrites, overtakenByReads }
}
