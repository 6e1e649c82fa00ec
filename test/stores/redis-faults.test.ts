import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { Redis, type RedisOptions } from 'ioredis'
import { Redis as Redis5 } from 'ioredis-5'
import { afterEach, describe, expect, onTestFinished, test } from 'vitest'
import { StoreUnavailableError } from '../../src/errors.ts'
import { HEADER_BYTES, isLeaseRecord, leaseToken } from '../../src/stores/entry.ts'
import { type RedisClient, RedisStore, type RedisStoreOptions } from '../../src/stores/redis.ts'
import type { CacheStore, Fill, Lease } from '../../src/stores/store.ts'
import { freePort } from '../servers/ports.ts'
import { startRedis } from '../servers/redis.ts'
import type { Server } from '../servers/server.ts'
import { type FaultyProxy, startProxy } from '../support/proxy.ts'
import { closeRedis, testRedis } from '../support/redis.ts'

// An unhandled rejection anywhere in this file fails the run: Vitest sees to that.

const MINUTE = 60_000
const ROW: Fill = { key: 'key', schema: 0, payload: Buffer.from('row'), ttlMs: MINUTE }
const KEEPS_EVERYTHING = ['--appendonly', 'yes', '--appendfsync', 'always']

afterEach(closeRedis)

async function serve(args: readonly string[] = []): Promise<Server> {
  const server = await startRedis({ args })
  onTestFinished(server.stop)
  return server
}

async function proxyTo(server: Server): Promise<FaultyProxy> {
  const proxy = await startProxy(server.port)
  onTestFinished(proxy.close)
  return proxy
}

/** What an application may have set for its own client. */
type Settings = Pick<RedisOptions, 'reconnectOnError'>
type NewClient = (port: number, settings: Settings) => RedisClient
type Open = (port: number, options?: RedisStoreOptions, settings?: Settings) => RedisStore

const CLIENTS: Record<string, NewClient> = {
  ioredis: (port, settings) => new Redis({ port, lazyConnect: true, ...settings }),
  'ioredis-5': (port, settings) => new Redis5({ port, lazyConnect: true, ...settings }),
}

/** Opens stores. Their timeout is long, as the machine is shared: what fails here fails by itself. */
function openerOf(newClient: NewClient): Open {
  return (port, options = {}, settings = {}) => {
    const store = new RedisStore(newClient(port, settings), { timeout: '5s', epochCheck: '1h', ...options })
    onTestFinished(() => store.close())
    return store
  }
}

const openStore = openerOf(CLIENTS.ioredis as NewClient)

/** A look past the store. */
function lookAt(server: Server): Redis {
  const { redis } = testRedis({ url: server.url })
  redis.on('error', () => {}) // the server is killed on purpose
  return redis
}

async function acquire(store: CacheStore): Promise<Lease> {
  const { lease, records } = await store.acquire(['key'], [0], MINUTE)
  expect(records).toEqual([null])
  return lease
}

async function fillRow(store: CacheStore): Promise<void> {
  expect(await store.fill(await acquire(store), [ROW])).toBe(1)
}

async function rowIn(store: CacheStore): Promise<string | undefined> {
  return (await store.getMany(['key']))[0]?.toString('latin1', HEADER_BYTES)
}

/** Every step, as one that is to be tried. */
function steps(store: CacheStore): Record<string, () => Promise<unknown>> {
  return {
    getMany: () => store.getMany(['key']),
    acquire: () => store.acquire(['key'], [0], MINUTE),
    intend: () => store.intend(['key'], 'somebodys-intent', MINUTE),
    clear: () => store.clear(['key'], null, true),
    clearPrefix: () => store.clearPrefix('key'),
  }
}

async function expectUnavailable(step: Promise<unknown>, message?: RegExp): Promise<void> {
  const error: unknown = await step.then(
    () => undefined,
    (reason) => reason,
  )
  expect(error).toBeInstanceOf(StoreUnavailableError)
  expect(error).toMatchObject({ code: 'ERR_STORE_UNAVAILABLE', transient: true })
  if (message) expect(String(error)).toMatch(message)
}

async function expectAllUnavailable(store: CacheStore): Promise<void> {
  for (const step of Object.values(steps(store))) await expectUnavailable(step())
}

/** Resolves when the store works: it connects again by itself, after a pause. */
async function untilItWorks(store: CacheStore): Promise<void> {
  await expect
    .poll(
      () =>
        store.getMany(['any']).then(
          () => true,
          () => false,
        ),
      { timeout: 5000, interval: 10 },
    )
    .toBe(true)
}

async function milliseconds(step: Promise<unknown>): Promise<number> {
  const began = performance.now()
  await step.catch(() => undefined)
  return performance.now() - began
}

/** By their hash: the one that reads the marks. By EVAL: the one that looks what the user may do. */
const OF_A_CONNECTION = 1

/** Whose lease is at the key. */
async function leaseAt(server: Server): Promise<string> {
  const record = (await lookAt(server).getBuffer('key')) as Buffer
  expect(isLeaseRecord(record)).toBe(true)
  return leaseToken(record)
}

/** How often the server has run a command. */
async function calls(redis: Redis, command: string): Promise<number> {
  const stats = await redis.info('commandstats')
  return Number(new RegExp(`^cmdstat_${command}:calls=(\\d+)`, 'm').exec(stats)?.[1] ?? 0)
}

describe.each(Object.entries(CLIENTS))('over %s:', (packageName, newClient) => {
  const openStore = openerOf(newClient)

  describe('a server that is not there', () => {
    test('at the start: every step is rejected at once, and works when the server has come', async () => {
      const port = await freePort()
      const store = openStore(port)
      for (const step of Object.values(steps(store))) {
        const waited = milliseconds(step())
        await expectUnavailable(step(), /ECONNREFUSED/)
        expect(await waited).toBeLessThan(1000)
      }
      const server = await startRedis({ port })
      onTestFinished(server.stop)
      await untilItWorks(store)
      await fillRow(store)
      expect(await rowIn(store)).toBe('row')
    })

    test('the first steps wait for the first connection, within the timeout', async () => {
      const store = openStore((await serve()).port)
      expect(await Promise.all([store.getMany(['key']), store.getMany(['key'])])).toEqual([[null], [null]])
    })

    test('a host that answers nothing: the first step waits for the timeout, and no longer', async () => {
      const proxy = await proxyTo(await serve())
      proxy.hold()
      const store = openStore(proxy.port, { timeout: 100 })
      const waited = await milliseconds(expectUnavailable(store.getMany(['key']), /no answer within 100 ms/))
      expect(waited).toBeGreaterThan(95)
      expect(waited).toBeLessThan(2000)
      proxy.release()
      await untilItWorks(store)
    })
  })

  describe('a server that is killed', () => {
    test('steps under way are rejected at once, later ones too, and the store comes back with the server', async () => {
      const server = await serve()
      const proxy = await proxyTo(server)
      const store = openStore(proxy.port)
      await store.getMany(['key'])
      proxy.hold('requests')
      const underWay = Object.values(steps(store)).map((step) => expectUnavailable(step()))
      const killed = server.kill()
      proxy.cut()
      await Promise.all([...underWay, killed])
      expect(await milliseconds(expectAllUnavailable(store))).toBeLessThan(2000)

      await server.restart()
      proxy.release()
      await untilItWorks(store)
      await fillRow(store)
      expect(await rowIn(store)).toBe('row')
    })

    test.each([
      ['the append-only file', KEEPS_EVERYTHING, async () => undefined],
      ['a snapshot', [], (redis: Redis) => redis.save()],
    ])('what it read back from %s is there, and not believed', async (_, args, save) => {
      const server = await serve(args)
      const store = openStore(server.port)
      await fillRow(store)
      expect(await rowIn(store)).toBe('row')
      await save(lookAt(server))
      await server.kill()
      await server.restart()

      await untilItWorks(store)
      expect(await lookAt(server).getBuffer('key')).not.toBeNull()
      expect(await rowIn(store)).toBeUndefined()
      await fillRow(store)
      expect(await rowIn(store)).toBe('row')
    })

    test('a lease of before fills nothing: the server may not have heard who took it away', async () => {
      const server = await serve(KEEPS_EVERYTHING)
      const store = openStore(server.port)
      const lease = await acquire(store)
      await server.kill()
      await server.restart()

      await untilItWorks(store)
      expect(await leaseAt(server)).toBe(lease.token)
      await expectUnavailable(store.fill(lease, [ROW]), /the connection of the lease is gone/)
      expect(await leaseAt(server)).toBe(lease.token)
    })

    test('a lease of before fills nothing also when only the connection was lost', async () => {
      const server = await serve()
      const proxy = await proxyTo(server)
      const store = openStore(proxy.port)
      const lease = await acquire(store)
      proxy.cut()
      await expect.poll(() => store.session).toBeUndefined()
      await expectUnavailable(store.fill(lease, [ROW]))
      await untilItWorks(store)
      await expectUnavailable(store.fill(lease, [ROW]))
      expect(await leaseAt(server)).toBe(lease.token)
    })

    test('write intents of before still stand', async () => {
      const server = await serve(KEEPS_EVERYTHING)
      const store = openStore(server.port)
      await store.intend(['key'], 'somebodys-intent', MINUTE)
      await server.kill()
      await server.restart()
      await untilItWorks(store)
      expect((await store.acquire(['key'], [0], MINUTE)).records).not.toEqual([null])
    })

    test('the session tells that it is another one', async () => {
      const server = await serve()
      const store = openStore(server.port)
      const before = await store.intend(['key'], 'somebodys-intent', MINUTE)
      expect(store.session).toBe(before)
      await server.kill()
      await expect.poll(() => store.session).toBeUndefined()
      await server.restart()
      await untilItWorks(store)
      expect(store.session).not.toBe(before)
    })
  })

  describe('a server that does not answer', () => {
    test('frozen: every step is rejected after the timeout, and works again afterwards', async () => {
      const server = await serve()
      const store = openStore(server.port, { timeout: 100 })
      await untilItWorks(store)
      server.pause()
      for (const step of Object.values(steps(store))) {
        const waited = await milliseconds(expectUnavailable(step(), /no answer within 100 ms/))
        expect(waited).toBeGreaterThan(95)
        expect(waited).toBeLessThan(2000)
      }
      server.resume()
      await untilItWorks(store)
    })

    test('a lease whose reply came too late is nobody\u2019s: it ends by itself', async () => {
      const server = await serve()
      const proxy = await proxyTo(server)
      const store = openStore(proxy.port, { timeout: 100 })
      await untilItWorks(store)
      proxy.hold('replies')
      await expectUnavailable(store.acquire(['key'], [0], MINUTE))
      proxy.release()
      await untilItWorks(store)
      const redis = lookAt(server)
      expect(await leaseAt(server)).toMatch(/^.{16}$/)
      expect((await store.acquire(['key'], [0], MINUTE)).records).not.toEqual([null])
      await redis.pexpire('key', 0)
      await fillRow(store)
    })

    test('a command whose reply was lost is not sent again', async () => {
      const server = await serve()
      const proxy = await proxyTo(server)
      const store = openStore(proxy.port)
      await untilItWorks(store)
      const redis = lookAt(server)
      const [scripts, reads] = [await calls(redis, 'evalsha'), await calls(redis, 'mget')]
      const evals = await calls(redis, 'eval')
      proxy.hold('replies')
      const [acquired, read] = [store.acquire(['key'], [0], MINUTE), store.getMany(['key'])]
      await expect.poll(() => calls(redis, 'mget')).toBe(reads + 1)
      proxy.cut()
      await Promise.all([expectUnavailable(acquired), expectUnavailable(read)])
      proxy.release()
      await expect.poll(() => proxy.accepted).toBe(2)
      await untilItWorks(store)
      expect(await calls(redis, 'evalsha')).toBe(scripts + 1 + OF_A_CONNECTION)
      expect(await calls(redis, 'eval')).toBe(evals + OF_A_CONNECTION)
    })

    test('a command is not kept for a server that is away', async () => {
      const server = await serve()
      const proxy = await proxyTo(server)
      const store = openStore(proxy.port)
      const redis = lookAt(server)
      await untilItWorks(store)
      const scripts = await calls(redis, 'evalsha')
      proxy.cut()
      await expect.poll(() => store.session).toBeUndefined()
      await expectUnavailable(store.clear(['key'], null, true))
      await untilItWorks(store)
      expect(await calls(redis, 'evalsha')).toBe(scripts + OF_A_CONNECTION)
    })

    test('a slow network is only slow', async () => {
      const proxy = await proxyTo(await serve())
      proxy.delay(20)
      const store = openStore(proxy.port)
      await fillRow(store)
      expect(await rowIn(store)).toBe('row')
    })
  })

  describe('a master that changes', () => {
    /** Makes the server a replica of nobody who answers: it keeps its data, and its connections. */
    async function demote(redis: Redis): Promise<void> {
      await redis.replicaof('127.0.0.1', await freePort())
    }

    function promote(redis: Redis): Promise<unknown> {
      return redis.replicaof('NO', 'ONE')
    }

    test('without closing its connections: it is found out, and its values are not believed', async () => {
      const server = await serve()
      const store = openStore(server.port, { epochCheck: 20 })
      await fillRow(store)
      const lease = await store.acquire(['other'], [0], MINUTE)
      const redis = lookAt(server)
      await demote(redis)
      await promote(redis)
      await expect.poll(() => rowIn(store).catch(() => 'no connection'), { interval: 10 }).toBeUndefined()
      await expectUnavailable(store.fill(lease.lease, [{ ...ROW, key: 'other' }]))
      await fillRow(store)
      expect(await rowIn(store)).toBe('row')
    })

    test('a replica is not read: it may not have heard of a write', async () => {
      const server = await serve()
      const store = openStore(server.port, { epochCheck: 20 })
      await fillRow(store)
      const redis = lookAt(server)
      await demote(redis)
      await expect.poll(() => rowIn(store).catch(String), { interval: 10 }).toMatch(/it is a replica/)
      await promote(redis)
      await untilItWorks(store)
      expect(await rowIn(store)).toBeUndefined()
    })

    test('a replica given as the server is refused', async () => {
      const server = await serve()
      await demote(lookAt(server))
      const store = openStore(server.port)
      await expectUnavailable(store.getMany(['key']), /it is a replica/)
    })

    test('a write that finds out first ends the session, and is not sent again', async () => {
      const server = await serve()
      // An application that wants its own commands resent has not asked that of ours.
      const store = openStore(server.port, {}, { reconnectOnError: () => 2 })
      await fillRow(store)
      const redis = lookAt(server)
      const before = await calls(redis, 'evalsha')
      await demote(redis)
      await expectUnavailable(store.acquire(['other'], [0], MINUTE), /READONLY/)
      await expectUnavailable(store.getMany(['key']))
      await promote(redis)
      expect(await calls(redis, 'evalsha')).toBe(before + 1)
      expect(await redis.exists('other')).toBe(0)
    })
  })

  describe('scripts', () => {
    test('that the server has forgotten are sent again with their text', async () => {
      const server = await serve()
      const store = openStore(server.port)
      const redis = lookAt(server)
      await untilItWorks(store)
      const forget = () => redis.script('FLUSH')
      await forget()
      const lease = await acquire(store)
      await forget()
      expect(await store.fill(lease, [ROW])).toBe(1)
      await forget()
      await store.intend(['key'], 'somebodys-intent', MINUTE)
      await forget()
      await store.clear(['key'], 'somebodys-intent', true)
      expect(await redis.exists('key')).toBe(0)
    })
  })

  describe('close', () => {
    test('rejects what comes later, and what is under way', async () => {
      const server = await serve()
      const store = openStore(server.port, { timeout: 200 })
      await untilItWorks(store)
      server.pause()
      const underWay = store.getMany(['key'])
      await store.close()
      await expectUnavailable(underWay)
      await expectUnavailable(store.getMany(['key']), /it is closed/)
      await store.close()
      server.resume()
    })

    test('while it connects ends that', async () => {
      const server = await serve()
      const store = openStore(server.port)
      await store.close()
      await expectUnavailable(store.getMany(['key']), /it is closed/)
    })

    test('lets the process end, whatever state the connection is in', async () => {
      const server = await serve()
      const blackHole = await proxyTo(server)
      blackHole.hold()
      const ports = { connected: server.port, refused: await freePort(), silent: blackHole.port }
      const program = `
      const { Redis } = await import('${packageName}')
      const { RedisStore } = await import('./src/stores/redis.ts')
      const open = (port) => new RedisStore(new Redis({ port, lazyConnect: true }), { timeout: 200 })
      for (const port of ${JSON.stringify(Object.values(ports))}) {
        await open(port).close()
        const store = open(port)
        await store.getMany(['key']).catch(() => {})
        await store.close()
      }
      console.log('closed')`
      const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', program])
      onTestFinished(() => void child.kill('SIGKILL'))
      const [output, [code]] = await Promise.all([
        child.stdout.setEncoding('utf8').toArray(),
        once(child, 'exit', { signal: AbortSignal.timeout(15_000) }),
      ])
      expect(output.join('')).toBe('closed\n')
      expect(code).toBe(0)
    })
  })
})

describe('a server that takes no writes', () => {
  test('full: reads go on, writes are rejected', async () => {
    const server = await serve()
    const store = openStore(server.port)
    await fillRow(store)
    await lookAt(server).config('SET', 'maxmemory', '1')
    expect(await rowIn(store)).toBe('row')
    await expectUnavailable(store.acquire(['other'], [0], MINUTE), /OOM/)
    await expectUnavailable(store.intend(['key'], 'somebodys-intent', MINUTE), /OOM/)
    expect(await rowIn(store)).toBe('row')
  })

  test('cut off from its replicas: reads go on, writes are rejected', async () => {
    const server = await serve()
    const store = openStore(server.port)
    await fillRow(store)
    await lookAt(server).config('SET', 'min-replicas-to-write', '1')
    expect(await rowIn(store)).toBe('row')
    await expectUnavailable(store.acquire(['other'], [0], MINUTE), /NOREPLICAS/)
  })
})

describe('intents that wait for replicas', () => {
  async function replicaOf(master: Server): Promise<Server> {
    return serve(['--replicaof', '127.0.0.1', String(master.port), '--repl-diskless-sync-delay', '0'])
  }

  test('are refused while there are too few: the writer is told before COMMIT', async () => {
    const store = openStore((await serve()).port, { intentReplicas: 1, timeout: 200 })
    await untilItWorks(store)
    await expectUnavailable(
      store.intend(['key'], 'somebodys-intent', MINUTE),
      /only 0 of 1 replicas|no answer within/,
    )
  })

  test('are on the replica when they were given', async () => {
    const master = await serve(['--repl-diskless-sync-delay', '0'])
    const replica = await replicaOf(master)
    const store = openStore(master.port, { intentReplicas: 1 })
    await expect.poll(() => lookAt(master).wait(1, 100), { timeout: 10_000 }).toBe(1)
    await untilItWorks(store)
    await store.intend(['key'], 'somebodys-intent', MINUTE)
    expect(await lookAt(replica).get('key')).toMatch(/^Wsomebodys-intent/)
  })
})

describe('a scan', () => {
  test('ends with an error when the server is another one meanwhile', async () => {
    const server = await serve()
    const proxy = await proxyTo(server)
    const store = openStore(proxy.port)
    const many = Array.from({ length: 5000 }, (_, i) => [`key:${i}`, 'x']).flat()
    await lookAt(server).mset(many)
    const scan = store.scan('key:')[Symbol.asyncIterator]()
    await scan.next()
    proxy.cut()
    await expect.poll(() => store.session).toBeUndefined()
    await untilItWorks(store)
    await expectUnavailable(scan.next(), /the connection of the scan is gone/)
  })
})

describe('what is sent', () => {
  test('clearPrefix: one script, however many keys there are', async () => {
    const server = await serve()
    const store = openStore(server.port)
    const many = keys(20_000)
    const { lease } = await store.acquire(
      many,
      many.map(() => 0),
      MINUTE,
    )
    await store.fill(
      lease,
      many.map((key) => ({ ...ROW, key })),
    )
    const redis = lookAt(server)
    const commands = async () => Number(/total_commands_processed:(\d+)/.exec(await redis.info('stats'))?.[1])
    const before = await commands()
    await store.clearPrefix('key:')
    // INFO is a command too, and so are the GET and the SET in the script.
    expect((await commands()) - before).toBe(1 + 3)
    expect((await store.getMany(many)).filter((record) => record !== null)).toEqual([])
  })

  test('marks that are gone forget everything: what was cleared must not come back', async () => {
    const server = await serve()
    const [store, other] = [openStore(server.port), openStore(server.port)]
    await fillRow(store)
    await store.clearPrefix('key')
    await fillRow(store)
    await lookAt(server).del('~marks')
    expect(await rowIn(store)).toBeUndefined()
    expect(await rowIn(other)).toBeUndefined()
    await fillRow(other)
    expect(await rowIn(store)).toBe('row')
  })

  test('a load from before a clearPrefix by another process is not believed', async () => {
    const server = await serve()
    const [slow, other] = [openStore(server.port), openStore(server.port)]
    const lease = await acquire(slow)
    await other.clearPrefix('key')
    await slow.fill(lease, [ROW])
    expect([await rowIn(slow), await rowIn(other)]).toEqual([undefined, undefined])
  })

  const keys = (count: number) => Array.from({ length: count }, (_, i) => `key:${i}`)

  test.each([
    [1, 1],
    [1000, 1],
    [1001, 2],
    [2500, 3],
  ])('getMany of %i keys: %i MGET', async (count, commands) => {
    const server = await serve()
    const store = openStore(server.port)
    await untilItWorks(store)
    const before = await calls(lookAt(server), 'mget')
    await store.getMany(keys(count))
    expect(await calls(lookAt(server), 'mget')).toBe(before + commands)
  })

  test.each([
    [1, 1],
    [500, 1],
    [501, 2],
    [1001, 3],
  ])('acquire and fill of %i keys: %i scripts each', async (count, commands) => {
    const server = await serve()
    const store = openStore(server.port)
    await untilItWorks(store)
    const many = keys(count)
    const before = await calls(lookAt(server), 'evalsha')
    const { lease } = await store.acquire(
      many,
      many.map(() => 0),
      MINUTE,
    )
    expect(await calls(lookAt(server), 'evalsha')).toBe(before + commands)
    await store.fill(
      lease,
      many.map((key) => ({ ...ROW, key })),
    )
    expect(await calls(lookAt(server), 'evalsha')).toBe(before + 2 * commands)
  })
})
