import type { Sabotage } from './sabotage.ts'
import type { Thing } from './things.ts'

export const NAMESPACE = 'torture'

/** What a worker is told when it is started. */
export interface WorkerSettings {
  /** Slot and incarnation: `w2.5` is the fifth process in the place of worker 2. */
  readonly who: string
  readonly seed: number
  readonly journal: string
  readonly redisPort: number
  readonly postgresPort: number
  readonly readers: number
  readonly writers: number
  readonly readPauseMs: number
  readonly writePauseMs: number
  readonly sabotage: Sabotage | undefined
}

export type ToWorker =
  | { readonly type: 'die'; readonly step: 'intend' | 'clear'; readonly after: boolean }
  /** Tell when the next transaction is about to be committed. → committing */
  | { readonly type: 'tell-commit' }
  /** End the loops. → stopped */
  | { readonly type: 'stop' }
  /** Look every key up. → looked */
  | { readonly type: 'look' }
  /** → verified */
  | { readonly type: 'verify' }
  /** Close everything, and exit. */
  | { readonly type: 'finish' }

export type FromWorker =
  | { readonly type: 'ready'; readonly at: number }
  | { readonly type: 'committing' }
  | { readonly type: 'stopped' }
  | { readonly type: 'looked'; readonly things: Readonly<Record<string, readonly Thing[]>> }
  | {
      readonly type: 'verified'
      readonly checked: number
      readonly stale: number
      readonly damaged: number
      readonly examples: readonly string[]
    }
