import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

export interface Job {
  readonly url: string
  readonly slugs: readonly string[]
  readonly connections: number
  readonly seconds: number
}

export interface Shots {
  readonly requests: number
  readonly perSecond: number
  readonly p50Ms: number
  readonly p99Ms: number
  readonly maxMs: number
  /** Requests without an answer within 5 s, or with another one than data alone. */
  readonly errors: number
}

const SHOOTER = fileURLToPath(new URL('shooter.ts', import.meta.url))

/** Puts load on a server for so long, from a process of its own. */
export async function shoot(job: Job): Promise<Shots> {
  const { stdout } = await promisify(execFile)(process.execPath, [
    '--import',
    'tsx',
    SHOOTER,
    JSON.stringify(job),
  ])
  return JSON.parse(stdout) as Shots
}
