import type { Environment } from './contender.ts'
import type { ContenderName } from './contenders/index.ts'

/** What the parent asks of a contender's process, one at a time. */
export type Request =
  | { readonly op: 'prepare'; readonly contender: ContenderName; readonly environment: Environment }
  /** Runs turns and compares what they give. → true, or false when the contender cannot do this */
  | { readonly op: 'check'; readonly workload: string }
  /** Runs so many turns. */
  | { readonly op: 'run'; readonly workload: string; readonly turns: number }
  /** Runs turns until they have taken so much CPU time. → {@link Sample} */
  | { readonly op: 'sample'; readonly workload: string; readonly cpuMs: number; readonly profile?: string }
  | { readonly op: 'close' }

export type Reply = { readonly result: boolean | Sample | null } | { readonly error: string }

/** What a timed batch of turns took in the contender's process. */
export interface Sample {
  readonly turns: number
  /** Of all threads, µs: the garbage collector's as well. */
  readonly cpuMicros: number
  readonly wallMicros: number
}
