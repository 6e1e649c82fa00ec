import { type KyselyPlugin, sql, type Transaction } from 'kysely'
import { messageOf } from '../errors.ts'
import type { Hop } from '../models/custom.ts'
import type { BoundModel, ModelDefinition } from '../models/model.ts'
import type { Shape, ShapeKind } from '../models/shape.ts'
import type { StoredRow } from '../models/stored-row.ts'
import { channels } from '../telemetry.ts'
import type { Database, Tables } from './database.ts'
import { KyselySource } from './kysely.ts'
import { Rest } from './rest.ts'
import type { KeyTexts, ResultRow, Source, Where } from './source.ts'

/** What is about to be loaded. */
export interface LoadedShape {
  /** The model's table. */
  readonly model: string
  readonly kind: ShapeKind
  /** In the order they were declared. */
  readonly fields: readonly string[]
  /** The name of the custom cache it is for; undefined for the model's own shapes. */
  readonly cache: string | undefined
}

/**
 * Why the primary answered in the place of the replica:
 *
 * - `behind`: the replica had not replayed what it had to within the wait.
 * - `unfit`: it is no standby, or none of this primary, or it does not show that it follows this primary's timeline.
 * - `failed`: it did not answer within the wait, or with an error.
 * - `resting`: it was not asked, for a moment, after one of the others.
 */
export type FallbackReason = 'behind' | 'unfit' | 'failed' | 'resting'

/** Statements for what was to be read from the replica, since the cache was made. */
export interface ReplicaCounts extends Readonly<Record<FallbackReason, number>> {
  /** Answered by the replica. */
  readonly answered: number
}

export const NO_REPLICA_COUNTS: ReplicaCounts = Object.freeze({
  answered: 0,
  behind: 0,
  unfit: 0,
  failed: 0,
  resting: 0,
})

export function sumOfReplicas(all: readonly ReplicaCounts[]): ReplicaCounts {
  const sum = { ...NO_REPLICA_COUNTS }
  for (const counts of all)
    for (const name of Object.keys(sum) as (keyof ReplicaCounts)[]) sum[name] += counts[name]
  return sum
}

/** What is published on `loadstone:replica`. */
export interface ReplicaMessage extends LoadedShape {
  readonly namespace: string
  readonly reason: Exclude<FallbackReason, 'resting'>
  /** Says more. */
  readonly error: Error
  /** What the replica's part in the load took before the primary was asked, ms. */
  readonly waitedMs: number
}

export interface ReplicaSettings {
  readonly db: Database
  /** How long the replica may take to show that it is not behind, ms. */
  readonly maxWaitMs: number
  /** Which shapes are read from it. */
  readonly uses: (shape: LoadedShape) => boolean
}

/**
 * Reads from a replica what is no older there than on the primary, and everything else from the primary.
 *
 * A load asks, after it was asked for and so after its lease was granted, how far the primary's WAL is; then begins a
 * transaction on the replica, sees that as much is replayed there, and only in the next statement reads the rows. In one
 * statement the position would be newer than the snapshot. Every commit that was visible on the primary when the load
 * was asked for is in what it reads, so that filling it is as right as filling what the primary has.
 *
 * What it reads may be newer than what the primary shows: a standby replays a commit that the primary's own sessions do
 * not see yet. Nobody notices but who reads both, so it never serves models that are strict.
 */
export class ReplicaSource implements Source {
  readonly #namespace: string
  readonly #primary: KyselySource
  readonly #plain: Database
  readonly #settings: ReplicaSettings
  readonly #rest: Rest
  readonly #counts = { ...NO_REPLICA_COUNTS }
  #position: Promise<WalPosition> | undefined

  constructor(namespace: string, primary: KyselySource, settings: ReplicaSettings) {
    this.#namespace = namespace
    this.#primary = primary
    this.#plain = primary.dbOf().withoutPlugins()
    this.#settings = settings
    this.#rest = new Rest(settings.maxWaitMs)
  }

  get counts(): ReplicaCounts {
    return { ...this.#counts }
  }

  /** The primary's: what an application's functions read is not ours to check. */
  dbOf(): Database {
    return this.#primary.dbOf()
  }

  rowsWhere(model: BoundModel, where: Where, limit: number): AsyncGenerator<readonly StoredRow[], void> {
    return this.#primary.rowsWhere(model, where, limit)
  }

  select(model: BoundModel, shape: Shape, keys: readonly KeyTexts[]): Promise<ResultRow[][]> {
    return this.#load(model, shape, (source) => source.select(model, shape, keys))
  }

  count(model: BoundModel, shape: Shape, keys: readonly KeyTexts[]): Promise<number[]> {
    return this.#load(model, shape, (source) => source.count(model, shape, keys))
  }

  related(
    model: BoundModel,
    shape: Shape,
    path: readonly Hop[],
    last: ModelDefinition,
    keys: readonly KeyTexts[],
  ): Promise<ResultRow[][]> {
    return this.#load(model, shape, (source) => source.related(model, shape, path, last, keys))
  }

  async #load<Result>(
    { definition }: BoundModel,
    { kind, fields, custom }: Shape,
    load: (source: Source) => Promise<Result>,
  ): Promise<Result> {
    const shape = { model: definition.name, kind, fields, cache: custom?.name }
    if (definition.consistency === 'strict' || !this.#settings.uses(shape)) return load(this.#primary)
    if (!this.#rest.mayTry()) {
      this.#counts.resting++
      return load(this.#primary)
    }
    const began = performance.now()
    try {
      const result = await this.#fromReplica(load)
      this.#counts.answered++
      return result
    } catch (cause) {
      const error = cause instanceof Error ? cause : new Error(messageOf(cause))
      const reason = error instanceof NotReadyError ? error.reason : 'failed'
      this.#counts[reason]++
      if (channels.replica.hasSubscribers) {
        const waitedMs = performance.now() - began
        const message: ReplicaMessage = { ...shape, namespace: this.#namespace, reason, error, waitedMs }
        channels.replica.publish(message)
      }
      return load(this.#primary)
    }
  }

  /** Rejects NotReadyError, or what the replica or the primary says. */
  async #fromReplica<Result>(load: (source: Source) => Promise<Result>): Promise<Result> {
    const { db, maxWaitMs } = this.#settings
    let isReady = false
    try {
      const position = await this.#currentPosition()
      return await new Promise<Result>((resolve, reject) => {
        const wait = new Wait(maxWaitMs, reject)
        // A transaction, as a pooler may give each statement outside of one to another server. At this level each
        // statement has a snapshot of its own.
        db.withoutPlugins()
          .transaction()
          .setIsolationLevel('read committed')
          .setAccessMode('read only')
          .execute(async (trx) => {
            await untilReplayed(trx, position, wait)
            isReady = true
            this.#rest.succeeded()
            // Rows are rows, so nobody has to wait for how COMMIT is answered.
            resolve(
              await load(new KyselySource(withPlugins(trx, this.#primary.dbOf().getExecutor().plugins))),
            )
          })
          .catch(reject)
          .finally(() => wait.end())
      })
    } catch (error) {
      // A load that fails says nothing of the replica: its key may be at fault, or a conflict with recovery.
      if (!isReady) this.#rest.failed()
      throw error
    }
  }

  /** Where the primary is at some moment after the call. The loads of one turn of the event loop share one statement. */
  #currentPosition(): Promise<WalPosition> {
    this.#position ??= new Promise((resolve) => setImmediate(resolve)).then(() => {
      // Who comes from now on was asked to load later than what this statement may see.
      this.#position = undefined
      return readPosition(this.#plain)
    })
    return this.#position
  }
}

/** How far the WAL of a primary is. */
export interface WalPosition {
  readonly lsn: string
  readonly timeline: string
  /** Tells a Postgres, standbys included, from others. */
  readonly system: string
}

/**
 * The end of the last record of the WAL. That of the last one inserted, and not flushed: with `synchronous_commit = off`
 * commits are visible before they are flushed. Rejects on a server that is in recovery.
 *
 * Where a record ends with its page, the position is behind the header of the next one, while a standby says that it is
 * at the page's start: it would be behind for as long as nothing is written, as after a switch of segments. So the header
 * (40 bytes on the first page of a segment, else 24) is taken off.
 */
export async function readPosition(db: Database): Promise<WalPosition> {
  const { rows } = await sql<WalPosition>`
    select (lsn - case
        when mod(lsn - '0/0', pg_size_bytes(current_setting('wal_segment_size'))) = 40 then 40
        when mod(lsn - '0/0', current_setting('wal_block_size')::int) = 24 then 24
        else 0
      end)::text as lsn,
      ('x' || left(pg_walfile_name(lsn), 8))::bit(32)::int::text as timeline,
      (select system_identifier::text from pg_control_system()) as system
    from pg_current_wal_insert_lsn() lsn`.execute(db)
  return rows[0] as WalPosition
}

/** What a replica shows of itself. */
export type Fitness = 'ready' | 'behind' | keyof typeof UNFIT

/** Why a server will not become ready, in words. */
export const UNFIT = {
  'no standby': 'it is not in recovery: no standby, or promoted',
  'other system': 'it is a standby of another Postgres',
  'other timeline':
    "it does not show that it follows the primary's timeline: right after a failover that takes until its next restartpoint",
}

/**
 * Whether a server is a standby that has replayed the WAL up to a position.
 *
 * Positions of two timelines cannot be compared: a standby that was left behind by a failover may have more of the old
 * one than the new primary had. Its control file tells which it follows since the last restartpoint; the receiver
 * tells at once, to roles that may see it (`pg_read_all_stats`).
 */
export async function readFitness(db: Database, { lsn, timeline, system }: WalPosition): Promise<Fitness> {
  const { rows } = await sql<{ fitness: Fitness }>`
    select case
      when not pg_is_in_recovery() then 'no standby'
      when (select system_identifier::text from pg_control_system()) <> ${system} then 'other system'
      when not exists (
        select from pg_control_checkpoint() c, pg_control_recovery() r
        where ${timeline}::int in
          (c.timeline_id, r.min_recovery_end_timeline, (select received_tli from pg_stat_wal_receiver))
      ) then 'other timeline'
      when pg_last_wal_replay_lsn() >= ${lsn}::pg_lsn then 'ready'
      else 'behind'
    end as fitness`.execute(db)
  return (rows[0] as { fitness: Fitness }).fitness
}

/** The longest pause between two looks at a replica that is behind, ms. */
const LONGEST_PAUSE_MS = 8

/** Resolves when the server is ready. Rejects NotReadyError when it cannot become so, or the wait is over. */
async function untilReplayed(trx: Database, position: WalPosition, wait: Wait): Promise<void> {
  for (let pauseMs = 1; ; pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)) {
    wait.check()
    const fitness = await readFitness(trx, position)
    wait.check()
    if (fitness === 'ready') return wait.end()
    if (fitness !== 'behind') throw new NotReadyError('unfit', UNFIT[fitness])
    wait.isBehind = true
    await new Promise((resolve) => setTimeout(resolve, pauseMs))
  }
}

/** A wait for a replica, which ends in time whatever the replica does. */
class Wait {
  /** Whether the replica has said that it is. */
  isBehind = false
  #over: NotReadyError | undefined
  #ended = false
  readonly #timer: NodeJS.Timeout

  /** @param over called when the time is over, unless `end` was called before */
  constructor(ms: number, over: (error: NotReadyError) => void) {
    const leave = () => {
      if (this.#ended) return
      this.#over = this.isBehind
        ? new NotReadyError('behind', `it is behind, and did not catch up within ${ms} ms`)
        : new NotReadyError('failed', `it did not answer within ${ms} ms`)
      over(this.#over)
    }
    // After a long pause of the event loop timers run before sockets are read: let an answer that is here win.
    this.#timer = setTimeout(() => setImmediate(leave), ms)
  }

  end(): void {
    this.#ended = true
    clearTimeout(this.#timer)
  }

  /** @throws NotReadyError when the time is over */
  check(): void {
    if (this.#over) throw this.#over
  }
}

/** Of the primary, so that rows are the same wherever they come from. */
function withPlugins(db: Transaction<Tables>, plugins: readonly KyselyPlugin[]): Database {
  return plugins.reduce((query: Transaction<Tables>, plugin) => query.withPlugin(plugin), db)
}

/** The replica cannot serve a load. */
class NotReadyError extends Error {
  readonly reason: 'behind' | 'unfit' | 'failed'
  constructor(reason: NotReadyError['reason'], problem: string) {
    super(problem)
    this.reason = reason
  }
}
