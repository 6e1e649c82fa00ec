import { mkdtemp } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { findRedis } from './find-binary.ts'
import { onFreePort } from './ports.ts'
import { type Server, startServer } from './server.ts'

export interface RedisOptions {
  /** Default: `redis-server`. Valkey does as well. */
  program?: string | undefined
  /** Further settings, as on the command line: `['--maxmemory', '10mb']`. They win over ours. */
  args?: readonly string[]
  /** Default: a free one. */
  port?: number
  /** How long it may take to answer, ms. Default 15_000. */
  startTimeout?: number
}

/** Starts a Redis on 127.0.0.1 that keeps nothing on disk. */
export async function startRedis(options: RedisOptions = {}): Promise<Server> {
  const program = options.program ?? findRedis()
  if (!program) throw new Error('redis-server is not installed')
  return options.port
    ? start(program, options.port, options)
    : onFreePort((port) => start(program, port, options))
}

async function start(
  program: string,
  port: number,
  { args = [], startTimeout }: RedisOptions,
): Promise<Server> {
  const directory = await mkdtemp(join(tmpdir(), 'loadstone-redis-'))
  const network = ['--bind', '127.0.0.1', '--port', String(port)]
  const noPersistence = ['--save', '', '--appendonly', 'no']
  return startServer({
    url: `redis://127.0.0.1:${port}`,
    port,
    program,
    args: [...network, '--dir', directory, ...noPersistence, ...args],
    directory,
    stopSignal: 'SIGTERM',
    killSignal: 'SIGKILL',
    startTimeout,
    answers: (pid) => answersPing(port, pid),
  })
}

/** Asks for the process id too: were the port taken by another Redis, PING alone would be answered by that one. */
async function answersPing(port: number, pid: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1').setEncoding('utf8').setTimeout(1_000)
  socket.on('timeout', () => socket.destroy())
  try {
    socket.write('PING\r\nINFO server\r\nQUIT\r\n')
    let reply = ''
    for await (const chunk of socket) reply += chunk
    return reply.startsWith('+PONG') && reply.includes(`process_id:${pid}\r\n`)
  } catch {
    return false // not listening yet
  }
}
