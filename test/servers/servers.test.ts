import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { Redis } from 'ioredis'
import { afterAll, afterEach, describe, expect, inject, onTestFinished, test } from 'vitest'
import { createTestDatabase } from '../support/database.ts'
import { closeRedis, testRedis } from '../support/redis.ts'
import { slotsOf, startCluster } from './cluster.ts'
import { findPostgres, findRedis } from './find-binary.ts'
import { installServers } from './install.ts'
import type { Machine } from './machine.ts'
import { freePort, onFreePort } from './ports.ts'
import { provisionServers } from './provision.ts'
import { startRedis } from './redis.ts'
import { startSentinel } from './sentinel.ts'
import type { Server } from './server.ts'

const emptyRoot = mkdtempSync(join(tmpdir(), 'loadstone-root-'))
afterAll(() => rmSync(emptyRoot, { recursive: true }))

/** A machine that has nothing but what the test puts into `root`. */
function bareMachine(given: Partial<Machine> = {}): Machine {
  return { platform: 'linux', uid: 1000, path: '', root: emptyRoot, ...given }
}

describe("the run's servers", () => {
  afterAll(closeRedis)

  test('Redis answers', async () => {
    const { redis, namespace } = testRedis()
    await redis.set(`${namespace}:a`, '1')
    expect(await redis.get(`${namespace}:a`)).toBe('1')
    await redis.del(`${namespace}:a`)
  })

  test('every test database is new, and gone after drop', async () => {
    const [one, other] = await Promise.all([createTestDatabase(), createTestDatabase()])
    onTestFinished(() => other.drop())
    await one.pool.query('create table only_here (id int)')
    const { rows } = await other.pool.query(`select to_regclass('only_here') as found`)
    expect(rows).toEqual([{ found: null }])

    await one.drop()
    const name = new URL(one.url).pathname.slice(1)
    const left = await other.pool.query('select from pg_database where datname = $1', [name])
    expect(left.rowCount).toBe(0)
  })

  test.runIf(!process.env.DATABASE_URL)(
    'our own Postgres has the settings that later tests rely on',
    async () => {
      const { pool, drop } = await createTestDatabase()
      onTestFinished(drop)
      const { rows } = await pool.query(`
      select current_setting('wal_level') as wal_level,
             current_setting('max_prepared_transactions')::int as prepared,
             current_setting('server_encoding') as encoding`)
      expect(rows).toEqual([{ wal_level: 'logical', prepared: 10, encoding: 'UTF8' }])
    },
  )
})

describe('startRedis', () => {
  afterEach(closeRedis)

  test('kill and restart: same port, another process, nothing kept', async () => {
    const server = await startRedis()
    onTestFinished(server.stop)
    const before = server.pid
    const { redis } = testRedis({ url: server.url, retryStrategy: () => null })
    await redis.set('key', 'value')

    await server.kill()
    expect(isAlive(before)).toBe(false)
    await server.restart()
    expect(server.pid).not.toBe(before)
    const after = testRedis({ url: server.url })
    expect(await after.redis.get('key')).toBeNull()
  })

  test('a paused server can still be stopped', async () => {
    const server = await startRedis()
    server.pause()
    await server.stop()
    expect(isAlive(server.pid)).toBe(false)
  })

  test("a server that does not come up fails with the server's own words", async () => {
    await expect(startRedis({ args: ['--maxmemory', 'lots'] })).rejects.toThrow(/ended before.*lots/s)
  })

  test('a port that is already taken fails, and does not pass for our server', async () => {
    const server = await startRedis()
    onTestFinished(server.stop)
    await expect(startRedis({ port: server.port })).rejects.toThrow(/already in use/i)
  })

  test('it ends with the process that started it, even by SIGKILL', async () => {
    const script = `const { startRedis } = await import('./test/servers/redis.ts')
      process.stdout.write(String((await startRedis()).pid))`
    const parent = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script])
    const [pid] = await once(parent.stdout.setEncoding('utf8'), 'data')
    expect(isAlive(Number(pid))).toBe(true)
    parent.kill('SIGKILL')
    await expect.poll(() => isAlive(Number(pid)), { timeout: 5_000 }).toBe(false)
  })
})

describe('several servers', () => {
  test('startCluster: three masters with all slots and their replicas, gone after stop', async () => {
    const cluster = await startCluster({ replicas: 1 })
    onTestFinished(cluster.stop)
    const servers = [...cluster.masters, ...cluster.replicas]
    const redis = new Redis((cluster.masters[0] as Server).url)
    const slots = (await redis.call('CLUSTER', 'SLOTS')) as [number, number, [string, number]][]
    redis.disconnect()
    expect(slots.map(([from, to, [, port]]) => ({ from, to, port })).sort((x, y) => x.from - y.from)).toEqual(
      cluster.masters.map(({ port }, i) => ({ from: slotsOf(i)[0], to: slotsOf(i).at(-1), port })),
    )
    for (const [i, { url }] of cluster.replicas.entries()) {
      const replica = new Redis(url)
      expect(await replica.info('replication')).toContain(`master_port:${cluster.masters[i]?.port}\r\n`)
      replica.disconnect()
    }
    await cluster.stop()
    expect(servers.map(({ pid }) => isAlive(pid))).toEqual(servers.map(() => false))
  })

  test('startSentinel: they lead to the master, and all are gone after stop', async () => {
    const { master, replica, client, stop } = await startSentinel()
    onTestFinished(stop)
    const redis = new Redis({ ...client })
    expect(await redis.info('server')).toContain(`process_id:${master.pid}\r\n`)
    expect(await redis.info('replication')).toContain(`port=${replica.port}`)
    redis.disconnect()
    await stop()
    expect([master, replica].map(({ pid }) => isAlive(pid))).toEqual([false, false])
  })
})

describe('ports', () => {
  test('a free port can be listened on', async () => {
    const server = createServer().listen(await freePort(), '127.0.0.1')
    await once(server, 'listening')
    server.close()
  })

  test('a port that was taken meanwhile is replaced by another', async () => {
    const tried: number[] = []
    const port = await onFreePort(async (port) => {
      tried.push(port)
      if (tried.length === 1) throw new Error('bind: Address already in use')
      return port
    })
    expect(port).toBe(tried[1])
  })
})

describe('finding and installing', () => {
  test('finds nothing on a bare machine', () => {
    expect(findRedis(bareMachine())).toBeUndefined()
    expect(findPostgres(bareMachine())).toBeUndefined()
  })

  test('takes the newest version of those beside the PATH, and only a whole one', () => {
    const root = mkdtempSync(join(emptyRoot, 'debian-'))
    for (const version of ['9', '15']) {
      for (const program of ['initdb', 'postgres'])
        addProgram(root, `usr/lib/postgresql/${version}/bin/${program}`)
    }
    addProgram(root, 'usr/lib/postgresql/17/bin/initdb')
    const bin = join(root, 'usr/lib/postgresql/15/bin')
    expect(findPostgres(bareMachine({ root }))).toEqual({
      initdb: join(bin, 'initdb'),
      postgres: join(bin, 'postgres'),
    })
  })

  test('the PATH wins over other places', () => {
    const root = mkdtempSync(join(emptyRoot, 'path-'))
    addProgram(root, 'usr/bin/redis-server')
    addProgram(root, 'mine/redis-server')
    const path = join(root, 'mine')
    expect(findRedis(bareMachine({ root, path }))).toBe(join(path, 'redis-server'))
  })

  test.each([
    { name: 'no apt', machine: bareMachine({ uid: 0 }) },
    { name: 'macOS', machine: bareMachine({ platform: 'darwin' }) },
    { name: 'not root', machine: bareMachine({ path: aptOnPath() }) },
  ])('where it may not install ($name) it says how to', ({ machine }) => {
    const install = () => installServers(['redis-server', 'postgresql'], machine)
    expect(install).toThrow('not installed: redis-server, postgresql')
    expect(install).toThrow('sudo apt-get update && sudo apt-get install -y')
    expect(install).toThrow('brew install')
    expect(install).toThrow('docker run')
    expect(install).toThrow(/export REDIS_URL=\S+ DATABASE_URL=\S+/)
  })

  function addProgram(root: string, path: string): void {
    const file = join(root, path)
    mkdirSync(dirname(file), { recursive: true })
    writeFileSync(file, '', { mode: 0o755 })
  }

  function aptOnPath(): string {
    const root = mkdtempSync(join(emptyRoot, 'apt-'))
    addProgram(root, 'apt-get')
    return root
  }
})

describe('provisionServers', () => {
  const given = { REDIS_URL: inject('redisUrl'), DATABASE_URL: inject('databaseUrl') }

  test('takes the servers that the environment names, whatever is installed', async () => {
    const servers = await provisionServers(given, bareMachine())
    await servers.stop()
    expect(servers.redisUrl).toBe(given.REDIS_URL)
    expect(servers.databaseUrl).toBe(given.DATABASE_URL)
    expect(await testRedis().redis.ping()).toBe('PONG')
    await closeRedis()
  })

  test('asks only for what the environment does not name', async () => {
    await expect(provisionServers({ REDIS_URL: given.REDIS_URL }, bareMachine())).rejects.toThrow(
      'not installed: postgresql.',
    )
  })

  test('says which variable leads nowhere', async () => {
    const nowhere = `redis://127.0.0.1:${await freePort()}`
    await expect(provisionServers({ ...given, REDIS_URL: nowhere })).rejects.toThrow(
      `nothing answers at REDIS_URL=${nowhere}: Error: connect ECONNREFUSED`,
    )
  })
})

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}
