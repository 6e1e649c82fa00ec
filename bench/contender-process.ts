import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import type { Environment } from './contender.ts'
import type { ContenderName } from './contenders/index.ts'
import type { Reply, Request, Sample } from './messages.ts'

/** A contender in a process of its own, so that none warms or slows the code and the heap of another. */
export class ContenderProcess {
  readonly label: string
  readonly #child: ChildProcess

  private constructor(label: string, child: ChildProcess) {
    this.label = label
    this.#child = child
  }

  /** @param script the compiled child.js */
  static async start(
    label: string,
    script: string,
    contender: ContenderName,
    environment: Environment,
  ): Promise<ContenderProcess> {
    const child = fork(script, { execArgv: [], env: { ...process.env, NODE_ENV: 'production' } })
    const started = new ContenderProcess(label, child)
    await started.#ask({ op: 'prepare', contender, environment })
    return started
  }

  /** Whether the contender can do this, and does it right. */
  check(workload: string): Promise<boolean> {
    return this.#ask({ op: 'check', workload }) as Promise<boolean>
  }

  async run(workload: string, turns: number): Promise<void> {
    await this.#ask({ op: 'run', workload, turns })
  }

  sample(workload: string, cpuMs: number, profile?: string): Promise<Sample> {
    const request = { op: 'sample', workload, cpuMs } as const
    return this.#ask(profile === undefined ? request : { ...request, profile }) as Promise<Sample>
  }

  async close(): Promise<void> {
    if (this.#child.exitCode !== null || !this.#child.connected) return
    const exit = once(this.#child, 'exit')
    const late = setTimeout(() => this.#child.kill('SIGKILL'), 5_000)
    this.#child.send({ op: 'close' } satisfies Request)
    await exit
    clearTimeout(late)
  }

  #ask(request: Request): Promise<boolean | Sample | null> {
    const child = this.#child
    return new Promise((resolve, reject) => {
      const settle = () => {
        child.off('message', onMessage)
        child.off('exit', onExit)
      }
      const onMessage = (reply: Reply) => {
        settle()
        if ('error' in reply) reject(new Error(`${this.label}: ${reply.error}`))
        else resolve(reply.result)
      }
      const onExit = (code: number | null) => {
        settle()
        reject(new Error(`${this.label}: its process ended with ${code}`))
      }
      child.on('message', onMessage)
      child.on('exit', onExit)
      child.send(request)
    })
  }
}
