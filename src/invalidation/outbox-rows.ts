import { CompiledQuery, sql } from 'kysely'
import type { OutboxRow } from '../models/touched.ts'
import type { Database } from '../sources/database.ts'
import type { Outcome, OwnRows } from './commit.ts'

/** Begins every statement of ours, so that the dialect does not take it for a statement of the application. */
export const INTERNAL = '/* loadstone */'

interface Result {
  readonly rows: readonly unknown[]
}

/** Runs a statement without parameters on the connection of a transaction. */
export type RunRaw = (query: CompiledQuery) => Promise<Result>

const PENDING = `json_agg(json_build_object(
  'namespace', o.namespace, 'xid', o.xid::text, 'id', o.id::text, 'model', o.model, 'touched', o.touched))::text`

/** Whether the outbox is there. Never fails, so it may be asked inside a transaction. */
export async function outboxExists(run: RunRaw): Promise<boolean> {
  const { rows } = await run(
    // Not `to_regclass`, which fails for a role without rights on the schema.
    CompiledQuery.raw(`${INTERNAL} select exists (
      select from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = 'loadstone' and c.relname = 'outbox')::text as found`),
  )
  return (rows[0] as { found: string }).found === 'true'
}

/**
 * Tells a run of a server from its next one, and from another server. A crash of one backend has the server begin
 * anew under the same start time, but with other processes of its own; every role may see their pids.
 */
const SERVER_RUN = `(select concat(pg_postmaster_start_time() at time zone 'UTC', ' ', min(pid))
  from pg_stat_get_activity(null) where datid is null and usesysid is null)`

/** Which run of the server a connection belongs to. It does not outlive it. */
export async function readServerRun(run: RunRaw): Promise<string> {
  const { rows } = await run(CompiledQuery.raw(`${INTERNAL} select ${SERVER_RUN} as run`))
  return (rows[0] as { run: string }).run
}

/** The outbox rows that the transaction on this connection has written so far. */
export async function readOwnRows(run: RunRaw): Promise<OwnRows> {
  const { rows } = await run(
    CompiledQuery.raw(`${INTERNAL} select pg_current_xact_id_if_assigned()::text as xid,
      (select ${PENDING} from loadstone.outbox o where o.xid = pg_current_xact_id_if_assigned()) as pending`),
  )
  const own = rows[0] as { xid: string | null; pending: string | null }
  return { xid: own.xid, rows: parseRows(own.pending) }
}

export interface Backlog {
  /** The age of the first committed row, ms; undefined when there is none. */
  readonly ageMs: number | undefined
  /** No row of the namespace has a smaller xid, and none ever will: all those transactions had ended. */
  readonly floor: string
}

/** @param floor an earlier {@link Backlog.floor} of this server, or '0' */
export async function readBacklog(db: Database, namespace: string, floor: string): Promise<Backlog> {
  const { rows } = await sql<{ floor: string; age: string | null }>`${sql.raw(INTERNAL)}
    select least(first.xid, pg_snapshot_xmin(pg_current_snapshot()))::text as floor,
      (extract(epoch from clock_timestamp() - first.at) * 1000)::text as age
    from (select) always left join (
      select xid, at from loadstone.outbox
      where namespace = ${namespace} and xid >= ${floor}::text::xid8 order by xid, id limit 1
    ) first on true`.execute(db)
  const { age, floor: next } = rows[0] as { floor: string; age: string | null }
  return { ageMs: age === null ? undefined : Math.max(0, Math.round(Number(age))), floor: next }
}

/**
 * Takes committed rows, oldest transactions first, for the rest of this transaction; none while another relay has
 * taken some.
 *
 * @param graceMs younger rows are left to the process that wrote them
 */
export async function takeRows(
  db: Database,
  namespace: string,
  limit: number,
  graceMs: number,
  floor: string,
): Promise<OutboxRow[]> {
  // The outbox has no statistics. Without the settings, Postgres takes it for small and sorts all of it each time.
  const alone = await sql<{ granted: boolean }>`${sql.raw(INTERNAL)}
    select pg_try_advisory_xact_lock(hashtextextended('loadstone relay ' || ${namespace}::text, 0)) as granted,
      set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true)`.execute(db)
  if (!alone.rows[0]?.granted) return []
  const { rows } = await sql<{ pending: string | null }>`${sql.raw(INTERNAL)}
    with o as (
      select * from loadstone.outbox
      where namespace = ${namespace} and xid >= ${floor}::text::xid8
        and at <= clock_timestamp() - ${graceMs}::float8 * interval '1 ms'
      order by xid, id limit ${limit} for update skip locked
    )
    select ${sql.raw(PENDING)} as pending from o`.execute(db)
  return parseRows(rows[0]?.pending ?? null)
}

/** Committed rows that nobody has applied and deleted yet, `limit` of them at most. Locks nothing. */
export async function waitingRows(db: Database, namespace: string, limit: number): Promise<OutboxRow[]> {
  const { rows } = await sql<{ pending: string | null }>`${sql.raw(INTERNAL)}
    with o as (select * from loadstone.outbox where namespace = ${namespace} limit ${limit})
    select ${sql.raw(PENDING)} as pending from o`.execute(db)
  return parseRows(rows[0]?.pending ?? null)
}

export async function deleteRows(db: Database, rows: readonly OutboxRow[]): Promise<void> {
  await sql`${sql.raw(INTERNAL)} delete from loadstone.outbox where (xid, id) in (
    select x::xid8, i::bigint
    from unnest(${rows.map(({ xid }) => xid)}::text[], ${rows.map(({ id }) => id)}::text[]) as t(x, i))`.execute(
    db,
  )
}

/**
 * What became of a transaction. A server that has crashed since gives the ids of transactions it lost to others, so
 * from its next run, or from the server that took over, 'committed' need not be about ours.
 */
export async function readOutcome(db: Database, xid: string, serverRun: string): Promise<Outcome> {
  const { rows } = await sql<{ status: Outcome | null }>`${sql.raw(INTERNAL)}
    select case when status <> 'committed' or ${sql.raw(SERVER_RUN)} = ${serverRun}::text then status end as status
    from pg_xact_status(${xid}::text::xid8) as status`.execute(db)
  return rows[0]?.status ?? 'unknown'
}

function parseRows(pending: string | null): OutboxRow[] {
  return pending === null ? [] : (JSON.parse(pending) as OutboxRow[])
}
