import type { Sample } from './messages.ts'
import type { ServerCounts } from './servers.ts'
import type { Workload } from './workloads.ts'

/** What one contender's turns of one workload came to. */
export interface Cell {
  /** In the order of the rounds. */
  readonly samples: Sample[]
  /** Of one turn. */
  readonly counts: ServerCounts
}

/** Cells by workload, then by contender. A contender that cannot do a workload has none. */
export type Results = ReadonlyMap<Workload, ReadonlyMap<string, Cell>>

/** Medians over the rounds. */
export interface Summary {
  readonly cpuNsPerLookup: number
  readonly wallNsPerTurn: number
  /** Client CPU, divided by that of `baseline` in the same round. Undefined: the baseline cannot do this. */
  readonly ratio: number | undefined
  /** The quartiles of that ratio. */
  readonly spread: readonly [low: number, high: number] | undefined
}

export function summarize(
  results: Results,
  workload: Workload,
  contender: string,
  baseline: string,
): Summary | undefined {
  const cell = results.get(workload)?.get(contender)
  if (!cell) return undefined
  const cpu = cell.samples.map((sample) => cpuNsPerLookup(workload, sample))
  const base = results.get(workload)?.get(baseline)
  const ratios = base?.samples.map(
    (sample, round) => (cpu[round] as number) / cpuNsPerLookup(workload, sample),
  )
  return {
    cpuNsPerLookup: quantile(cpu, 0.5),
    wallNsPerTurn: quantile(
      cell.samples.map(({ wallMicros, turns }) => (wallMicros * 1_000) / turns),
      0.5,
    ),
    ratio: ratios && quantile(ratios, 0.5),
    spread: ratios && [quantile(ratios, 0.25), quantile(ratios, 0.75)],
  }
}

export function subtractCounts(after: ServerCounts, before: ServerCounts, turns: number): ServerCounts {
  const commands = [...after.commands]
    .map(([name, count]) => [name, (count - (before.commands.get(name) ?? 0)) / turns] as const)
    .filter(([, count]) => count > 0)
  return { commands: new Map(commands), statements: (after.statements - before.statements) / turns }
}

function cpuNsPerLookup({ lookups }: Workload, { cpuMicros, turns }: Sample): number {
  return (cpuMicros * 1_000) / (turns * lookups)
}

function quantile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  const at = (sorted.length - 1) * part
  const low = sorted[Math.floor(at)] as number
  return low + ((sorted[Math.ceil(at)] as number) - low) * (at % 1)
}
