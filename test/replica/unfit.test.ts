import { Kysely, PostgresDialect, sql } from 'kysely'
import { Client } from 'pg'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { startStandby } from '../servers/postgres.ts'
import type { Server } from '../servers/server.ts'
import {
  eventually,
  FLUSH,
  type Line,
  openCache,
  openLine,
  openPair,
  type Pair,
  type PairTables,
  psql,
  soon,
} from './pair.ts'

// Servers are started in it, and the machine may be busy.
vi.setConfig({ testTimeout: 60_000 })

let pair: Pair
let primary: Line
beforeAll(async () => {
  pair = await openPair()
  primary = await openLine('primary', pair.primary)
})
afterAll(async () => {
  await primary.close()
  await pair.close()
})
beforeEach(async () => {
  await pair.resume()
  await pair.caughtUp()
})

async function openReplica(server: Server, config?: object): Promise<Line> {
  const line = await openLine('replica', server, config)
  onTestFinished(() => line.close())
  return line
}

async function open(
  replica: Line,
  options: Parameters<typeof openCache>[1] = {},
  lines: { primary: Line } = { primary },
) {
  const opened = openCache({ ...lines, replica }, options)
  onTestFinished(() => opened.cache.close())
  await opened.cache.ready()
  await sql
    .raw(FLUSH)
    .execute(lines.primary.db)
    .catch(() => {})
  return opened
}

/** Past the store, as often as it takes until a replica that rests is asked again. */
async function untilAnswered(
  { cache, Person }: Awaited<ReturnType<typeof open>>,
  { db } = primary,
): Promise<void> {
  const before = cache.stats().replica.answered
  await soon(async () => {
    await sql.raw(FLUSH).execute(db)
    await Person.cache.refresh({ id: 1 })
    expect(cache.stats().replica.answered).toBeGreaterThan(before)
  })
}

describe('a replica that is not there', () => {
  test('refuses connections: the primary answers, until it is back', async () => {
    const standby = await startStandby(pair.primary)
    onTestFinished(() => standby.stop())
    const replica = await openReplica(standby)
    const opened = await open(replica)
    await opened.Person.cache.getAsync({ id: 1 })
    await standby.kill()
    expect(await opened.Person.cache.getAsync({ id: 2 })).toMatchObject({ name: 'name 2' })
    expect(opened.cache.stats().replica).toMatchObject({ answered: 1, failed: 1 })
    await standby.restart()
    await untilAnswered(opened)
  })

  test('accepts connections and is silent: the primary answers when the wait is over', async () => {
    const replica = await openReplica(pair.standby)
    const opened = await open(replica, { maxWait: '200ms' })
    await untilAnswered(opened)
    const { failed } = opened.cache.stats().replica
    replica.proxy.hold()
    expect(await opened.Person.cache.getAsync({ id: 2 })).toMatchObject({ name: 'name 2' })
    expect(opened.cache.stats().replica).toMatchObject({ failed: failed + 1 })
    expect(await opened.Person.cache.getAsync({ id: 3 })).toMatchObject({ name: 'name 3' })
    replica.proxy.release()
    await untilAnswered(opened)
  })

  test('fails at the load itself: the primary answers, and the replica is asked for the next one', async () => {
    await pair.onPrimary(`
      create function only_on_primary() returns bool language plpgsql as
        $$ begin if pg_is_in_recovery() then raise 'conflict with recovery'; end if; return true; end $$;
      create view visible as select id, title from teams where only_on_primary()`)
    onTestFinished(() =>
      pair.onPrimary('drop view visible; drop function only_on_primary').then(() => undefined),
    )
    const replica = await openReplica(pair.standby)
    const { cache, Person } = await open(replica)
    const Visible = cache.model('visible' as 'teams', { keyFields: [['id']] })
    expect(await Visible.cache.getAsync({ id: 1 })).toEqual({ id: 1, title: 'team 1' })
    expect(cache.stats().replica).toMatchObject({ answered: 0, failed: 1 })
    await Person.cache.getAsync({ id: 1 })
    expect(cache.stats().replica).toMatchObject({ answered: 1, failed: 1, resting: 0 })
  })

  test('what fails on the primary as well is told as the failure of the primary', async () => {
    const replica = await openReplica(pair.standby)
    const { cache, Person } = await open(replica)
    await pair.onPrimary('alter table people rename to persons')
    onTestFinished(() => pair.onPrimary('alter table persons rename to people').then(() => undefined))
    await expect(Person.cache.getAsync({ id: 1 })).rejects.toMatchObject({ code: 'ERR_SOURCE' })
    expect(cache.stats().replica).toMatchObject({ answered: 0, failed: 1 })
  })
})

describe('a server that is no standby of the primary', () => {
  test('promoted: it is not read any more', async () => {
    const standby = await startStandby(pair.primary)
    onTestFinished(() => standby.stop())
    const opened = await open(await openReplica(standby))
    await opened.Person.cache.getAsync({ id: 1 })
    const onStandby = await psql(standby.url)
    await onStandby('select pg_promote()')
    await onStandby("update people set name = 'elsewhere' where id = 2")
    await onStandby.end()
    expect(await opened.Person.cache.getAsync({ id: 2 })).toMatchObject({ name: 'name 2' })
    expect(opened.cache.stats().replica).toMatchObject({ answered: 1, unfit: 1 })
  })

  test('of another Postgres: it is not read, however far its WAL is', async () => {
    const other = await openPair()
    onTestFinished(() => other.close())
    await other.onPrimary("select pg_switch_wal(); update people set name = 'other'; select pg_switch_wal()")
    await other.onPrimary("update people set name = 'other'")
    await other.caughtUp()
    const { cache, Person } = await open(await openReplica(other.standby))
    expect(await Person.cache.getAsync({ id: 1 })).toMatchObject({ name: 'name 1' })
    expect(cache.stats().replica).toMatchObject({ answered: 0, unfit: 1 })
  })

  test('left behind by a failover, and ahead of what became the primary: it is not read', async () => {
    const old = await openPair()
    const left = await startStandby(old.primary)
    onTestFinished(() => Promise.all([old.close(), left.stop()]).then(() => undefined))
    // The next primary is away while the old one writes its last.
    await old.caughtUp()
    await old.standby.kill()
    await old.onPrimary("select pg_logical_emit_message(false, 'test', repeat('x', 1000000))")
    const [{ lsn } = {}] = await old.onPrimary(
      "select pg_logical_emit_message(true, 'test', 'last')::text as lsn",
    )
    const onLeft = await psql(left.url)
    onTestFinished(() => onLeft.end())
    await eventually(onLeft, `pg_last_wal_replay_lsn() >= '${lsn}'`)
    await old.primary.kill()
    await old.standby.restart()
    const onNext = await psql(old.standby.url)
    onTestFinished(() => onNext.end())
    await onNext('select pg_promote()')
    await onNext("update people set name = 'after the failover' where id = 1")
    const [{ next } = {}] = await onNext('select pg_current_wal_insert_lsn()::text as next')
    await eventually(onLeft, `pg_is_in_recovery() and pg_last_wal_replay_lsn() >= '${next}'`)

    const toNext = await openLine('primary', old.standby)
    onTestFinished(() => toNext.close())
    const { cache, Person } = await open(await openReplica(left), {}, { primary: toNext })
    expect(await Person.cache.getAsync({ id: 1 })).toMatchObject({ name: 'after the failover' })
    expect(cache.stats().replica).toMatchObject({ answered: 0, unfit: 1 })
  })

  test('following the new primary after a failover: it is read', async () => {
    // Or no backup could be made of a standby.
    const old = await openPair({ full_page_writes: 'on' })
    await old.onPrimary('create role modest login; grant select on all tables in schema public to modest')
    const follower = await startStandby(old.standby)
    onTestFinished(() => Promise.all([old.close(), follower.stop()]).then(() => undefined))
    await old.caughtUp()
    await old.primary.kill()
    await old.onStandby('select pg_promote()')
    const next = await openLine('primary', old.standby)
    onTestFinished(() => next.close())
    await old.onStandby("update people set name = 'after the failover' where id = 1")
    const opened = await open(await openReplica(follower), {}, { primary: next })
    await untilAnswered(opened, next)
    expect(await opened.Person.cache.getAsync({ id: 1 })).toMatchObject({ name: 'after the failover' })

    // Who may not see the receiver sees it from the next restartpoint on.
    const modest = await open(await openReplica(follower, { user: 'modest' }), {}, { primary: next })
    expect(await modest.Person.cache.getAsync({ id: 1 })).toMatchObject({ name: 'after the failover' })
    expect(modest.cache.stats().replica).toMatchObject({ answered: 0, unfit: 1 })
    await old.onStandby('checkpoint')
    const [flushed] = await old.onStandby(FLUSH)
    const onFollower = await psql(follower.url)
    await eventually(onFollower, `pg_last_wal_replay_lsn() >= '${flushed?.lsn}'`)
    await onFollower('checkpoint')
    await onFollower.end()
    await untilAnswered(modest, next)
  })
})

describe('an address of several servers', () => {
  test('each connection is looked at by itself', async () => {
    const replica = await openReplica(pair.standby, { max: 1, idleTimeoutMillis: 1 })
    const opened = await open(replica)
    await untilAnswered(opened)
    const { unfit } = opened.cache.stats().replica
    replica.proxy.leadTo(pair.primary.port)
    replica.proxy.cut()
    await soon(async () => {
      await opened.Person.cache.refresh({ id: 1 })
      expect(opened.cache.stats().replica.unfit).toBeGreaterThan(unfit)
    })
    replica.proxy.leadTo(pair.standby.port)
    replica.proxy.cut()
    await untilAnswered(opened)
  })

  test('a pooler that deals transactions to servers: what is looked at is what is read', async () => {
    const late = await startStandby(pair.primary)
    onTestFinished(() => late.stop())
    const onLate = await psql(late.url)
    onTestFinished(() => onLate.end())
    await onLate('select pg_wal_replay_pause()')
    await eventually(onLate, "pg_get_wal_replay_pause_state() = 'paused'")
    await pair.onPrimary("update people set name = 'dealt' where id > 10")
    onTestFinished(() => pair.onPrimary("update people set name = 'name ' || id").then(() => undefined))

    const clients = [pair.standby, late].map(({ url }) => new Client({ connectionString: url }))
    for (const client of clients) client.on('error', () => {})
    await Promise.all(clients.map((client) => client.connect()))
    let turn = 0
    let mine: Client | undefined
    const query = (text: string, values: unknown[]) => {
      const client = mine ?? (clients[turn++ % 2] as Client)
      if (/^start/.test(text)) mine = client
      if (/^(commit|rollback)/.test(text)) mine = undefined
      return client.query(text, values)
    }
    const pool = {
      connect: async () => ({ query, release: () => {} }),
      end: () => Promise.all(clients.map((client) => client.end())),
    }
    const db = new Kysely<PairTables>({ dialect: new PostgresDialect({ pool: pool as never }) })
    onTestFinished(() => db.destroy())
    const { cache, Person } = await open({ ...primary, db }, { maxWait: '1s' })
    for (const id of [11, 12, 13, 14]) {
      expect(await Person.cache.getAsync({ id })).toMatchObject({ name: 'dealt' })
      const settled = () => expect(mine).toBe(undefined)
      await soon(settled)
    }
    const { answered, behind } = cache.stats().replica
    expect(answered).toBeGreaterThan(0)
    expect(behind).toBeGreaterThan(0)
  })
})

test('a primary that cannot say where it is: it answers by itself', async () => {
  const standby = await openReplica(pair.standby)
  const { cache, Person } = await open(await openReplica(pair.standby), {}, { primary: standby })
  expect(await Person.cache.getAsync({ id: 1 })).toMatchObject({ id: 1 })
  expect(cache.stats().replica).toMatchObject({ answered: 0, failed: 1 })
})
