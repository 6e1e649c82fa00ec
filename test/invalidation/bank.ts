import { Kysely, PostgresDialect } from 'kysely'
import { type Cache, type CacheOptions, createModelCache, runInLoop, withInvalidation } from 'loadstone'
import { holdSteps } from 'loadstone/testing'
import { Pool } from 'pg'
import { inject, onTestFinished, vi } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { StoreUnavailableError } from '../../src/errors.ts'
import { createTestDatabase } from '../support/database.ts'
import { type FaultyProxy, startProxy } from '../support/proxy.ts'
import { testRedis } from '../support/redis.ts'

export interface BankTables {
  accounts: { id: number; balance: number }
}

export type Consistency = 'default' | 'strict'
export const CONSISTENCIES = ['default', 'strict'] as const

/**
 * A process of an application, so to speak: a cache with connections of its own to the Redis and the Postgres that
 * all processes share. What is done to its connections, its store or its waves concerns no other one.
 */
export interface Process {
  readonly cache: Cache<BankTables>
  readonly Account: ReturnType<typeof declare>
  readonly db: Kysely<BankTables>
  /** Between this process and Redis. */
  readonly redisNetwork: FaultyProxy
  /** Between this process and Postgres. */
  readonly databaseNetwork: FaultyProxy
  /** The balance of account 1, as a request of its own. */
  read(): Promise<number>
  /** The same, as a part of the scope that it is called in. */
  look(): Promise<number>
  /** Sets the balance of account 1. */
  write(balance: number): Promise<void>
}

/** A database with account 1, of which the balance is 100, and processes that cache it. Closed when the test is over. */
export interface Bank {
  /** Of account 1, in Redis. */
  readonly key: string
  readonly databaseUrl: string
  open(options?: Partial<CacheOptions<BankTables>>): Promise<Process>
  /** SQL by another program: it knows nothing of the cache. */
  foreign(statement: string): Promise<Record<string, unknown>[]>
  /** The balance of account 1, as the database has it. */
  balance(): Promise<number>
  /** How many outbox rows wait to be applied. */
  debt(): Promise<number>
  /** What is in Redis for account 1, whether anybody would believe it or not. */
  entry(redisUrl?: string): Promise<EntryKind | 'nothing'>
}

/** By default those of the run, which are shared, so they are not to be broken. */
export interface BankServers {
  readonly redisUrl?: string
  readonly databaseUrl?: string
}

/** No test waits for a ttl, nobody relays without being told, and the store gets time, as the machine is shared. */
const OPTIONS = { leaseTtl: '1h', intentTtl: '1h', relay: false, storeTimeout: '5s' } as const

function declare(cache: Cache<BankTables>, consistency: Consistency) {
  return cache.model('accounts', { keyFields: [['id']], consistency })
}

export type EntryKind = 'value' | 'lease' | 'intent'

/** What a record in Redis is, whether anybody would believe it or not. */
export function kindOf(record: string): EntryKind {
  return ({ V: 'value', L: 'lease', W: 'intent' } as const)[record.charAt(0) as 'V' | 'L' | 'W']
}

export async function openBank(consistency: Consistency, servers: BankServers = {}): Promise<Bank> {
  const { redisUrl = inject('redisUrl') } = servers
  const database = servers.databaseUrl ? existing(servers.databaseUrl) : await createTestDatabase()
  onTestFinished(() => database.drop())
  await database.pool.query(`create table accounts (id int primary key, balance int not null);
    insert into accounts values (1, 100)`)
  const { namespace } = testRedis({ lazyConnect: true })

  async function open(options: Partial<CacheOptions<BankTables>> = {}): Promise<Process> {
    const databaseUrl = new URL(database.url)
    const redisNetwork = await startProxy(Number(new URL(redisUrl).port))
    onTestFinished(redisNetwork.close)
    const databaseNetwork = await startProxy(Number(databaseUrl.port))
    onTestFinished(databaseNetwork.close)
    databaseUrl.port = String(databaseNetwork.port)

    const { redis } = testRedis({ url: `redis://127.0.0.1:${redisNetwork.port}`, lazyConnect: true })
    const dialect = new PostgresDialect({ pool: poolAt(databaseUrl.href) })
    const db = new Kysely<BankTables>({ dialect: withInvalidation(dialect) })
    const cache = createModelCache({ ...OPTIONS, db, redis, namespace, ...options })
    const Account = declare(cache, consistency)
    onTestFinished(async () => {
      await cache.close()
      await db.destroy()
    })
    const look = async () => (await Account.cache.getAsync({ id: 1 })).balance
    return {
      cache,
      Account,
      db,
      redisNetwork,
      databaseNetwork,
      read: runInLoop(look),
      look,
      async write(balance) {
        await db.updateTable('accounts').set({ balance }).where('id', '=', 1).execute()
      },
    }
  }

  const foreign: Bank['foreign'] = async (statement) => (await database.pool.query(statement)).rows
  const installer = await open()
  await installer.cache.install()
  const key = `${namespace}:accounts:id:1`
  return {
    key,
    databaseUrl: database.url,
    open,
    foreign,
    balance: async () => (await foreign('select balance from accounts where id = 1'))[0]?.balance as number,
    debt: async () => Number((await foreign('select count(*) from loadstone.outbox'))[0]?.count),
    async entry(url = redisUrl) {
      const record = await lookAt(url).get(key)
      return record === null ? 'nothing' : kindOf(record)
    },
  }
}

function existing(url: string) {
  const pool = poolAt(url)
  return { url, pool, drop: () => pool.end() }
}

/** Tests break connections, and pg tells each client of it, whether it is idle in the pool or in use. */
function poolAt(url: string): Pool {
  const pool = new Pool({ connectionString: url })
  pool.on('error', () => {})
  pool.on('connect', (client) => client.on('error', () => {}))
  return pool
}

/** A look past the caches; it waits for a server that is away. */
export function lookAt(redisUrl: string) {
  const { redis } = testRedis({ url: redisUrl, retryStrategy: () => 20 })
  redis.on('error', () => {})
  onTestFinished(() => redis.disconnect())
  return redis
}

/** Both have account 1 cached, and nothing is under way. */
export async function warm(...processes: readonly Process[]): Promise<void> {
  for (const { read, cache } of processes) {
    await read()
    await cache.idle()
  }
}

/** Every process has its connection to Redis again: each makes it anew by itself, after a pause. */
export async function untilConnected(...processes: readonly Process[]): Promise<void> {
  for (const { cache } of processes) {
    await vi.waitFor(() => insidesOf(cache).store.getMany(['any']), { timeout: 10_000, interval: 10 })
  }
}

/**
 * Quiet: all are connected, nothing is under way, and the relay, in the process named first, has applied what nobody
 * else has.
 */
export async function quiet(...processes: readonly [Process, ...Process[]]): Promise<void> {
  await untilConnected(...processes)
  for (const { cache } of processes) await cache.idle()
  const { relay } = insidesOf(processes[0].cache)
  for (let applied = 1; applied > 0; ) applied = await relay.turn(0)
}

/** Where something is held, until it is told to go on or to fail. */
export interface Gate {
  /** Resolves when something has come here. */
  readonly reached: Promise<void>
  /** For what is to be held. */
  pass(): Promise<void>
  goOn(): void
  fail(): void
}

/** Whatever it still holds when the test is over fails then. */
export function gate(): Gate {
  const [reached, told] = [signal(), signal()]
  const fail = () => told.reject(new StoreUnavailableError('held for too long'))
  onTestFinished(fail)
  const pass = () => {
    reached.resolve()
    return told.promise
  }
  return { reached: reached.promise, pass, goOn: told.resolve, fail }
}

function signal() {
  let resolve!: () => void
  let reject!: (error: Error) => void
  const promise = new Promise<void>((...both) => {
    ;[resolve, reject] = both
  })
  promise.catch(() => {})
  return { promise, resolve, reject }
}

/**
 * Holds a process the next time that it tells the store of a write.
 *
 * @param step `intend` is the last one before COMMIT, `clear` the first one after it
 */
export function hold({ cache }: Process, when: 'before' | 'after', step: 'intend' | 'clear'): Gate {
  const { store } = insidesOf(cache)
  const take = store[step].bind(store) as (...args: unknown[]) => Promise<unknown>
  const held = gate()
  const takeHeld = async (...args: unknown[]) => {
    Object.assign(store, { [step]: take })
    if (when === 'before') await held.pass()
    const taken = await take(...args)
    if (when === 'after') await held.pass()
    return taken
  }
  Object.assign(store, { [step]: takeHeld })
  return held
}

/** A reader that has its lease, and the row as it is now, and has not filled it yet. Other reads are not held up. */
export async function slowReader({ cache, read }: Process) {
  const steps = holdSteps(cache)
  onTestFinished(steps.release)
  const reading = read()
  for (const op of ['getMany', 'acquire', 'select'] as const) await steps.take(op)
  const fill = await steps.next('fill')
  insidesOf(cache).hook.gate = undefined
  return {
    /** What its caller was told. */
    answer: await reading,
    async fill() {
      await fill.take()
      await cache.idle()
    },
  }
}

/** What a reader is told whose look at Redis is not answered: SQL answers then. */
export async function readPastRedis({ cache, read }: Process): Promise<number> {
  const steps = holdSteps(cache)
  const reading = read()
  ;(await steps.next('getMany')).fail(new StoreUnavailableError('no answer in time'))
  steps.release()
  return reading
}
