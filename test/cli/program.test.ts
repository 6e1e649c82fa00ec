import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Kysely, PostgresDialect } from 'kysely'
import type { Finding, VerifyReport } from 'loadstone'
import { createModelCache, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, inject, onTestFinished, test } from 'vitest'
import { createTestDatabase, type TestDatabase } from '../support/database.ts'
import { closeRedis, testRedis } from '../support/redis.ts'

const root = fileURLToPath(new URL('../../', import.meta.url))
const MODULE = 'test/cli/fixtures/town.ts'

/** A child process takes seconds to start where the machine is busy. */
const PATIENT = { timeout: 90_000 }

afterAll(closeRedis)

interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

interface People {
  people: { id: number; email: string; name: string; street: string | null }
}

describe('loadstone, as a program', PATIENT, () => {
  let database: TestDatabase
  let env: Record<string, string>

  beforeEach(async () => {
    database = await createTestDatabase()
    await database.pool.query(`
      create table people (id int primary key, email text not null unique, name text not null, street text);
      create index on people (street);
      insert into people select i, i || '@town.test', 'name', 's' || i % 3 from generate_series(1, 30) i`)
    env = { DATABASE_URL: database.url, REDIS_URL: inject('redisUrl'), NAMESPACE: testRedis().namespace }
  })
  afterEach(() => database.drop())

  async function loadstone(args: readonly string[], cwd = root): Promise<Ended> {
    const { PATH, HOME } = process.env
    const program = join(root, 'src/cli/main.ts')
    const child = spawn(
      process.execPath,
      ['--import', join(root, 'node_modules/tsx/dist/esm/index.mjs'), program, ...args],
      {
        cwd,
        env: { PATH, HOME, TSX_TSCONFIG_PATH: join(root, 'tsconfig.json'), ...env },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    )
    onTestFinished(() => void child.kill('SIGKILL'))
    const output = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr'] as const) {
      child[name].setEncoding('utf8').on('data', (text: string) => {
        output[name] += text
      })
    }
    const [code] = await once(child, 'close')
    return { code, ...output }
  }

  const withModule = (...args: string[]) => loadstone([...args, '--module', MODULE])

  /** Caches all people, as the application would. */
  async function fill(): Promise<void> {
    const { redis } = testRedis()
    const db = new Kysely<People>({ dialect: new PostgresDialect({ pool: database.pool }) })
    const cache = createModelCache<People>({
      db,
      redis,
      namespace: env.NAMESPACE as string,
      storeTimeout: '10s',
      relay: false,
    })
    const Person = cache.model('people', { keyFields: [['id'], ['email']], filterFields: [['street']] })
    await Promise.all(Array.from({ length: 30 }, (_, i) => Person.cache.getAsync({ id: i + 1 })))
    await cache.close()
  }

  test('installs, finds all fine, and uninstalls', async () => {
    const before = await withModule('doctor')
    expect(before).toMatchObject({ code: 1, stderr: '' })
    expect(before.stdout).toContain('FAIL  nothing is installed')
    expect(before.stdout).toContain('cure: run cache.install() or loadstone install')

    const installed = await withModule('install')
    expect(installed).toMatchObject({ code: 0, stderr: '' })
    expect(installed.stdout).toContain('people')
    expect(await withModule('install')).toEqual({
      code: 0,
      stderr: '',
      stdout: 'nothing to do, all is installed\n',
    })

    const { code, stdout } = await withModule('doctor', '--json')
    const findings = JSON.parse(stdout) as Finding[]
    expect(findings.filter(({ status }) => status === 'fail')).toEqual([])
    expect(code).toBe(0)

    expect(await withModule('uninstall')).toMatchObject({ code: 0, stderr: '' })
    expect((await withModule('doctor')).code).toBe(1)
  })

  test('prints SQL that installs the same, and changes nothing itself', async () => {
    const { code, stdout, stderr } = await withModule('install', '--print')
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const { rows } = await database.pool.query("select to_regnamespace('loadstone') as there")
    expect(rows).toEqual([{ there: null }])
    await database.pool.query(`begin; ${stdout}; commit`)
    expect((await withModule('install')).stdout).toBe('nothing to do, all is installed\n')
  })

  test('verifies: 0 when nothing is stale, 1 when something is, and repairs', async () => {
    await withModule('install')
    await fill()
    const clean = await withModule('verify', '--settle', '10')
    expect(clean).toMatchObject({ code: 0, stderr: '' })
    expect(clean.stdout).toContain('30 of 30 entries compared')
    expect(clean.stdout).toContain('nothing is stale')

    await database.pool.query(
      "begin; set local session_replication_role = replica; update people set name = 'x' where id in (7, 8); commit",
    )
    const stale = await withModule('verify', '--settle', '10', '--sample', 'all')
    expect(stale.code).toBe(1)
    expect(stale.stdout).toMatch(/^people {2}id +30 +2 +6\.67 % +\S+ \S+$/m)
    expect(stale.stdout).toContain(`  ${env.NAMESPACE}:people:id:7\n`)

    const repaired = await withModule('verify', '--settle', '10', '--repair', '--json', '--model', 'people')
    expect(repaired.code).toBe(1)
    expect(JSON.parse(repaired.stdout) as VerifyReport).toMatchObject({ checked: 30, stale: 2, repaired: 2 })
    expect(await withModule('verify', '--settle', '10')).toMatchObject({ code: 0 })

    expect(await withModule('clear', 'people')).toEqual({ code: 0, stderr: '', stdout: 'cleared people\n' })
    expect((await withModule('verify')).stdout).toMatch(/^0 of \d+ entries compared/)
  })

  test('clears models, with the custom caches that are made of their rows, for all processes', async () => {
    await withModule('install')
    const db = new Kysely<People>({ dialect: new PostgresDialect({ pool: database.pool }) })
    const namespace = env.NAMESPACE as string
    const { redis } = testRedis()
    const cache = createModelCache<People>({ db, redis, namespace, storeTimeout: '10s', relay: false })
    onTestFinished(() => cache.close())
    const Person = cache.model('people', { keyFields: [['id']], filterFields: [['street']] })
    const Neighbours = cache.count({ name: 'Neighbours', model: Person, keyFields: ['street'] })
    const read = runInLoop(() =>
      Promise.all([
        Person.cache.getAsync({ id: 1 }),
        Person.cache.getAsyncOrNone({ id: 99 }),
        Person.cache.filterAsync({ street: 's1' }),
        Neighbours('s1').resolveAsync(),
      ]),
    )
    const cold = { mget: 1, acquire: 1, select: 2, load: 1, fill: 1 }
    for (const args of [['people'], ['--all']]) {
      await expectTrips(cache, cold, read)
      await expectTrips(cache, { mget: 1 }, read)
      expect(await withModule('clear', ...args)).toMatchObject({ code: 0, stdout: 'cleared people\n' })
    }
    await expectTrips(cache, cold, read)
  })

  test('fails with 2 and the reason, when a server cannot be reached', async () => {
    env.DATABASE_URL = 'postgres://nobody@127.0.0.1:1/none'
    const noDatabase = await withModule('install')
    expect(noDatabase).toMatchObject({ code: 2, stdout: '' })
    expect(noDatabase.stderr).toMatch(/^loadstone: .*ECONNREFUSED 127\.0\.0\.1:1\n$/)
    env.DATABASE_URL = database.url
    env.REDIS_URL = 'redis://127.0.0.1:1'
    const noRedis = await withModule('verify')
    expect(noRedis).toMatchObject({ code: 2, stdout: '' })
    expect(noRedis.stderr).toMatch(/^loadstone: the store is unavailable: no connection/)
    expect((await withModule('doctor')).stdout).toContain('FAIL  Redis cannot be asked')
  })

  test('finds loadstone.config.mjs by itself, and tells what is wrong with it', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'loadstone-cli-'))
    onTestFinished(() => rm(folder, { recursive: true }))
    expect(await loadstone(['doctor'], folder)).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('--module ./path/to/cache.js'),
    })
    await writeFile(
      join(folder, 'loadstone.config.mjs'),
      `export { cache as it } from ${JSON.stringify(join(root, MODULE))}`,
    )
    expect(await loadstone(['install'], folder)).toMatchObject({ code: 0 })
    await writeFile(join(folder, 'loadstone.config.js'), "throw new TypeError('broken on purpose')")
    const broken = await loadstone(['install'], folder)
    expect(broken.code).toBe(2)
    expect(broken.stderr).toContain('loadstone: loadstone.config.js could not be loaded: broken on purpose')
    expect(broken.stderr).toContain('loadstone.config.js:1')
  })

  test('says all it has to say to a pipe, and no more than that is read', async () => {
    const { PATH, HOME } = process.env
    const child = spawn(
      'sh',
      ['-c', `"${process.execPath}" --import tsx src/cli/main.ts install --print -m ${MODULE} | head -c 10`],
      { cwd: root, env: { PATH, HOME, ...env }, stdio: ['ignore', 'pipe', 'pipe'] },
    )
    onTestFinished(() => void child.kill('SIGKILL'))
    let stderr = ''
    child.stderr.on('data', (text) => {
      stderr += text
    })
    child.stdout.resume()
    await once(child, 'close')
    expect(stderr).toBe('')
  })
})
