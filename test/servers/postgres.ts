import { execFile } from 'node:child_process'
import { chown, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Client } from 'pg'
import { findPostgres } from './find-binary.ts'
import { onFreePort } from './ports.ts'
import { type Server, startServer } from './server.ts'

const run = promisify(execFile)

interface User {
  uid: number
  gid: number
}

export interface PostgresOptions {
  /** Further settings: `{ max_connections: '20' }`. They win over ours. */
  settings?: Readonly<Record<string, string>>
  /** How long it may take to answer once its files are there, ms. Default 15_000. */
  startTimeout?: number
}

const SETTINGS = {
  listen_addresses: '127.0.0.1',
  unix_socket_directories: '',
  max_connections: '200',
  wal_level: 'logical',
  max_prepared_transactions: '10',
  // The files are thrown away: speed over durability.
  fsync: 'off',
  full_page_writes: 'off',
}

/** Starts a new, empty Postgres on 127.0.0.1; user `postgres`, no password. */
export async function startPostgres({ settings, startTimeout }: PostgresOptions = {}): Promise<Server> {
  const programs = findPostgres()
  if (!programs) throw new Error('postgresql is not installed')
  const user = await serverUser()
  return onFreePort(async (port) => {
    const directory = await createCluster(programs.initdb, user)
    const given = Object.entries({ ...SETTINGS, ...settings, port: String(port) })
    return startServer({
      url: `postgres://postgres@127.0.0.1:${port}/postgres`,
      port,
      program: programs.postgres,
      args: ['-D', directory, ...given.flatMap(([name, value]) => ['-c', `${name}=${value}`])],
      directory,
      user,
      stopSignal: 'SIGINT', // "fast": ends open sessions
      killSignal: 'SIGQUIT', // "immediate": a crash that takes the worker processes along
      startTimeout,
      answers: (pid) => answersQuery(port, pid, directory),
    })
  })
}

/** Postgres refuses to run as root. The package brings a user for it; `nobody` does as well. */
async function serverUser(): Promise<User | undefined> {
  if (process.geteuid?.() !== 0) return undefined
  return (await lookUpUser('postgres')) ?? (await lookUpUser('nobody'))
}

async function lookUpUser(name: string): Promise<User | undefined> {
  try {
    const [uid, gid] = await Promise.all([run('id', ['-u', name]), run('id', ['-g', name])])
    return { uid: Number(uid.stdout), gid: Number(gid.stdout) }
  } catch {
    return undefined
  }
}

async function createCluster(initdb: string, user: User | undefined): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'loadstone-postgres-'))
  const args = ['--locale=C.UTF-8', '--encoding=UTF8', '--auth=trust', '--username=postgres', '--no-sync']
  try {
    if (user) await chown(directory, user.uid, user.gid)
    await run(initdb, ['-D', directory, ...args], { cwd: directory, ...user, timeout: 60_000 })
    return directory
  } catch (error) {
    await rm(directory, { recursive: true, force: true })
    throw error
  }
}

/** The data directory tells our server from another one that took the port first. */
async function answersQuery(port: number, _pid: number, directory: string): Promise<boolean> {
  const client = new Client({
    host: '127.0.0.1',
    port,
    user: 'postgres',
    database: 'postgres',
    connectionTimeoutMillis: 1_000,
    query_timeout: 1_000,
  })
  client.on('error', () => {}) // a failed query says it as well
  try {
    await client.connect()
    const { rows } = await client.query(`select current_setting('data_directory') as directory`)
    return rows[0].directory === directory
  } catch {
    return false // not listening yet, or still recovering
  } finally {
    await client.end().catch(() => {})
  }
}
