import { parseArgs } from 'node:util'
import { WORKLOADS, type Workload } from './workloads.ts'

export interface Options {
  readonly workloads: readonly Workload[]
  readonly rounds: number
  /** CPU time of one sample. */
  readonly sampleMs: number
  /** Another checkout, whose src is to be compared. */
  readonly compare: string | undefined
  /** Where CPU profiles go. */
  readonly profile: string | undefined
  /** Whether docs/benchmarks.md is written: by whole runs only. */
  readonly writeDocs: boolean
}

export const USAGE = `npm run bench -- [options]
  --quick              a smoke run of a few seconds
  --only <names>       only these workloads: ${WORKLOADS.map(({ name }) => name).join(', ')}
  --rounds <n>         how often each contender is sampled; default 7
  --ms <n>             CPU time of a sample; default 250
  --compare <folder>   adds the src of another checkout, as "other"
  --profile <folder>   writes a CPU profile of every contender and workload`

/** @throws TypeError for what is not in {@link USAGE} */
export function parseOptions(args: readonly string[]): Options {
  const { values } = parseArgs({
    args: [...args],
    options: {
      quick: { type: 'boolean', default: false },
      only: { type: 'string' },
      rounds: { type: 'string' },
      ms: { type: 'string' },
      compare: { type: 'string' },
      profile: { type: 'string' },
    },
  })
  const { quick, only, rounds, ms, compare, profile } = values
  return {
    workloads: only === undefined ? WORKLOADS : only.split(',').map(workloadOf),
    rounds: positive('--rounds', rounds ?? (quick ? '1' : '7')),
    sampleMs: positive('--ms', ms ?? (quick ? '40' : '250')),
    compare,
    profile,
    writeDocs: !quick && [only, rounds, ms, compare, profile].every((value) => value === undefined),
  }
}

function workloadOf(name: string): Workload {
  const workload = WORKLOADS.find((each) => each.name === name)
  if (workload) return workload
  throw new TypeError(
    `--only: no workload is called '${name}'; there are ${WORKLOADS.map((each) => each.name).join(', ')}`,
  )
}

function positive(option: string, text: string): number {
  const value = Number(text)
  if (!Number.isSafeInteger(value) || value < 1)
    throw new TypeError(`${option} must be a whole number of at least 1, got '${text}'`)
  return value
}
