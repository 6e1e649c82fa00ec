import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { Redis } from 'ioredis'
import { Kysely, PostgresDialect } from 'kysely'
import { type Client, Pool } from 'pg'
import { createModelCache } from '../../src/index.ts'
import { startPostgres } from '../servers/postgres.ts'
import { startRedis } from '../servers/redis.ts'
import type { Server } from '../servers/server.ts'
import { check } from './checker.ts'
import { now } from './clock.ts'
import { Saboteur } from './faults.ts'
import { Fleet, type WorkerProcess } from './fleet.ts'
import { type Problem, type ProcessNotes, tell } from './history.ts'
import { readJournal } from './journal.ts'
import { NAMESPACE } from './messages.ts'
import { connectionTo, PSQL, Psql } from './psql.ts'
import { Random } from './random.ts'
import { type Report, report } from './report.ts'
import type { Sabotage } from './sabotage.ts'
import { CALM_MS, planFaults } from './schedule.ts'
import { createTables, readThings, readWritten } from './tables.ts'
import { allKeys, keyName, keyNamesOf, META, MODELS, type Tables, type Thing } from './things.ts'

export interface TortureOptions {
  /** Decides which faults come when, and what the workers do. */
  readonly seed: number
  /** About how long, without the start and the checks. */
  readonly seconds: number
  /** Default true. */
  readonly faults?: boolean
  /** Default 3. */
  readonly workers?: number
  readonly sabotage?: Sabotage | undefined
}

const SETTINGS = {
  // A COMMIT takes its time, so that faults meet it under way: this many microseconds, and only where there is fsync.
  fsync: 'on',
  commit_delay: '12000',
  commit_siblings: '0',
  // A deadlock is found soon, so that it does not hold everybody up.
  deadlock_timeout: '50ms',
}
const STOPS_WITHIN_MS = 25_000
const DRAINS_WITHIN_MS = 10_000

/** Several processes on servers of their own, with faults; then checks what everybody saw. */
export async function torture(options: TortureOptions): Promise<Report> {
  const directory = await mkdtemp(join(tmpdir(), 'loadstone-torture-'))
  const [redis, postgres] = await Promise.all([startRedis(), startPostgres({ settings: SETTINGS })])
  const run = new Run(options, directory, redis, postgres)
  try {
    return await run.run()
  } finally {
    await run.destroy()
    await Promise.all([redis.stop(), postgres.stop(), rm(directory, { recursive: true, force: true })])
  }
}

class Run {
  readonly #options: TortureOptions
  readonly #directory: string
  readonly #redis: Server
  readonly #postgres: Server
  #client: Client
  readonly #problems: Problem[] = []
  #fleet: Fleet | undefined

  constructor(options: TortureOptions, directory: string, redis: Server, postgres: Server) {
    this.#options = options
    this.#directory = directory
    this.#redis = redis
    this.#postgres = postgres
    this.#client = connectionTo(postgres.url)
  }

  async run(): Promise<Report> {
    const { seed, seconds, workers = 3, faults = true, sabotage } = this.#options
    await this.#client.connect()
    await createTables(this.#client)
    await this.#install()
    const fleet = await Fleet.start({
      workers,
      seed,
      directory: this.#directory,
      redisPort: this.#redis.port,
      postgresPort: this.#postgres.port,
      readers: 4,
      writers: 2,
      readPauseMs: 6,
      writePauseMs: 30,
      sabotage,
      problem: (promise, message) => this.#problem(promise, message),
    })
    this.#fleet = fleet
    const start = now()
    const psql = new Psql(this.#postgres.url, new Random(seed), 100)
    psql.start()

    const saboteur = new Saboteur(fleet, this.#redis, this.#postgres)
    if (faults) {
      for (const phase of planFaults(seed, seconds * 1000, workers)) {
        await saboteur.run(phase, now())
        await sleep(CALM_MS)
      }
    } else await sleep(seconds * 1000)

    await fleet.ready()
    await psql.stop()
    await this.#reconnect()
    await fleet.each('stop', (process) => this.#ask(process, 'stop', 'stopped', STOPS_WITHIN_MS))
    await this.#checkQuiet(fleet)
    await fleet.finish()

    const written = await readWritten(this.#client)
    const processes: ProcessNotes[] = [
      ...fleet.journals.map(({ who, path }) => ({ who, notes: readJournal(path) })),
      { who: PSQL, notes: psql.notes },
    ]
    const history = tell(start, processes, written, saboteur.windows)
    const all = { ...history, problems: [...history.problems, ...this.#problems] }
    return report(seed, all, check(all))
  }

  async destroy(): Promise<void> {
    await this.#fleet?.destroy()
    await this.#client.end()
  }

  /** Postgres may have crashed since. */
  async #reconnect(): Promise<void> {
    await this.#client.end().catch(() => undefined)
    this.#client = connectionTo(this.#postgres.url)
    await this.#client.connect()
  }

  async #install(): Promise<void> {
    const pool = new Pool({ connectionString: this.#postgres.url })
    const db = new Kysely<Tables>({ dialect: new PostgresDialect({ pool }) })
    const cache = createModelCache({ db, namespace: NAMESPACE, relay: false })
    for (const model of MODELS) cache.model(model, META)
    await cache.install()
    await cache.close()
    await db.destroy()
  }

  /** When nobody writes any more and the outbox is empty, everything that is cached is what the database has. */
  async #checkQuiet(fleet: Fleet): Promise<void> {
    await this.#drain()
    const expected = await this.#everything()
    // Twice: the first look may fill what the second one finds.
    for (const look of ['first', 'second']) {
      await fleet.each('look', async (process) => {
        const { things } = await this.#ask(process, 'look', 'looked', STOPS_WITHIN_MS)
        for (const [key, rows] of Object.entries(expected)) {
          if (isDeepStrictEqual(things[key], rows)) continue
          const shown = `${JSON.stringify(things[key])}, the database ${JSON.stringify(rows)}`
          this.#problem(
            'at quiet, the cache is the database',
            `${process.who}, ${look} look: ${key} is ${shown}`,
          )
        }
      })
    }
    const [first] = fleet.slots
    const { stale, damaged, checked, examples } = await this.#ask(
      first?.process as WorkerProcess,
      'verify',
      'verified',
      STOPS_WITHIN_MS,
    )
    if (stale + damaged > 0) {
      const found = `${stale} stale, ${damaged} damaged of ${checked} entries: ${examples.join(', ')}`
      this.#problem('at quiet, the cache is the database', `verify found ${found}`)
    }
    await this.#checkRecords()
  }

  /** Whatever is in Redis has a ttl. */
  async #checkRecords(): Promise<void> {
    const redis = new Redis(this.#redis.url)
    for (const key of await redis.keys('*')) {
      if ((await redis.pttl(key)) === -1) this.#problem('every record has a ttl', `${key} has none`)
    }
    redis.disconnect()
  }

  async #drain(): Promise<void> {
    const deadline = now() + DRAINS_WITHIN_MS
    for (;;) {
      const { rows } = await this.#client.query('select count(*)::int as waiting from loadstone.outbox')
      if (rows[0].waiting === 0) return
      if (now() > deadline) {
        this.#problem('the outbox is emptied', `${rows[0].waiting} rows after ${DRAINS_WITHIN_MS} ms`)
        return
      }
      await sleep(50)
    }
  }

  /** What every key selects, from the database itself. */
  async #everything(): Promise<Record<string, readonly Thing[]>> {
    const expected: Record<string, Thing[]> = {}
    for (const model of MODELS) {
      for (const key of allKeys(model)) expected[keyName(key)] = []
      for (const thing of await readThings(this.#client, model)) {
        for (const key of keyNamesOf(model, thing)) expected[key]?.push(thing)
      }
    }
    return expected
  }

  async #ask<Q extends 'stop' | 'look' | 'verify', A extends 'stopped' | 'looked' | 'verified'>(
    process: WorkerProcess,
    type: Q,
    answer: A,
    withinMs: number,
  ) {
    const reply = process.reply(answer, withinMs)
    process.tell({ type })
    return reply
  }

  #problem(promise: string, message: string): void {
    this.#problems.push({ who: 'coordinator', at: now(), promise, message })
  }
}
