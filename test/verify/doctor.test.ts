import { Redis } from 'ioredis'
import { Kysely, PostgresDialect, sql } from 'kysely'
import { createModelCache, type Finding, withInvalidation } from 'loadstone'
import { Pool } from 'pg'
import { afterAll, afterEach, beforeEach, describe, expect, inject, test } from 'vitest'
import { DATABASE_LIMITS, diagnoseDatabase } from '../../src/invalidation/doctor-database.ts'
import { diagnoseStore } from '../../src/invalidation/doctor-store.ts'
import { clockFinding, isAtLeast, median, readableMs } from '../../src/invalidation/findings.ts'
import type { Database } from '../../src/sources/database.ts'
import { MemoryStore } from '../../src/stores/memory.ts'
import { RedisStore } from '../../src/stores/redis.ts'
import type { StoreFacts } from '../../src/stores/store.ts'
import { startRedis } from '../servers/redis.ts'
import { createTestDatabase, type TestDatabase } from '../support/database.ts'
import { closeRedis } from '../support/redis.ts'
import { openEmbedded, openServers, STACKS, type Town } from './town.ts'

afterAll(closeRedis)

/** Those that are not fine, but for latencies: the machine may be busy. */
function troubles(findings: readonly Finding[]): Finding[] {
  return findings.filter(
    ({ status, finding }) => status !== 'ok' && !finding.startsWith('a round trip takes'),
  )
}

function trouble(findings: readonly Finding[]): Finding {
  const all = troubles(findings)
  expect(all, JSON.stringify(all, undefined, 2)).toHaveLength(1)
  return all[0] as Finding
}

describe.each(STACKS)('doctor on %s', (_, open) => {
  let town: Town
  beforeEach(async () => {
    town = await open()
    await town.elsewhere(
      'create index on people (street); create index on people (name); create index on houses (owner)',
    )
  })
  afterEach(() => town.close())

  test('finds everything fine after install', async () => {
    const { cache } = town.open()
    await cache.install()
    const findings = await cache.doctor()
    expect(troubles(findings)).toEqual([])
    expect([...new Set(findings.map(({ area }) => area))]).toEqual([
      'store',
      'postgres',
      'outbox',
      'writes',
      'install',
      'models',
    ])
    expect(findings.every(({ finding }) => finding.length > 10)).toBe(true)
  })

  test('fails before install, and says what to do', async () => {
    const { cache } = town.open()
    expect(trouble(await cache.doctor())).toEqual({
      area: 'install',
      status: 'fail',
      finding: 'nothing is installed: no write is recorded, entries live until the end of their ttl',
      cure: 'run cache.install() or loadstone install',
    })
  })

  test('has nothing to say of triggers where invalidation is manual', async () => {
    const { cache } = town.open({ invalidation: 'manual' })
    const findings = await cache.doctor()
    expect(troubles(findings)).toEqual([])
    expect(findings.filter(({ area }) => area === 'install' || area === 'outbox')).toEqual([])
  })

  test('finds what a table has not recorded', async () => {
    const { cache } = town.open()
    await cache.install()
    await town.elsewhere('alter table people disable trigger all')
    expect(trouble(await cache.doctor())).toMatchObject({
      area: 'install',
      status: 'fail',
      finding: expect.stringMatching(/^people: .*disabled/),
      cure: 'run cache.install() or loadstone install',
    })
    await cache.install()
    expect(troubles(await cache.doctor())).toEqual([])
  })

  test('finds an old backlog of the outbox', async () => {
    const { cache } = town.open()
    await cache.install()
    await town.elsewhere("insert into people values (1, 'a', 'b', 'c')")
    expect(troubles(await cache.doctor())).toEqual([])
    await town.elsewhere("update loadstone.outbox set at = at - interval '3 min'")
    expect(trouble(await cache.doctor())).toMatchObject({
      area: 'outbox',
      status: 'fail',
      finding: expect.stringMatching(
        /^\d rows wait in it, the oldest for 3(\.\d)? min: what they invalidate is still served$/,
      ),
      cure: expect.stringContaining('relay'),
    })
  })

  test('warns where nothing is declared', async () => {
    const cache = createModelCache({ db: town.db, namespace: 'empty', relay: false })
    const findings = await cache.doctor()
    expect(findings).toContainEqual(
      expect.objectContaining({ area: 'models', status: 'warn', finding: 'none are declared' }),
    )
    await cache.close()
  })

  test('fails for a model that does not fit its table, and looks at the others', async () => {
    const { cache } = town.open()
    await cache.install()
    cache.model('pets' as 'people', { keyFields: [['id']] })
    const findings = await cache.doctor()
    expect(trouble(findings)).toMatchObject({
      area: 'models',
      status: 'fail',
      finding: expect.stringContaining('"pets"'),
    })
    expect(findings).toContainEqual(
      expect.objectContaining({ status: 'ok', finding: 'people: every write to its table is recorded' }),
    )
  })
})

describe('the keys and lookups of models', () => {
  let town: Town
  afterEach(() => town.close())

  test.each([
    ['Postgres', openServers],
    ['PGlite', openEmbedded],
  ] as const)('need indexes on %s: each cure cures', async (_, open) => {
    town = await open()
    await town.elsewhere(`
      create table "odd ""names""" (id int, email text, deleted bool, org int, nick text, tag text);
      create unique index on "odd ""names""" (email) where not deleted;
      create unique index on "odd ""names""" (lower(nick));
      create index on "odd ""names""" (org, email);
      create table parts (id int, kind text, primary key (id, kind)) partition by list (kind);
      create table parts_a partition of parts for values in ('a')`)
    interface Odd {
      'odd "names"': { id: number; email: string; org: number; nick: string; tag: string }
      parts: { id: number; kind: string }
    }
    const cache = createModelCache<Odd>({ db: town.db as never, namespace: town.namespace, relay: false })
    cache.model('odd "names"', {
      keyFields: [['id'], ['email'], ['org', 'nick']],
      filterFields: [['org'], ['email', 'org'], ['tag'], ['tag', 'nick']],
    })
    cache.model('parts', { keyFields: [['id']], filterFields: [['kind', 'id'], ['kind']] })
    await cache.install()
    const found = troubles(await cache.doctor())
    expect(found.map(({ status, finding, cure }) => [status, finding, cure])).toEqual([
      [
        'warn',
        'odd "names": keyFields [\'id\'] have no unique index: a second such row makes their lookups fail',
        'create unique index concurrently on "public"."odd ""names""" ("id")',
      ],
      [
        'warn',
        'odd "names": keyFields [\'email\'] have no unique index: a second such row makes their lookups fail',
        'create unique index concurrently on "public"."odd ""names""" ("email")',
      ],
      [
        'warn',
        "odd \"names\": keyFields ['org', 'nick'] have no unique index: a second such row makes their lookups fail",
        'create unique index concurrently on "public"."odd ""names""" ("org", "nick")',
      ],
      [
        'warn',
        'odd "names": filterFields [\'tag\'] have no index: every miss reads the whole table',
        'create index concurrently on "public"."odd ""names""" ("tag")',
      ],
      [
        'warn',
        "odd \"names\": filterFields ['tag', 'nick'] have no index: every miss reads the whole table",
        'create index concurrently on "public"."odd ""names""" ("tag", "nick")',
      ],
      [
        'warn',
        "parts: keyFields ['id'] have no unique index: a second such row makes their lookups fail",
        'create unique index on "public"."parts" ("id")',
      ],
      [
        'warn',
        "parts: filterFields ['kind'] have no index: every miss reads the whole table",
        'create index on "public"."parts" ("kind")',
      ],
    ])
    // Of a partitioned table, a unique index needs the columns of the partition key, which no statement can cure.
    const uncurable = 'create unique index on "public"."parts" ("id")'
    for (const { cure } of found) {
      if (cure !== uncurable) await sql.raw(cure?.replace(' concurrently', '') as string).execute(town.db)
    }
    expect(trouble(await cache.doctor()).cure).toBe(uncurable)
    await cache.close()
  })

  test('and triggers on every partition', async () => {
    town = await openServers()
    await town.elsewhere(`
      create table parts (id int, kind text, primary key (id, kind)) partition by list (kind);
      create table parts_a partition of parts for values in ('a')`)
    const cache = createModelCache<{ parts: { id: number; kind: string } }>({
      db: town.db as never,
      namespace: town.namespace,
      relay: false,
    })
    cache.model('parts', { keyFields: [['id', 'kind']] })
    await cache.install()
    expect(troubles(await cache.doctor())).toEqual([])
    await town.elsewhere("create table parts_b partition of parts for values in ('b')")
    expect(trouble(await cache.doctor())).toEqual({
      area: 'install',
      status: 'fail',
      finding: 'parts: writes that name "public"."parts_b" are not recorded',
      cure: 'run cache.install() or loadstone install again',
    })
    await cache.install()
    expect(troubles(await cache.doctor())).toEqual([])
    await cache.close()
  })
})

describe('Postgres', () => {
  let database: TestDatabase
  const pools: Pool[] = []
  beforeEach(async () => {
    database = await createTestDatabase()
  })
  afterEach(async () => {
    await Promise.all(pools.splice(0).map((pool) => pool.end()))
    await database.drop()
  })

  function connect(options: object = {}): Kysely<never> {
    const pool = new Pool({ connectionString: database.url, ...options })
    pool.on('error', () => {})
    pools.push(pool)
    return new Kysely({ dialect: withInvalidation(new PostgresDialect({ pool })) })
  }

  function diagnose(db: Kysely<never>, limits = {}): Promise<Finding[]> {
    return diagnoseDatabase(db as unknown as Database, 'shop', 'triggers', { ...DATABASE_LIMITS, ...limits })
  }

  test('that is not there is one finding', async () => {
    const [finding, ...others] = await diagnose(
      connect({ connectionString: 'postgres://nobody@127.0.0.1:1/none' }),
    )
    expect(others).toEqual([])
    expect(finding).toMatchObject({
      area: 'postgres',
      status: 'fail',
      finding: 'it cannot be asked: connect ECONNREFUSED 127.0.0.1:1',
    })
  })

  test('through a plain dialect warns: own commits do not invalidate', async () => {
    const pool = new Pool({ connectionString: database.url })
    pools.push(pool)
    const db = new Kysely<object>({ dialect: new PostgresDialect({ pool }) })
    const cache = createModelCache({ db, namespace: 'plain', relay: false })
    const findings = await cache.doctor()
    await cache.close()
    expect(findings).toContainEqual({
      area: 'writes',
      status: 'warn',
      finding: expect.stringContaining('db is made without withInvalidation'),
      cure: 'new Kysely({ dialect: withInvalidation(dialect) })',
    })
  })

  test('that is far away is slow', async () => {
    const slow = await diagnose(connect(), { tripMs: 0 })
    expect(slow).toContainEqual(
      expect.objectContaining({
        status: 'warn',
        finding: expect.stringMatching(/^a round trip takes [\d.]+ ms/),
      }),
    )
  })

  test('with triggers off in our sessions fails', async () => {
    const db = connect({ options: '-c session_replication_role=replica' })
    expect(trouble(await diagnose(db))).toMatchObject({
      status: 'fail',
      finding: 'session_replication_role is replica in our sessions: no trigger fires, no write is recorded',
    })
  })

  test('with triggers off in the sessions of others warns, and names them', async () => {
    const name = new URL(database.url).pathname.slice(1)
    await database.pool.query(`create role "${name}_Loader"`)
    await database.pool.query(
      `alter role "${name}_Loader" in database ${name} set session_replication_role = replica`,
    )
    const finding = trouble(await diagnose(connect()))
    await database.pool.query(
      `alter role "${name}_Loader" in database ${name} reset all; drop role "${name}_Loader"`,
    )
    expect(finding).toMatchObject({
      status: 'warn',
      finding: `sessions of role "${name}_Loader" in database ${name} begin with session_replication_role = replica: what they write is not recorded`,
    })
  })

  test('with long transactions warns of each', async () => {
    await database.pool.query('create table t (i int)')
    const client = await database.pool.connect()
    await client.query("set application_name = 'report'; begin; insert into t values (1)")
    await database.pool.query("begin; insert into t values (2); prepare transaction 'half''done'")
    const found = troubles(await diagnose(connect(), { transactionMs: -1 })).filter(
      ({ finding }) => !finding.includes('active'),
    )
    await client.query('rollback')
    client.release()
    await database.pool.query("rollback prepared 'half''done'")
    expect(found.map(({ area, status }) => [area, status])).toEqual([
      ['outbox', 'warn'],
      ['outbox', 'warn'],
    ])
    expect(found[0]).toMatchObject({
      finding: expect.stringMatching(
        /^a transaction of "report" \(idle in transaction, pid \d+\) is open for [\d.]+ m?s: /,
      ),
      cure: expect.stringMatching(/select pg_terminate_backend\(\d+\)/),
    })
    expect(found[1]).toMatchObject({ cure: "commit prepared or rollback prepared 'half''done'" })
  })

  test('with many dead rows in the outbox warns', async () => {
    await database.pool.query(`
      create schema loadstone;
      create table loadstone.outbox (namespace text, at timestamptz) with (autovacuum_enabled = false);
      insert into loadstone.outbox select 'other', now() from generate_series(1, 1000);
      delete from loadstone.outbox`)
    const db = connect()
    await expect
      .poll(async () => troubles(await diagnose(db, { dead: 900 })), { timeout: 20_000, interval: 300 })
      .toEqual([
        expect.objectContaining({
          area: 'outbox',
          status: 'warn',
          finding: expect.stringMatching(/^it has 1000 dead rows \([\d.]+ MiB\): vacuum does not keep up$/),
        }),
      ])
    await database.pool.query('vacuum loadstone.outbox')
  })

  test('that does not let us read is told with its words', async () => {
    const name = new URL(database.url).pathname.slice(1)
    await database.pool.query(`
      create schema loadstone; create table loadstone.outbox (namespace text, at timestamptz);
      create role ${name} login password 'secret'`)
    const url = new URL(database.url)
    url.username = name
    url.password = 'secret'
    const findings = await diagnose(connect({ connectionString: url.href }))
    await Promise.all(pools.splice(0).map((pool) => pool.end()))
    await database.pool.query(`drop owned by ${name}; drop role ${name}`)
    expect(findings.filter(({ status }) => status === 'fail')).toEqual([
      expect.objectContaining({ finding: 'a check failed: permission denied for schema loadstone' }),
    ])
  })
})

describe('Redis', () => {
  test('that is not there is one finding', async () => {
    const nowhere = new Redis('redis://127.0.0.1:1', { lazyConnect: true })
    nowhere.on('error', () => {})
    const store = new RedisStore(nowhere)
    const [finding, ...others] = await diagnoseStore(store)
    await store.close()
    expect(others).toEqual([])
    expect(finding).toMatchObject({
      area: 'store',
      status: 'fail',
      finding: expect.stringContaining('Redis cannot be asked: the store is unavailable: no connection'),
    })
  })

  test('that is as it should be is fine', async () => {
    const store = new RedisStore(new Redis(inject('redisUrl'), { lazyConnect: true }))
    const findings = await diagnoseStore(store)
    await store.close()
    expect(troubles(findings)).toEqual([])
    expect(findings).toHaveLength(8)
  })

  test('of every setting, and as a replica', async () => {
    const server = await startRedis({ args: ['--maxmemory', '50mb'] })
    const admin = new Redis(server.url)
    const store = new RedisStore(new Redis(server.url, { lazyConnect: true }))
    try {
      const told: Record<string, string> = {}
      for (const policy of [
        'noeviction',
        'allkeys-lru',
        'allkeys-lfu',
        'allkeys-random',
        'volatile-lru',
        'volatile-ttl',
      ]) {
        await admin.config('SET', 'maxmemory-policy', policy)
        const finding = (await diagnoseStore(store)).find((each) =>
          each.finding.startsWith('maxmemory-policy is '),
        )
        told[policy] = finding?.status ?? ''
        if (finding?.status !== 'ok') expect(finding?.cure).toContain('allkeys-lru')
      }
      expect(told).toEqual({
        noeviction: 'warn',
        'allkeys-lru': 'ok',
        'allkeys-lfu': 'ok',
        'allkeys-random': 'warn',
        'volatile-lru': 'warn',
        'volatile-ttl': 'fail',
      })
      await admin.config('SET', 'maxmemory', '0')
      await admin.config('SET', 'maxmemory-policy', 'noeviction')
      expect(troubles(await diagnoseStore(store))).toEqual([])
      await admin.replicaof('127.0.0.1', 1)
      await expect
        .poll(async () => trouble(await diagnoseStore(store)), { timeout: 10_000 })
        .toMatchObject({ status: 'fail', finding: expect.stringContaining('it is no master (role:slave)') })
    } finally {
      admin.disconnect()
      await store.close()
      await server.stop()
    }
  })

  const FINE: StoreFacts = {
    version: '7.2.4',
    role: 'master',
    masterReplid: 'abcd',
    maxMemory: 0,
    evictionPolicy: 'allkeys-lru',
    latenciesMs: [1, 100, 1],
    timeoutMs: 50,
    clockAheadMs: -5,
  }

  test.each<[Partial<StoreFacts>, string, string]>([
    [{ version: '6.0.16' }, 'fail', 'its version 6.0.16 is older than 6.2'],
    [{ masterReplid: undefined }, 'fail', 'INFO replication does not show master_replid'],
    [
      { latenciesMs: [20, 30, 20] },
      'warn',
      'a round trip takes 20 ms (median), a step may take 50 ms: many lookups',
    ],
    [{ clockAheadMs: 3_700 }, 'warn', 'the clock of Redis is 3.7 s ahead of ours'],
    [{ clockAheadMs: -90_000 }, 'warn', 'the clock of Redis is 90.0 s behind ours'],
  ])('that says %j', async (facts, status, finding) => {
    const store = Object.assign(new MemoryStore(), { facts: async () => ({ ...FINE, ...facts }) })
    const bad = (await diagnoseStore(store)).filter((each) => each.status !== 'ok')
    expect(bad).toEqual([expect.objectContaining({ status, finding: expect.stringContaining(finding) })])
    expect(bad[0]?.cure).toBeTruthy()
  })
})

describe('findings', () => {
  test.each([
    [0.2142, '0.21 ms'],
    [0, '0 ms'],
    [9.96, '10 ms'],
    [150, '150 ms'],
    [1999, '1999 ms'],
    [2000, '2 s'],
    [4_230, '4.2 s'],
    [150_000, '2.5 min'],
    [7_200_000, '2 h'],
    [864_000_000, '10 days'],
    [8_640_000_000_000, '100000 days'],
  ])('tell %d ms as %s', (ms, text) => {
    expect(readableMs(ms)).toBe(text)
  })

  test.each([
    ['7.0.15', true],
    ['6.2.0', true],
    ['6.2', true],
    ['6.10', true],
    ['6.1.9', false],
    ['5.9', false],
    ['7', true],
    ['6', false],
    ['', false],
  ])('compare versions: %s', (version, enough) => {
    expect(isAtLeast(version, [6, 2])).toBe(enough)
  })

  test('know the middle', () => {
    expect([median([3]), median([9, 1, 5]), median([])]).toEqual([3, 5, 0])
  })

  test('let clocks differ a little', () => {
    expect(clockFinding('store', 'Redis', 1500).status).toBe('ok')
    expect(clockFinding('store', 'Redis', 2500).status).toBe('warn')
  })
})
