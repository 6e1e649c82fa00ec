import { setTimeout as pause } from 'node:timers/promises'
import { messageOf } from '../errors.ts'
import type { Database } from '../sources/database.ts'
import { type ReplicaSettings, readFitness, readPosition, UNFIT } from '../sources/replica.ts'
import { type Finding, ok, readableMs, warn } from './findings.ts'

/** How long a replica may take to catch up, ms, until that is all there is to say. */
const PATIENCE_MS = 3000
const PAUSE_MS = 5

const CURES: Record<keyof typeof UNFIT, string> = {
  'no standby': 'lead replica.db to a standby, or leave replica out',
  'other system': 'lead replica.db to a standby of the Postgres of db',
  'other timeline':
    'run CHECKPOINT on it, or grant pg_read_all_stats to the role of replica.db; if that does not help, it follows another server: make it anew',
}

/** Looks at one connection to the replica. Never rejects: that it cannot be reached is a finding, and harms nobody. */
export async function diagnoseReplica(
  primary: Database,
  { db, maxWaitMs }: ReplicaSettings,
): Promise<Finding[]> {
  const replica = db.withoutPlugins()
  try {
    const position = await readPosition(primary)
    const began = performance.now()
    for (;;) {
      const fitness = await readFitness(replica, position)
      const tookMs = performance.now() - began
      if (fitness === 'ready') return [lag(tookMs, maxWaitMs)]
      if (fitness !== 'behind') return [warn('replica', `it is not read: ${UNFIT[fitness]}`, CURES[fitness])]
      if (tookMs > PATIENCE_MS) {
        return [
          warn(
            'replica',
            `it is behind by more than ${readableMs(PATIENCE_MS)}: the primary answers`,
            'see pg_stat_replication on the primary, and whether the replay is paused or delayed on the replica',
          ),
        ]
      }
      await pause(PAUSE_MS)
    }
  } catch (error) {
    const cure = 'start it, or correct the address, credentials and rights of replica.db'
    return [warn('replica', `it cannot be asked: ${messageOf(error)}`, cure)]
  }
}

function lag(tookMs: number, maxWaitMs: number): Finding {
  const finding = `it had what the primary had after ${readableMs(tookMs)}`
  if (tookMs <= maxWaitMs) return ok('replica', finding)
  return warn(
    'replica',
    `${finding}, and loads wait ${readableMs(maxWaitMs)}: the primary answers many of them`,
    'bring the replica nearer, or raise replica.maxWait; stats().replica counts how often it answers',
  )
}
