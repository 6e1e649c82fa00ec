import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { rm } from 'node:fs/promises'
import { basename } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** A server of our own on 127.0.0.1. It never outlives this process. */
export interface Server {
  readonly url: string
  readonly port: number
  /** The process now running; another one after `restart`. */
  readonly pid: number
  /** Shuts down in order and removes the server's files. */
  stop(): Promise<void>
  /** Crashes it, as a lost machine would. `restart` brings it back on the same port. */
  kill(): Promise<void>
  /** Ends it in order when it is still running, then starts it on the same port with the same files. */
  restart(): Promise<void>
  /** Freezes it: connections stay open, nothing answers. Postgres: only new connections get no answer. */
  pause(): void
  resume(): void
}

export interface ServerOptions {
  url: string
  port: number
  program: string
  args: readonly string[]
  /** The server's own folder: its working directory, removed by `stop`. */
  directory: string
  /** Who runs it. Default: the user of this process. */
  user?: { uid: number; gid: number } | undefined
  stopSignal: NodeJS.Signals
  killSignal: NodeJS.Signals
  /** How long it may take to answer, ms. Default 15_000. */
  startTimeout?: number | undefined
  /** Whether process `pid` answers by now. Must settle by itself within about a second. */
  answers(pid: number): Promise<boolean>
}

interface Running {
  child: ChildProcess & { pid: number }
  log(): string
  exited: Promise<unknown>
}

export async function startServer(options: ServerOptions): Promise<Server> {
  const { url, port, directory, stopSignal, killSignal } = options
  const removeFiles = () => rm(directory, { recursive: true, force: true })
  let running = await launch(options).catch(async (error) => {
    await removeFiles()
    throw error
  })

  return {
    url,
    port,
    get pid() {
      return running.child.pid
    },
    async stop() {
      await end(running, stopSignal)
      await removeFiles()
    },
    kill: () => end(running, killSignal),
    async restart() {
      await end(running, stopSignal)
      running = await launch(options)
    },
    pause: () => void running.child.kill('SIGSTOP'),
    resume: () => void running.child.kill('SIGCONT'),
  }
}

async function launch(options: ServerOptions): Promise<Running> {
  const { program, startTimeout = 15_000 } = options
  const name = basename(program)
  const running = await spawnGuarded(options)
  const deadline = Date.now() + startTimeout
  while (!(await options.answers(running.child.pid))) {
    if (hasExited(running)) throw new Error(`${name} ended before it answered:\n${running.log()}`)
    if (Date.now() > deadline) {
      await end(running, 'SIGKILL')
      throw new Error(`${name} did not answer within ${startTimeout} ms:\n${running.log()}`)
    }
    await sleep(20)
  }
  return running
}

async function spawnGuarded({ program, args, directory, user, killSignal }: ServerOptions): Promise<Running> {
  // Detached: Ctrl-C in a terminal goes to the test runner alone, which then stops its servers in order.
  const child = spawn(program, args, {
    cwd: directory,
    ...user,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let log = ''
  const keepTail = (chunk: string) => {
    log = (log + chunk).slice(-8_000)
  }
  child.stdout.setEncoding('utf8').on('data', keepTail)
  child.stderr.setEncoding('utf8').on('data', keepTail)
  await once(child, 'spawn')
  const pid = child.pid as number

  const guard = spawnGuard(pid, killSignal, directory)
  const exited = once(child, 'exit').then(() => guard.kill('SIGKILL'))
  return { child: Object.assign(child, { pid }), log: () => log, exited }
}

/**
 * A shell that waits until its standard input ends. That happens when this process dies, by whatever means, SIGKILL
 * included; then the shell ends the server and removes its files.
 */
function spawnGuard(pid: number, signal: NodeJS.Signals, directory: string): ChildProcess {
  const script = `
    read -r _
    kill -s "$2" "$1" && kill -s CONT "$1"
    tries=0
    while kill -0 "$1" 2>/dev/null && [ $tries -lt 50 ]; do tries=$((tries + 1)); sleep 0.1; done
    rm -rf "$3"`
  const args = ['-c', script, 'guard', String(pid), signal.replace('SIG', ''), directory]
  return spawn('sh', args, { detached: true, stdio: ['pipe', 'ignore', 'ignore'] })
}

/** Sends `signal` and waits until the process is gone. One that has not left after 10 s is killed. */
async function end(running: Running, signal: NodeJS.Signals): Promise<void> {
  if (!hasExited(running)) {
    running.child.kill(signal)
    running.child.kill('SIGCONT') // a paused process cannot handle the signal
    const kill = setTimeout(() => running.child.kill('SIGKILL'), 10_000)
    await running.exited
    clearTimeout(kill)
  }
}

function hasExited({ child }: Running): boolean {
  return child.exitCode !== null || child.signalCode !== null
}
