import { Kysely, PostgresDialect } from 'kysely'
import { Client, Pool } from 'pg'
import { expect, onTestFinished, test, vi } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { CommitOutcomeUnknownError, createModelCache, withInvalidation } from '../../src/index.ts'
import { startPostgres } from '../servers/postgres.ts'
import type { Server } from '../servers/server.ts'
import { startProxy } from '../support/proxy.ts'

interface Tables {
  counters: { id: number; value: number }
}

/** What makes Postgres begin anew from what is on disk. */
const CRASHES = {
  'the server': async (postgres: Server) => {
    await postgres.kill()
    await postgres.restart()
  },
  // The server goes on under its pid and start time, but ends all others of its processes and recovers.
  'one of its backends': async (postgres: Server) => {
    const client = new Client({ connectionString: postgres.url })
    const ended = new Promise<void>((resolve) => client.on('end', () => resolve()))
    client.on('error', () => {})
    await client.connect()
    const { rows } = await client.query('select pg_backend_pid() as pid')
    process.kill(rows[0].pid, 'SIGKILL')
    await ended
  },
}

test.each(Object.entries(CRASHES))(
  'a COMMIT lost by a crash of %s is not taken for another one with the same transaction id',
  async (_of, crash) => {
    // Nothing is written to disk before a COMMIT is, so the crash takes along that the id was ever given.
    // A connection that the proxy holds back before its first message would keep the server from beginning
    // anew for the whole authentication timeout, 1 min by default.
    const settings = { wal_writer_delay: '10s', autovacuum: 'off', authentication_timeout: '1s' }
    const postgres = await startPostgres({ settings })
    const proxy = await startProxy(postgres.port)
    onTestFinished(() => Promise.all([proxy.close(), postgres.stop()]).then(() => undefined))
    const ask = async (text: string) => {
      const client = new Client({
        connectionString: postgres.url,
        connectionTimeoutMillis: 2000,
        query_timeout: 5000,
      })
      client.on('error', () => {})
      await client.connect()
      const { rows } = await client.query(text)
      await client.end()
      return rows
    }
    await ask('create table counters (id int primary key, value int not null)')
    await ask('insert into counters values (1, 0)')

    const pool = new Pool({ host: '127.0.0.1', port: proxy.port, user: 'postgres' })
    pool.on('error', () => {})
    pool.on('connect', (client) => client.on('error', () => {}))
    const db = new Kysely<Tables>({ dialect: withInvalidation(new PostgresDialect({ pool })) })
    onTestFinished(() => db.destroy())
    const cache = createModelCache({ db, namespace: 'crash', relay: false })
    const Counter = cache.model('counters', { keyFields: [['id']], consistency: 'strict' })
    await cache.install()
    await Counter.cache.getAsync({ id: 1 })

    // The intents are the last thing before COMMIT: what is sent then does not arrive.
    const { store } = insidesOf(cache)
    const intend = store.intend.bind(store)
    const committing = new Promise<void>((resolve) => {
      store.intend = async (...args) => {
        const session = await intend(...args)
        proxy.hold('requests')
        resolve()
        return session
      }
    })
    let lost = ''
    const writing = db.transaction().execute(async (trx) => {
      await trx.updateTable('counters').set({ value: 1 }).where('id', '=', 1).execute()
      const [row] = await ask('select backend_xid as xid from pg_stat_activity where backend_xid is not null')
      lost = row.xid
    })
    const outcome = writing.then(
      () => 'committed',
      (error: unknown) => error,
    )
    await committing
    await crash(postgres)
    await vi.waitFor(() => ask('select'), { timeout: 20_000, interval: 50 })
    const client = new Client({ connectionString: postgres.url })
    await client.connect()
    await client.query('begin; insert into counters values (2, 0)')
    const { rows } = await client.query('select pg_current_xact_id()::text as xid')
    await client.query('commit')
    await client.end()
    expect(rows[0].xid).toBe(lost)

    proxy.release()
    expect(await outcome).toBeInstanceOf(CommitOutcomeUnknownError)
    expect(await ask('select value from counters order by id')).toEqual([{ value: 0 }, { value: 0 }])
    await cache.close()
  },
)
