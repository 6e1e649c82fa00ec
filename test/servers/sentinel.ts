import { mkdtemp, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { findRedis } from './find-binary.ts'
import { onFreePort } from './ports.ts'
import { startRedis } from './redis.ts'
import { type Server, startServer } from './server.ts'

/** A master and a replica, and three Sentinels that watch over them, on 127.0.0.1. */
export interface TestSentinel {
  readonly master: Server
  readonly replica: Server
  /** As an ioredis `Redis` takes them. */
  readonly client: {
    readonly sentinels: { readonly host: string; readonly port: number }[]
    readonly name: string
  }
  stop(): Promise<void>
}

const NAME = 'app'
const WATCHING_MS = 20_000
/** After how long without an answer a server counts as lost, ms. */
const DOWN_AFTER_MS = 500

/** Starts them, and waits until each Sentinel knows of all the others. */
export async function startSentinel(args: readonly string[] = []): Promise<TestSentinel> {
  const servers: Server[] = []
  const keep = async (starting: Promise<Server>) => {
    const server = await starting
    servers.push(server)
    return server
  }
  const stop = async () => {
    await Promise.all(servers.map((server) => server.stop()))
  }
  try {
    const settings = ['--repl-diskless-sync-delay', '0', ...args]
    const master = await keep(startRedis({ args: settings }))
    const replica = await keep(
      startRedis({ args: [...settings, '--replicaof', '127.0.0.1', String(master.port)] }),
    )
    const sentinels = await Promise.all([1, 2, 3].map(() => keep(startOne(master.port))))
    await Promise.all(sentinels.map(({ url }) => untilWatching(url)))
    return {
      master,
      replica,
      client: { sentinels: sentinels.map(({ port }) => ({ host: '127.0.0.1', port })), name: NAME },
      stop,
    }
  } catch (error) {
    await stop()
    throw error
  }
}

/** A Sentinel keeps its state in its configuration, so that is a file. */
async function startOne(masterPort: number): Promise<Server> {
  const program = findRedis()
  if (!program) throw new Error('redis-server is not installed')
  return onFreePort(async (port) => {
    const directory = await mkdtemp(join(tmpdir(), 'loadstone-sentinel-'))
    const file = join(directory, 'sentinel.conf')
    await writeFile(
      file,
      `port ${port}
bind 127.0.0.1
dir ${directory}
sentinel monitor ${NAME} 127.0.0.1 ${masterPort} 2
sentinel down-after-milliseconds ${NAME} ${DOWN_AFTER_MS}
sentinel failover-timeout ${NAME} 3000
`,
    )
    return startServer({
      url: `redis://127.0.0.1:${port}`,
      port,
      program,
      args: [file, '--sentinel'],
      directory,
      stopSignal: 'SIGTERM',
      killSignal: 'SIGKILL',
      answers: (pid) => answersInfo(port, pid),
    })
  })
}

/** A Sentinel has no QUIT, with which others are asked to end the answer. */
async function answersInfo(port: number, pid: number): Promise<boolean> {
  const redis = new Redis({
    host: '127.0.0.1',
    port,
    lazyConnect: true,
    connectTimeout: 1000,
    commandTimeout: 1000,
    retryStrategy: () => null,
  })
  redis.on('error', () => {}) // not listening yet
  try {
    await redis.connect()
    return (await redis.info('server')).includes(`process_id:${pid}\r\n`)
  } catch {
    return false
  } finally {
    redis.disconnect()
  }
}

async function untilWatching(url: string): Promise<void> {
  const redis = new Redis(url)
  const deadline = Date.now() + WATCHING_MS
  try {
    for (;;) {
      const told = (await redis.call('SENTINEL', 'MASTER', NAME)) as string[]
      const value = (name: string) => told[told.indexOf(name) + 1]
      if (value('num-slaves') === '1' && value('num-other-sentinels') === '2') return
      if (Date.now() > deadline) throw new Error(`the Sentinels were not ready within ${WATCHING_MS} ms`)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  } finally {
    redis.disconnect()
  }
}
