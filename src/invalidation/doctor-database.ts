import { sql } from 'kysely'
import { messageOf } from '../errors.ts'
import type { Database } from '../sources/database.ts'
import { clockFinding, type Finding, fail, median, ok, readableMs, warn } from './findings.ts'
import { SCHEMA } from './outbox.ts'
import { INTERNAL, outboxExists } from './outbox-rows.ts'
import { quoteText } from './sql-text.ts'

const OLDEST_POSTGRES = 14
const TRIPS = 7

/** Beyond them, something is worth a word. */
export interface DatabaseLimits {
  /** Of a round trip, ms: a miss makes one, and a write outside of transactions four. */
  readonly tripMs: number
  /** Age of an outbox row, ms. The relay takes a fraction of a second. */
  readonly backlogMs: number
  /** Age of an open transaction, ms. */
  readonly transactionMs: number
  /** Dead rows of the outbox: many times those it is vacuumed for, see outbox.ts. */
  readonly dead: number
}

export const DATABASE_LIMITS: DatabaseLimits = Object.freeze({
  tripMs: 20,
  backlogMs: 5000,
  transactionMs: 5 * 60_000,
  dead: 100_000,
})

/** Looks at the server and the outbox. Never rejects: that it cannot be reached is a finding. */
export async function diagnoseDatabase(
  db: Database,
  namespace: string,
  invalidation: 'triggers' | 'manual',
  limits: DatabaseLimits = DATABASE_LIMITS,
): Promise<Finding[]> {
  const findings: Finding[] = []
  const ofOutbox = [() => transactions(db, limits), () => outbox(db, namespace, limits)]
  const checks = [() => server(db, limits), ...(invalidation === 'triggers' ? ofOutbox : [])]
  for (const check of checks) {
    try {
      findings.push(...(await check()))
    } catch (error) {
      const finding = `${findings.length === 0 ? 'it cannot be asked' : 'a check failed'}: ${messageOf(error)}`
      findings.push(
        fail('postgres', finding, 'start it, or correct the address, credentials and rights of the db given'),
      )
      if (findings.length === 1) break
    }
  }
  return findings
}

interface ServerFacts {
  readonly version: string
  readonly versionNumber: number
  readonly inRecovery: boolean
  readonly replicationRole: string
  /** Databases and roles whose sessions begin with triggers off. */
  readonly triggersOff: readonly string[]
  /** ms since 1970. */
  readonly now: number
}

async function server(db: Database, limits: DatabaseLimits): Promise<Finding[]> {
  const tripsMs: number[] = []
  for (let i = 0; i < TRIPS; i++) {
    const began = performance.now()
    await sql`${sql.raw(INTERNAL)} select 1`.execute(db)
    tripsMs.push(performance.now() - began)
  }
  const sent = Date.now()
  const facts = await ask<ServerFacts>(
    db,
    `json_build_object(
      'version', current_setting('server_version'),
      'versionNumber', current_setting('server_version_num')::int,
      'inRecovery', pg_is_in_recovery(),
      'replicationRole', current_setting('session_replication_role'),
      'triggersOff', (
        select coalesce(json_agg(concat_ws(' in ', 'role ' || nullif(s.setrole, 0)::regrole, 'database ' || d.datname)), '[]')
        from pg_db_role_setting s left join pg_database d on d.oid = s.setdatabase
        where 'session_replication_role=replica' = any(s.setconfig)
          and (s.setdatabase = 0 or d.datname = current_database())
      ),
      'now', extract(epoch from clock_timestamp()) * 1000)`,
  )
  const aheadMs = facts.now - (sent + Date.now()) / 2
  const typical = median(tripsMs)
  return [
    ok('postgres', `Postgres ${facts.version} answers`),
    facts.versionNumber >= OLDEST_POSTGRES * 10_000
      ? ok('postgres', `its version is ${OLDEST_POSTGRES} or newer`)
      : fail(
          'postgres',
          `its version is older than ${OLDEST_POSTGRES}`,
          `upgrade to Postgres ${OLDEST_POSTGRES} or newer`,
        ),
    facts.inRecovery
      ? fail(
          'postgres',
          'it is a standby: what is loaded from it may be older than a write that was invalidated, and would stay',
          'connect db to the primary (target_session_attrs=read-write)',
        )
      : ok('postgres', 'it is the primary'),
    facts.replicationRole === 'replica'
      ? fail(
          'postgres',
          'session_replication_role is replica in our sessions: no trigger fires, no write is recorded',
          'take the setting away from the role, the database and the connection options',
        )
      : ok('postgres', `triggers fire (session_replication_role is ${facts.replicationRole})`),
    ...facts.triggersOff.map((who) =>
      warn(
        'postgres',
        `sessions of ${who} begin with session_replication_role = replica: what they write is not recorded`,
        'alter role or database ... reset session_replication_role; or clear the models after they wrote',
      ),
    ),
    typical <= limits.tripMs
      ? ok('postgres', `a round trip takes ${readableMs(typical)} (median)`)
      : warn(
          'postgres',
          `a round trip takes ${readableMs(typical)} (median): every miss and every commit waits for it`,
          'bring the application nearer to Postgres, or look at its load and at the pool',
        ),
    clockFinding('postgres', 'Postgres', aheadMs),
  ]
}

interface LongTransaction {
  /** Of a backend; null: a prepared transaction. */
  readonly pid: number | null
  readonly name: string
  readonly state: string
  readonly ageMs: number
}

/** Rows of the outbox live for milliseconds, but their space is free only when no open transaction could see them. */
async function transactions(db: Database, limits: DatabaseLimits): Promise<Finding[]> {
  const long = await ask<readonly LongTransaction[]>(
    db,
    `(select coalesce(json_agg(t order by "ageMs" desc), '[]') from (
      select pid, coalesce(nullif(application_name, ''), usename::text, '?') as name, state,
        extract(epoch from clock_timestamp() - xact_start) * 1000 as "ageMs"
      from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
        and (backend_xmin is not null or backend_xid is not null)
      union all
      select null, gid, 'prepared', extract(epoch from clock_timestamp() - prepared) * 1000
      from pg_prepared_xacts where database = current_database()
    ) t where "ageMs" > ${limits.transactionMs})`,
  )
  if (long.length === 0) return [ok('outbox', 'no long transaction holds back its vacuum')]
  return long.map(({ pid, name, state, ageMs }) =>
    warn(
      'outbox',
      `a transaction of ${JSON.stringify(name)} (${pid === null ? state : `${state}, pid ${pid}`}) is open for ${readableMs(ageMs)}: deleted rows of the outbox pile up behind it, and commits get slower`,
      pid === null
        ? `commit prepared or rollback prepared ${quoteText(name)}`
        : `end it; select pg_terminate_backend(${pid}) if it is forgotten; set idle_in_transaction_session_timeout`,
    ),
  )
}

interface OutboxFacts {
  readonly rows: number
  readonly oldestMs: number | null
  readonly dead: number
  readonly bytes: number
}

async function outbox(db: Database, namespace: string, limits: DatabaseLimits): Promise<Finding[]> {
  if (!(await outboxExists((query) => db.executeQuery(query)))) return []
  const facts = await ask<OutboxFacts>(
    db,
    `(select json_build_object(
      'rows', count(*),
      'oldestMs', extract(epoch from clock_timestamp() - min(at)) * 1000,
      'dead', coalesce(pg_stat_get_dead_tuples('${SCHEMA}.outbox'::regclass), 0),
      'bytes', pg_total_relation_size('${SCHEMA}.outbox'::regclass)
    ) from ${SCHEMA}.outbox where namespace = `,
    namespace,
    ')',
  )
  const old = (facts.oldestMs ?? 0) > limits.backlogMs
  const size = `${(facts.bytes / 1024 / 1024).toFixed(1)} MiB`
  return [
    facts.rows === 0
      ? ok('outbox', 'it is empty: every write is applied')
      : old
        ? fail(
            'outbox',
            `${facts.rows} rows wait in it, the oldest for ${readableMs(facts.oldestMs ?? 0)}: what they invalidate is still served`,
            'see that a process runs whose cache has a relay (no relay: false) and reaches Redis: its stats().relayErrors and relayLagMs tell',
          )
        : ok('outbox', `${facts.rows} rows wait in it, none for longer than ${readableMs(limits.backlogMs)}`),
    facts.dead > limits.dead && facts.dead > facts.rows
      ? warn(
          'outbox',
          `it has ${facts.dead} dead rows (${size}): vacuum does not keep up`,
          `vacuum ${SCHEMA}.outbox; see that autovacuum is on, and that no long transaction holds it back`,
        )
      : ok('outbox', `it takes ${size}, with ${facts.dead} dead rows`),
  ]
}

/** One JSON text, so that nobody's type parsers have a say in it. */
async function ask<Facts>(db: Database, before: string, value?: string, after = ''): Promise<Facts> {
  const expression = value === undefined ? sql.raw(before) : sql`${sql.raw(before)}${value}${sql.raw(after)}`
  const { rows } = await sql<{
    facts: string
  }>`${sql.raw(INTERNAL)} select (${expression})::text as facts`.execute(db)
  return JSON.parse((rows[0] as { facts: string }).facts) as Facts
}
