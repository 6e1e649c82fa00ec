import { sql } from 'kysely'
import { InstallError, messageOf } from '../errors.ts'
import type { Database } from '../sources/database.ts'
import { type InstallState, inspectInstall, type ModelState } from './inspect.ts'
import { inLockOrder, installSql, recordingOf, uninstallSql, uninstallStatements } from './install-sql.ts'
import { CREATE_SHARED, INSTALL_VERSION, REQUIRE_INSERT, SCHEMA, TAKE_INSTALL_LOCK } from './outbox.ts'
import { INTERNAL } from './outbox-rows.ts'
import { type InstallPlan, type ModelPlan, merge } from './recording.ts'
import { quoteName, quoteTable } from './sql-text.ts'
import {
  EVENTS,
  forgetStatement,
  functionName,
  functionStatements,
  parseFunctionComment,
  triggerName,
  triggersStatement,
} from './triggers.ts'

export interface InstallOptions {
  /**
   * How long to wait for a table that is being written, ms. Default 5000. While a trigger waits for a long transaction,
   * all later writers of the table wait behind it. Not used inside a transaction of the caller.
   */
  readonly lockTimeoutMs?: number
  /**
   * Record no more than planned. Default false: what an earlier installation records besides stays, as processes of
   * older code may still look it up.
   */
  readonly exact?: boolean
}

/**
 * Installs what of a plan is missing, in one transaction, or in the caller's when `db` is one. Locks only tables that get
 * a trigger. Takes turns with other processes that install at the same time.
 *
 * Rejects InstallError: the database does not allow it (the message has the SQL for somebody who may), a table cannot
 * have the triggers, a newer version is installed, or a table stays locked (transient).
 *
 * @returns a line for everything that was changed, none when all was there
 */
export async function install(
  db: Database,
  plan: InstallPlan,
  { lockTimeoutMs = 5000, exact = false }: InstallOptions = {},
): Promise<string[]> {
  let goal = plan
  try {
    return await inTransaction(db, async (trx) => {
      await execute(trx, [TAKE_INSTALL_LOCK])
      if (!db.isTransaction) await execute(trx, [`set local lock_timeout = ${Math.round(lockTimeoutMs)}`])
      const before = await inspectInstall(trx, plan)
      if (!exact)
        goal = {
          ...plan,
          models: plan.models.map((model, i) => grown(plan, model, before.models[i] as ModelState)),
        }
      const statements = missingStatements(goal, before, exact)
      if (statements.length === 0) return []
      await execute(trx, statements)
      return changes(goal, before, await inspectInstall(trx, goal))
    })
  } catch (error) {
    throw installError(error, 'install', () => installSql(goal))
  }
}

/**
 * Removes what belongs to a namespace, and the shared tables with the last one. Caches of the namespace must not be used
 * any more: nobody tells them of writes.
 *
 * Rejects InstallError.
 *
 * @returns a line for everything that was dropped
 */
export async function uninstall(
  db: Database,
  namespace: string,
  { lockTimeoutMs = 5000 }: Pick<InstallOptions, 'lockTimeoutMs'> = {},
): Promise<string[]> {
  try {
    return await inTransaction(db, async (trx) => {
      await execute(trx, [TAKE_INSTALL_LOCK])
      if (!db.isTransaction) await execute(trx, [`set local lock_timeout = ${Math.round(lockTimeoutMs)}`])
      const before = await listInstalled(trx, namespace)
      await execute(trx, uninstallStatements(namespace))
      const after = await listInstalled(trx, namespace)
      return before.filter((object) => !after.includes(object)).map((object) => `dropped ${object}`)
    })
  } catch (error) {
    throw installError(error, 'uninstall', () => uninstallSql(namespace))
  }
}

function inTransaction<Result>(db: Database, run: (trx: Database) => Promise<Result>): Promise<Result> {
  const plain = db.withoutPlugins()
  if (plain.isTransaction) return run(plain)
  // With an older snapshot, the wait for another installation would end without showing what it did.
  return plain.transaction().setIsolationLevel('read committed').execute(run)
}

/** One by one: PGlite takes no two statements at a time. */
async function execute(db: Database, statements: readonly string[]): Promise<void> {
  for (const statement of statements) await sql.raw(`${INTERNAL} ${statement}`).execute(db)
}

/** The model as planned, and what is recorded of it besides. */
function grown(plan: InstallPlan, model: ModelPlan, { recorded, columns }: ModelState): ModelPlan {
  if (!recorded) return model
  const { columns: merged, shapes, dependents } = merge(recordingOf(plan, model), recorded, columns)
  return { ...model, columns: merged, shapes, dependents }
}

/** @throws InstallError when it cannot be done */
function missingStatements(plan: InstallPlan, before: InstallState, exact: boolean): string[] {
  const states = new Map(before.models.map((state) => [state.model, state]))
  const statements = inLockOrder(plan.models).flatMap((model) => {
    const state = states.get(model.model) as ModelState
    if (state.state === 'impossible') throw new InstallError(`model '${model.model}': ${state.problem}`)
    const replace = state.function !== 'installed' || (exact && !isExact(state, model))
    if (replace && state.recorded && state.recorded.version > INSTALL_VERSION) {
      throw new InstallError(
        `model '${model.model}': ${state.problem ?? 'more is recorded than planned'}, and its triggers were installed by a newer version of Loadstone`,
      )
    }
    return [
      ...(replace ? functionStatements(recordingOf(plan, model)) : []),
      ...(hasAllTriggers(state) ? [] : [triggersStatement(plan.namespace, model)]),
      ...(state.blind ? [forgetStatement(plan.namespace, model.model)] : []),
    ]
  })
  if (before.shared === 'missing') return [CREATE_SHARED, REQUIRE_INSERT, ...statements]
  if (statements.length === 0) return []
  if (before.shared === 'other-version') {
    throw new InstallError(`schema ${SCHEMA} has tables that this version of Loadstone did not make`)
  }
  return [REQUIRE_INSERT, ...statements]
}

function hasAllTriggers({ tables }: ModelState): boolean {
  return tables.every(({ triggers }) => Object.values(triggers).every((state) => state === 'installed'))
}

function isExact({ recorded }: ModelState, { columns, shapes, dependents }: ModelPlan): boolean {
  return (
    recorded?.columns.length === columns.length &&
    recorded.shapes.length === shapes.length &&
    recorded.dependents.length === dependents.length
  )
}

function changes(plan: InstallPlan, before: InstallState, after: InstallState): string[] {
  const lines: string[] = []
  if (before.shared === 'missing') lines.push(`created ${SCHEMA}.outbox and ${SCHEMA}.stored_form`)
  for (const [i, now] of after.models.entries()) {
    const was = before.models[i] as ModelState
    lines.push(...functionChanges(plan.namespace, was, now), ...triggerChanges(plan.namespace, was, now))
    if (was.blind) {
      lines.push(
        `recorded all of model '${now.model}' as touched, since not all of its writes were seen so far`,
      )
    }
  }
  return lines
}

function functionChanges(namespace: string, was: ModelState, now: ModelState): string[] {
  const text = (state: ModelState) => state.recorded && `${JSON.stringify(state.recorded)}`
  if (was.function === 'installed' && text(was) === text(now)) return []
  const recorded = now.recorded?.shapes.map(({ name }) => name).join(', ')
  const name = `${SCHEMA}.${quoteName(functionName(namespace, now.model))}`
  return [
    `${was.function === 'missing' ? 'created' : 'replaced'} function ${name}, which records ${recorded}`,
  ]
}

function triggerChanges(namespace: string, was: ModelState, now: ModelState): string[] {
  const earlier = new Map(was.tables.map(({ name, triggers }) => [name, triggers]))
  return now.tables.flatMap(({ name, triggers }) =>
    EVENTS.flatMap(({ event }) => {
      const before = earlier.get(name)?.[event] ?? 'missing'
      if (before === 'installed' || triggers[event] !== 'installed') return []
      const verb = before === 'disabled' ? 'enabled' : 'created'
      return [`${verb} trigger ${quoteName(triggerName(event, namespace, now.model))} on ${name}`]
    }),
  )
}

/** What is installed of a namespace, and shared by all, as texts for people. */
async function listInstalled(db: Database, namespace: string): Promise<string[]> {
  const { rows } = await sql<{ objects: string }>`${sql.raw(INTERNAL)}
    with own as (select oid, nspname from pg_namespace where nspname = ${SCHEMA})
    select json_build_object(
      'functions', (
        select coalesce(json_agg(json_build_object(
          'name', p.proname, 'comment', obj_description(p.oid, 'pg_proc'),
          'triggers', (
            select coalesce(json_agg(json_build_object('trigger', t.tgname, 'schema', n.nspname, 'name', c.relname)
              order by n.nspname, c.relname, t.tgtype), '[]')
            from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
            where t.tgfoid = p.oid
          )) order by p.proname), '[]')
        from own join pg_proc p on p.pronamespace = own.oid
      ),
      'shared', (
        select coalesce(json_agg(name), '[]') from (
          select format('table %I.%I', own.nspname, c.relname) as name from own join pg_class c on c.relnamespace = own.oid
            where c.relname in ('outbox', 'stored_form')
          union all select format('schema %I', nspname) from own
        ) shared
      )
    )::text as objects`.execute(db)
  const { functions, shared } = JSON.parse((rows[0] as { objects: string }).objects) as InstalledObjects
  const own = functions.filter(({ comment }) => parseFunctionComment(comment)?.namespace === namespace)
  return [
    ...own.flatMap(({ name, triggers }) => [
      ...triggers.map((each) => `trigger ${quoteName(each.trigger)} on ${quoteTable(each)}`),
      `function ${SCHEMA}.${quoteName(name)}`,
    ]),
    ...shared,
  ]
}

interface InstalledObjects {
  readonly functions: readonly {
    readonly name: string
    readonly comment: string | null
    readonly triggers: readonly { readonly trigger: string; readonly schema: string; readonly name: string }[]
  }[]
  readonly shared: readonly string[]
}

function installError(error: unknown, action: 'install' | 'uninstall', text: () => string): InstallError {
  if (error instanceof InstallError) return error
  const problem = `could not ${action}: ${messageOf(error)}`
  switch ((error as { code?: unknown } | null)?.code) {
    case '42501': // insufficient_privilege
      return new InstallError(`${problem}. Have a role that may run this:\n\n${text()}`, { cause: error })
    case '55P03': // lock_not_available
    case '40P01': // deadlock_detected
      return new InstallError(`${problem}. A table is being written by a long transaction; try again`, {
        cause: error,
        transient: true,
      })
    default:
      return new InstallError(problem, { cause: error })
  }
}
