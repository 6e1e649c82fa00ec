import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { Contender, FromServer, ServerReport, ToServer } from './messages.ts'

const SERVER = fileURLToPath(new URL('server.ts', import.meta.url))

/** A contender's GraphQL server. */
export class ServerProcess {
  readonly url: string
  readonly slugs: readonly string[]
  readonly #child: ChildProcess

  private constructor(child: ChildProcess, url: string, slugs: readonly string[]) {
    this.#child = child
    this.url = url
    this.slugs = slugs
  }

  static async start(
    contender: Contender,
    servers: { readonly databaseUrl: string; readonly redisUrl: string },
  ): Promise<ServerProcess> {
    const child = fork(SERVER, [JSON.stringify({ contender, ...servers })], { execArgv: ['--import', 'tsx'] })
    const ended = once(child, 'exit').then(([code]) => {
      throw new Error(`the server of ${contender} ended with code ${code}`)
    })
    ended.catch(() => undefined)
    const [message] = (await Promise.race([once(child, 'message'), ended])) as [FromServer]
    if (message.kind !== 'ready') throw new Error('a server reports before it is ready')
    return new ServerProcess(child, message.url, message.slugs)
  }

  async report(): Promise<ServerReport> {
    this.#tell('report')
    const [message] = (await once(this.#child, 'message')) as [ServerReport & FromServer]
    return message
  }

  async stop(): Promise<void> {
    const ended = once(this.#child, 'exit')
    this.#tell('stop')
    const late = setTimeout(() => this.#child.kill('SIGKILL'), 10_000)
    await ended
    clearTimeout(late)
  }

  #tell(message: ToServer): void {
    this.#child.send(message)
  }
}
