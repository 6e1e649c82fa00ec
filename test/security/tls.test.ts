import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { type AddressInfo, connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createServer, type TLSSocket, type Server as TlsServer } from 'node:tls'
import { Redis, type RedisOptions } from 'ioredis'
import { Redis as Redis5 } from 'ioredis-5'
import { Kysely, PostgresDialect } from 'kysely'
import { createModelCache, runInLoop } from 'loadstone'
import { afterAll, beforeAll, describe, expect, inject, onTestFinished, test } from 'vitest'
import type { RedisClient } from '../../src/stores/redis.ts'
import { createTestDatabase, type TestDatabase } from '../support/database.ts'
import { closeRedis, testRedis } from '../support/redis.ts'

interface Tables {
  users: { id: number; name: string }
}

/**
 * TLS in front of the run's Redis, as not every build of it can do TLS by itself. It demands a client's certificate,
 * and takes down who has come.
 */
let front: TlsServer
let database: TestDatabase
let directory: string
const accepted: { authorized: boolean; subject: unknown }[] = []

/** A certificate authority, and certificates of it for a server at 127.0.0.1 and for a client. */
function certify(folder: string): void {
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: folder, stdio: 'pipe' })
  const keyed = (name: string) => ['-newkey', 'rsa:2048', '-nodes', '-keyout', `${name}.key`]
  for (const name of ['ca', 'other'])
    openssl('req', '-x509', ...keyed(name), '-out', `${name}.crt`, '-subj', `/CN=${name}`, '-days', '2')
  for (const name of ['server', 'client']) {
    const names = ['-addext', 'subjectAltName=IP:127.0.0.1']
    openssl('req', ...keyed(name), '-out', `${name}.csr`, '-subj', `/CN=${name}`, ...names)
    const signed = ['-CA', 'ca.crt', '-CAkey', 'ca.key', '-CAcreateserial', '-copy_extensions', 'copy']
    openssl('x509', '-req', '-in', `${name}.csr`, '-out', `${name}.crt`, ...signed, '-days', '2')
  }
}

const file = (name: string) => readFileSync(join(directory, name), 'utf8')

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'loadstone-tls-'))
  certify(directory)
  const behind = Number(new URL(inject('redisUrl')).port)
  front = createServer(
    { key: file('server.key'), cert: file('server.crt'), ca: file('ca.crt'), requestCert: true },
    (socket: TLSSocket) => {
      accepted.push({ authorized: socket.authorized, subject: socket.getPeerCertificate().subject?.CN })
      const redis = connect(behind, '127.0.0.1')
      for (const [one, other] of [
        [socket, redis],
        [redis, socket],
      ] as const) {
        one.on('error', () => other.destroy())
        one.on('close', () => other.destroy())
      }
      socket.pipe(redis).pipe(socket)
    },
  ).listen(0, '127.0.0.1')
  await once(front, 'listening')
  database = await createTestDatabase()
  await database.pool.query(
    "create table users (id int primary key, name text); insert into users values (1, 'Ada')",
  )
})
afterAll(async () => {
  front.close()
  await closeRedis()
  await database.drop()
  rmSync(directory, { recursive: true, force: true })
})

const portOf = () => (front.address() as AddressInfo).port

type Tls = NonNullable<RedisOptions['tls']>

const CLIENTS: Record<string, (tls: Tls) => RedisClient> = {
  'ioredis 6, rediss://': (tls) => new Redis(`rediss://127.0.0.1:${portOf()}`, { tls, lazyConnect: true }),
  'ioredis 6, tls options': (tls) => new Redis({ host: '127.0.0.1', port: portOf(), tls, lazyConnect: true }),
  'ioredis 5, rediss://': (tls) => new Redis5(`rediss://127.0.0.1:${portOf()}`, { tls, lazyConnect: true }),
}

function open(redis: RedisClient) {
  const db = new Kysely<Tables>({ dialect: new PostgresDialect({ pool: database.pool }) })
  const { namespace } = testRedis({ lazyConnect: true })
  const settings = { invalidation: 'manual', storeTimeout: '5s' } as const
  const cache = createModelCache<Tables>({ db, redis, namespace, ...settings })
  const User = cache.model('users', { keyFields: [['id']] })
  onTestFinished(() => cache.close())
  return { cache, look: runInLoop(() => User.cache.getAsync({ id: 1 })) }
}

describe.each(Object.entries(CLIENTS))('over TLS, %s', (_, client) => {
  test("the cache's own connection shows the client's certificate, and works", async () => {
    accepted.length = 0
    const tls = { ca: file('ca.crt'), cert: file('client.crt'), key: file('client.key') }
    const { cache, look } = open(client(tls))
    expect(await look()).toEqual({ id: 1, name: 'Ada' })
    await cache.idle()
    expect(await look()).toEqual({ id: 1, name: 'Ada' })
    expect(cache.stats()).toMatchObject({ hits: 1, storeErrors: 0 })
    expect(accepted).toEqual([{ authorized: true, subject: 'client' }])
  })

  test.each<[string, () => Tls, RegExp]>([
    ['of an authority nobody has named', () => ({}), /certificate/],
    ['of another authority', () => ({ ca: file('other.crt') }), /certificate/],
    ['for another host', () => ({ ca: file('ca.crt'), servername: 'redis.example' }), /Hostname|altnames/],
  ])('a server with a certificate %s is not talked to: SQL answers, doctor tells', async (_, tls, reason) => {
    accepted.length = 0
    const { cache, look } = open(client(tls()))
    expect(await look()).toEqual({ id: 1, name: 'Ada' })
    await cache.idle()
    expect(await look()).toEqual({ id: 1, name: 'Ada' })
    expect(cache.stats()).toMatchObject({ hits: 0, storeErrors: 2 })
    const [finding] = (await cache.doctor()).filter(({ area }) => area === 'store')
    expect(finding).toMatchObject({ status: 'fail', finding: expect.stringMatching(reason) })
  })
})
