import { execFile } from 'node:child_process'
import { chown, mkdtemp, realpath, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { Client } from 'pg'
import { findPostgres, type PostgresBinaries } from './find-binary.ts'
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
export async function startPostgres(options: PostgresOptions = {}): Promise<Server> {
  const programs = installed()
  return start(programs, SETTINGS, options, (directory, user) => {
    const args = ['--locale=C.UTF-8', '--encoding=UTF8', '--auth=trust', '--username=postgres', '--no-sync']
    return run(programs.initdb, ['-D', directory, ...args], { cwd: directory, ...user, timeout: 60_000 })
  })
}

/** Starts a hot standby that streams from a server, which may be a standby itself. It begins with all that is there. */
export async function startStandby(of: Server, options: PostgresOptions = {}): Promise<Server> {
  const programs = installed()
  const settings = { ...SETTINGS, wal_retrieve_retry_interval: '50ms' }
  // Where the server really is: a link on the PATH may have been made for it alone.
  const copy = join(dirname(await realpath(programs.postgres)), 'pg_basebackup')
  return start(programs, settings, options, (directory, user) => {
    const from = ['-h', '127.0.0.1', '-p', String(of.port), '-U', 'postgres']
    const how = ['--checkpoint=fast', '--wal-method=stream', '--write-recovery-conf', '--no-sync']
    return run(copy, ['-D', directory, ...from, ...how], { cwd: directory, ...user, timeout: 60_000 })
  })
}

function installed(): PostgresBinaries {
  const programs = findPostgres()
  if (!programs) throw new Error('postgresql is not installed')
  return programs
}

/** @param create makes the files of a server in a folder that is empty */
async function start(
  programs: PostgresBinaries,
  defaults: Readonly<Record<string, string>>,
  { settings, startTimeout }: PostgresOptions,
  create: (directory: string, user: User | undefined) => Promise<unknown>,
): Promise<Server> {
  const user = await serverUser()
  return onFreePort(async (port) => {
    const directory = await createDirectory(user, create)
    const given = Object.entries({ ...defaults, ...settings, port: String(port) })
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

async function createDirectory(
  user: User | undefined,
  create: (directory: string, user: User | undefined) => Promise<unknown>,
): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'loadstone-postgres-'))
  try {
    if (user) await chown(directory, user.uid, user.gid)
    await create(directory, user)
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
