import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

export interface WorkerOptions {
  readonly databaseUrl: string
  readonly redisUrl: string
  readonly namespace: string
}

/** So many requests at once, each of which looks up these ids. */
export interface ToWorker {
  readonly requests: number
  readonly ids: readonly number[]
}

export type FromWorker =
  | { readonly type: 'ready' }
  /** @param statements how many statements about the rows it has sent */
  | { readonly type: 'done'; readonly statements: number; readonly isRight: boolean }
  | { readonly type: 'failed'; readonly error: string }

export interface Worker {
  /** Resolves to how many statements it has sent. Rejects when an answer was wrong, or the process has ended. */
  ask(question: ToWorker): Promise<number>
  kill(): Promise<void>
}

const WORKER = fileURLToPath(new URL('./stampede-worker.ts', import.meta.url))

export async function startWorker(options: WorkerOptions): Promise<Worker> {
  const child = spawn(process.execPath, ['--import', 'tsx', WORKER, JSON.stringify(options)], {
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
  })
  let log = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (text: string) => {
      log = (log + text).slice(-4000)
    })
  }
  const exited = once(child, 'exit')
  exited.catch(() => {})
  const reply = () => Promise.race([replyOf(child), exited.then(() => failed(`it has ended: ${log}`))])
  const ready = await reply()
  if (ready.type !== 'ready') throw new Error(`a worker did not start: ${JSON.stringify(ready)}`)
  return {
    async ask(question) {
      const replied = reply()
      child.send(question)
      const answer = await replied
      if (answer.type !== 'done' || !answer.isRight) throw new Error(JSON.stringify(answer))
      return answer.statements
    },
    async kill() {
      child.kill('SIGKILL')
      await exited
    },
  }
}

async function replyOf(child: ChildProcess): Promise<FromWorker> {
  const [message] = await once(child, 'message')
  return message as FromWorker
}

function failed(error: string): FromWorker {
  return { type: 'failed', error }
}
