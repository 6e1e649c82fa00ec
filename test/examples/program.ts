import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'

const root = fileURLToPath(new URL('../../', import.meta.url))

export interface Program {
  readonly child: ChildProcess
  /** Resolves to the first match in what it printed, as soon as there is one. */
  printed(pattern: RegExp): Promise<string>
  /** Resolves when it has ended. */
  ended: Promise<Ended>
}

export interface Ended {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

/** Runs a program of the repository as a user would, with nothing but `env` set of what it heeds. */
export function startProgram(path: string, env: Readonly<Record<string, string>>): Program {
  const { PATH, HOME } = process.env
  const child = spawn(process.execPath, ['--import', 'tsx', path], {
    cwd: root,
    env: { PATH, HOME, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  const output = { stdout: '', stderr: '' }
  const ended = once(child, 'close').then(([code]): Ended => ({ code, ...output }))
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => {
      output[name] += text
    })
  }
  const printed = async (pattern: RegExp): Promise<string> => {
    for (;;) {
      const [match] = pattern.exec(output.stdout) ?? []
      if (match !== undefined) return match
      const over = await Promise.race([once(child.stdout, 'data').then(() => undefined), ended])
      if (over)
        throw new Error(`it ended (${over.code}) and did not print ${pattern}: ${over.stdout}${over.stderr}`)
    }
  }
  return { child, printed, ended }
}
