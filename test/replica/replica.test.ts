import { channel } from 'node:diagnostics_channel'
import type { PGlite } from '@electric-sql/pglite'
import { CamelCasePlugin, Kysely, PGliteDialect } from 'kysely'
import { createModelCache, type LoadedShape, type ReplicaMessage, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import {
  eventually,
  type Line,
  openCache,
  openLine,
  openPair,
  PATIENT,
  type Pair,
  type PairTables,
  psql,
  soon,
} from './pair.ts'

/** What a load from a replica consists of, by what its statements begin with. */
const FROM_REPLICA = ['start transaction', 'select case', 'select', 'commit'].map((text) =>
  expect.stringMatching(`^\\s*${text}`),
)
const POSITION = expect.stringContaining('pg_current_wal_insert_lsn()')

// Servers are started in it, and the machine may be busy.
vi.setConfig({ testTimeout: 60_000 })

let pair: Pair
let primary: Line
let replica: Line
beforeAll(async () => {
  pair = await openPair()
  primary = await openLine('primary', pair.primary)
  replica = await openLine('replica', pair.standby)
})
afterAll(async () => {
  await primary.close()
  await replica.close()
  await pair.close()
})
beforeEach(async () => {
  await pair.resume()
  await pair.caughtUp()
})

type Options = Parameters<typeof openCache>

/** A cache whose models are bound, so that from now on statements are those of lookups. */
async function open(options: Options[1] = {}, more: Options[2] = {}, lines = { primary, replica }) {
  const opened = openCache(lines, options, more)
  onTestFinished(() => opened.cache.close())
  await opened.cache.ready()
  await pair.caughtUp()
  return opened
}

/**
 * Resolves to the statements that each server answers while `fn` runs, commits included. However often the replica is
 * asked whether it is ready, it is told as once.
 */
async function statementsOf(lines: { primary: Line; replica: Line }, fn: () => Promise<unknown>) {
  await replicaIsQuiet(lines)
  lines.primary.statements.length = 0
  lines.replica.statements.length = 0
  await fn()
  await replicaIsQuiet(lines)
  const isAgain = (text: string, i: number, all: string[]) =>
    text.includes('select case') && text === all[i - 1]
  return {
    primary: [...lines.primary.statements],
    replica: lines.replica.statements.filter((...each) => !isAgain(...each)),
  }
}

/** Answers do not wait for the end of their transactions. */
function replicaIsQuiet({ replica: { statements } }: { replica: Line }): Promise<void> {
  const count = (pattern: RegExp) => statements.filter((text) => pattern.test(text)).length
  return soon(() => expect(count(/^(commit|rollback)/)).toBe(count(/^start/)))
}

const inScope = <T>(fn: () => Promise<T>): Promise<T> => runInLoop(fn)()

describe('a replica that is not behind', () => {
  test('answers, and the primary only says where it is', async () => {
    const { cache, Person } = await open()
    const statements = await statementsOf({ primary, replica }, async () => {
      expect(await Person.cache.getAsync({ id: 1 })).toEqual({
        id: 1,
        name: 'name 1',
        team_id: 2,
        best_friend: 2,
      })
    })
    expect(statements).toEqual({ primary: [POSITION], replica: FROM_REPLICA })
    expect(cache.stats().replica).toEqual({ answered: 1, behind: 0, unfit: 0, failed: 0, resting: 0 })
  })

  test('fills, as the primary does', async () => {
    const { cache, Person } = await open()
    const look = () => inScope(() => Person.cache.getAsync({ id: 1 }))
    const first = await expectTrips(cache, { mget: 1, acquire: 1, select: 1, fill: 1 }, look)
    expect(await expectTrips(cache, { mget: 1 }, look)).toEqual(first)
  })

  test('is asked by one statement per shape, and the primary by one per wave', async () => {
    const { cache, Person, Team } = await open()
    const Size = cache.count({ name: 'Size', model: Person, keyFields: ['team_id'] })
    await cache.ready()
    const page = runInLoop(() =>
      Promise.all([
        Person.cache.getAsync({ id: 1 }),
        Person.cache.getAsync({ id: 2 }),
        Person.cache.getAsyncOrNone({ id: 999 }),
        Person.cache.filterAsync({ team_id: 3 }),
        Team.cache.getAsync({ id: 3 }),
        Size({ team_id: 3 }).resolveAsync(),
      ]),
    )
    const statements = await statementsOf({ primary, replica }, page)
    expect(statements.primary).toEqual([POSITION])
    expect(statements.replica.filter((text) => text.startsWith('commit'))).toHaveLength(4)
    expect(statements.replica.filter((text) => text.startsWith('select'))).toHaveLength(4)
    expect(cache.stats().replica).toMatchObject({ answered: 4 })
  })

  test('loads for every kind of cache that needs no function', async () => {
    const { cache, Person, Team } = await open()
    const caches = {
      exists: cache.exists({ name: 'Any', model: Person, keyFields: ['team_id'] }),
      count: cache.count({ name: 'Size', model: Person, keyFields: ['team_id'] }),
      first: cache.queryset({ name: 'First', model: Person, keyFields: ['team_id'], single: true }),
      related: cache.related({
        name: 'Friends',
        model: Team,
        keyFields: ['id'],
        path: [
          { model: Person, on: { id: 'team_id' } },
          { model: Person, on: { best_friend: 'id' } },
        ],
      }),
    }
    await cache.ready()
    const statements = await statementsOf({ primary, replica }, async () => {
      expect(await caches.exists({ team_id: 1 }).resolveAsync()).toBe(true)
      expect(await caches.count({ team_id: 1 }).resolveAsync()).toBe(5)
      expect(await caches.first({ team_id: 1 }).resolveAsync()).toMatchObject({ id: 4 })
      expect(await caches.related({ id: 1 }).resolveAsync()).toHaveLength(5)
    })
    expect(statements.primary).toEqual([POSITION, POSITION, POSITION, POSITION])
    expect(cache.stats().replica).toMatchObject({ answered: 4 })
  })

  test('gives rows as the primary does: the plugins are those of db', async () => {
    const camel = { ...primary, db: primary.db.withPlugin(new CamelCasePlugin()) } as unknown as Line
    const { cache, Person } = await open({}, {}, { primary: camel, replica })
    const row = (await Person.cache.getAsync({ id: 1 })) as unknown
    expect(row).toEqual({ id: 1, name: 'name 1', teamId: 2, bestFriend: 2 })
    expect(cache.stats().replica).toMatchObject({ answered: 1 })
  })

  test('is not behind where the WAL of the primary ends with a page, or a segment', async () => {
    const { cache, Person } = await open()
    const insertAt = async () => {
      const [row] = await pair.onPrimary("select (pg_current_wal_insert_lsn() - '0/0')::text as at")
      return Number(row?.at)
    }
    const emit = (bytes: number) =>
      pair.onPrimary(`select pg_logical_emit_message(true, 'test', repeat('x', ${bytes}))`)
    // How much a message takes besides its bytes is found out; then one is made that ends where the page does.
    await soon(async () => {
      const before = await insertAt()
      await emit(100)
      const between = await insertAt()
      await emit(100 + (8192 - (between % 8192)) - (between - before))
      expect((await insertAt()) % 8192).toBe(24)
    })
    await statementsOf({ primary, replica }, () => Person.cache.getAsync({ id: 1 }))
    await soon(async () => {
      await pair.onPrimary('select pg_switch_wal()')
      expect((await insertAt()) % (16 * 1024 * 1024)).toBe(40)
    })
    await Person.cache.getAsync({ id: 2 })
    expect(cache.stats().replica).toMatchObject({ answered: 2, behind: 0 })
  })

  test('is waited for while it catches up', async () => {
    const { cache, Person } = await open()
    await pair.pause()
    await pair.onPrimary("update people set name = 'caught up' where id = 3")
    const looking = Person.cache.getAsync({ id: 3 })
    await soon(() => expect(replica.statements.at(-1)).toContain('pg_last_wal_replay_lsn()'))
    await pair.resume()
    expect(await looking).toMatchObject({ name: 'caught up' })
    expect(cache.stats().replica).toMatchObject({ answered: 1 })
  })
})

describe('a replica that is behind', () => {
  const hurried = { maxWait: '400ms' } as const

  test('is not read: the primary answers, and nothing stale is cached', async () => {
    const { cache, Person } = await open(hurried)
    await inScope(() => Person.cache.getAsync({ id: 4 }))
    await pair.pause()
    await pair.onPrimary("update people set name = 'new' where id = 4")
    await Person.cache.invalidate({ id: 4 })
    expect(await inScope(() => Person.cache.getAsync({ id: 4 }))).toMatchObject({ name: 'new' })
    expect(cache.stats().replica).toMatchObject({ behind: 1 })

    await pair.resume()
    await pair.caughtUp()
    await cache.idle()
    const look = () => inScope(() => Person.cache.getAsync({ id: 4 }))
    expect(await expectTrips(cache, { mget: 1 }, look)).toMatchObject({ name: 'new' })
  })

  test('is left alone for a moment, and then asked again', async () => {
    const { cache, Person } = await open(hurried)
    await pair.pause()
    await pair.onPrimary("update people set name = 'newer' where id = 5")
    await Person.cache.getAsync({ id: 5 })
    const statements = await statementsOf({ primary, replica }, () => Person.cache.getAsync({ id: 6 }))
    expect(statements).toEqual({ primary: [expect.stringMatching(/^select "loadstonerow"/)], replica: [] })
    expect(cache.stats().replica).toMatchObject({ answered: 0, behind: 1, resting: 1 })
    await pair.resume()
    await soon(async () => {
      await Person.cache.refresh({ id: 7 })
      expect(cache.stats().replica).toMatchObject({ answered: 1 })
    })
  })

  test('with commits that are visible on the primary, but not yet flushed', async () => {
    const slow = await openPair({ wal_writer_delay: '10s' })
    onTestFinished(() => slow.close())
    const lines = {
      primary: await openLine('primary', slow.primary),
      replica: await openLine('replica', slow.standby),
    }
    onTestFinished(() => Promise.all([lines.primary.close(), lines.replica.close()]).then(() => undefined))
    const { cache, Person } = await open(hurried, {}, lines)
    await slow.onPrimary(
      "begin; set local synchronous_commit = off; update people set name = 'unflushed' where id = 1; commit",
    )
    const [flushed] = await slow.onPrimary(
      'select pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn() as behind',
    )
    expect(flushed).toEqual({ behind: true })
    expect(await Person.cache.getAsync({ id: 1 })).toMatchObject({ name: 'unflushed' })
    expect(cache.stats().replica).toMatchObject({ behind: 1 })
  })

  test('a position that was asked for before a load does not serve it', async () => {
    const { cache, Person } = await open(hurried)
    await pair.pause()
    primary.proxy.hold('replies')
    const earlier = inScope(() => Person.cache.getAsync({ id: 8 }))
    await eventually(
      pair.onPrimary,
      "exists (select from pg_stat_activity where query ~ 'from pg_current_wal_insert_lsn' and state = 'idle' and pid <> pg_backend_pid())",
    )
    await pair.onPrimary("update people set name = 'later' where id = 9")
    const later = inScope(() => Person.cache.getAsync({ id: 9 }))
    await new Promise((resolve) => setImmediate(() => setImmediate(resolve)))
    primary.proxy.release()
    expect(await earlier).toMatchObject({ name: 'name 8' })
    expect(await later).toMatchObject({ name: 'later' })
    expect(cache.stats().replica).toMatchObject({ answered: 1, behind: 1 })
  })
})

describe('never read from a replica', () => {
  test('what `uses` says no to', async () => {
    const asked: LoadedShape[] = []
    const uses = (shape: LoadedShape) => {
      asked.push(shape)
      return shape.kind === 'key'
    }
    const { cache, Person } = await open({ uses })
    const Size = cache.count({ name: 'Size', model: Person, keyFields: ['team_id'] })
    await cache.ready()
    const page = runInLoop(() =>
      Promise.all([
        Person.cache.getAsync({ id: 1 }),
        Person.cache.filterAsync({ team_id: 1 }),
        Size({ team_id: 1 }).resolveAsync(),
      ]),
    )
    const statements = await statementsOf({ primary, replica }, page)
    expect(statements.replica).toEqual(FROM_REPLICA)
    expect(statements.primary).toHaveLength(3)
    expect(asked).toEqual([
      { model: 'people', kind: 'key', fields: ['id'], cache: undefined },
      { model: 'people', kind: 'filter', fields: ['team_id'], cache: undefined },
      { model: 'people', kind: 'custom', fields: ['team_id'], cache: 'Size' },
    ])
  })

  test('models that are strict: a standby shows commits that the primary does not show yet', async () => {
    const settings = (names: string) =>
      pair
        .onPrimary(`alter system set synchronous_standby_names = '${names}'`)
        .then(() => pair.onPrimary('select pg_reload_conf()'))
        .then(() => eventually(pair.onPrimary, `current_setting('synchronous_standby_names') = '${names}'`))
    const { Team } = await open()
    const writer = await psql(pair.primary.url)
    onTestFinished(() => writer.end())
    await settings('nobody')
    const writing = writer("update teams set title = 'committed' where id = 1")
    onTestFinished(() => settings('').then(() => writing.then(() => undefined)))
    await eventually(pair.onStandby, "exists (select from teams where title = 'committed')")

    const one = createModelCache<PairTables>({
      db: primary.db,
      namespace: 'strict',
      relay: false,
      replica: { db: replica.db, maxWait: PATIENT },
    })
    onTestFinished(() => one.close())
    const StrictTeam = one.model('teams', { keyFields: [['id']], consistency: 'strict' })
    const Any = one.exists({ name: 'Any', model: StrictTeam, keyFields: ['title'] })
    expect(await StrictTeam.cache.getAsync({ id: 1 })).toMatchObject({ title: 'team 1' })
    expect(await Any({ title: 'committed' }).resolveAsync()).toBe(false)
    expect(one.stats().replica).toMatchObject({ answered: 0 })
    expect(await Team.cache.getAsync({ id: 1 })).toMatchObject({ title: 'committed' })
  })

  test('lookups in a transaction, invalidateWhere, and what `load` reads through its db', async () => {
    const { cache, Person } = openCache({ primary, replica }, {}, { invalidation: 'triggers' })
    onTestFinished(() => cache.close())
    const Size = cache.instance({
      name: 'Size',
      model: Person,
      keyFields: ['team_id'],
      loadOne: async ({ team_id }, { db }) =>
        (await db.selectFrom('people').select('id').where('team_id', '=', team_id).execute()).length,
    })
    await cache.install()
    onTestFinished(() => cache.uninstall().then(() => undefined))
    const statements = await statementsOf({ primary, replica }, async () => {
      await cache.transaction(() => Person.cache.getAsync({ id: 1 }))
      await Person.cache.invalidateWhere((people) => people.where('id', '=', 1))
      expect(await Size({ team_id: 1 }).resolveAsync()).toBe(5)
    })
    expect(statements.replica).toEqual([])
    await Person.cache.getAsync({ id: 1 })
    await cache.idle()
    expect((await cache.verify()).checked).toBeGreaterThan(0)
    expect(cache.stats().replica).toEqual({ answered: 1, behind: 0, unfit: 0, failed: 0, resting: 0 })
  })
})

describe('loadstone:replica', () => {
  test('tells why the primary answers', async () => {
    const messages: unknown[] = []
    const listener = (message: unknown) => void messages.push(message)
    channel('loadstone:replica').subscribe(listener)
    onTestFinished(() => void channel('loadstone:replica').unsubscribe(listener))
    const { Person } = await open({ maxWait: '400ms' })
    await Person.cache.filterAsync({ team_id: 1 })
    await pair.pause()
    await pair.onPrimary('update people set name = name where id = 1')
    await Person.cache.filterAsync({ team_id: 2 })
    expect(messages).toEqual([
      {
        namespace: 'pair',
        model: 'people',
        kind: 'filter',
        fields: ['team_id'],
        cache: undefined,
        reason: 'behind',
        error: expect.objectContaining({ message: 'it is behind, and did not catch up within 400 ms' }),
        waitedMs: expect.any(Number),
      } satisfies ReplicaMessage,
    ])
  })
})

describe('options', () => {
  const neverOpened = () => Promise.reject<PGlite>(new Error('opened'))
  const embedded = () => new Kysely({ dialect: new PGliteDialect({ pglite: neverOpened }) })
  const bad: [string, () => unknown, RegExp][] = [
    ['a Kysely', () => primary.db, /'replica.db' must be a Kysely instance/],
    ['no db', () => ({}), /'replica.db' must be a Kysely instance, but is undefined/],
    ['db itself', () => ({ db: primary.db }), /'replica.db' must be another Kysely than db, on a standby/],
    ['PGlite', () => ({ db: embedded() }), /'replica.db' must be on a pool of connections to a standby/],
    ['a misspelt option', () => ({ db: replica.db, maxwait: 1 }), /'replica.maxwait' must be left out/],
    [
      'no time',
      () => ({ db: replica.db, maxWait: 0 }),
      /'replica.maxWait' must be a duration of at least 1 ms/,
    ],
    ['a list of shapes', () => ({ db: replica.db, uses: ['id'] }), /'replica.uses' must be a function/],
  ]
  test.each(bad)('%s: refused', (_, given, message) => {
    const make = () =>
      createModelCache<PairTables>({
        db: primary.db,
        namespace: 'x',
        relay: false,
        replica: given() as never,
      })
    expect(make).toThrow(
      expect.objectContaining({ code: 'ERR_OPTION', message: expect.stringMatching(message) }),
    )
  })
})
