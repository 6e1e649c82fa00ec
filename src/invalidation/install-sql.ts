import {
  CREATE_SHARED,
  grantSql,
  INSTALL_VERSION,
  REQUIRE_INSERT,
  SCHEMA,
  TAKE_INSTALL_LOCK,
} from './outbox.ts'
import type { InstallPlan, ModelPlan, Recording } from './recording.ts'
import { commentLines, dollarQuote, quoteText } from './sql-text.ts'
import { COMMENT_PATTERN, forgetStatement, functionStatements, triggersStatement } from './triggers.ts'

/**
 * All statements that install a plan, in order. Each may be run twice; together they belong into one transaction. They
 * record exactly what is planned.
 */
export function installStatements(plan: InstallPlan): string[] {
  const { namespace } = plan
  return [
    TAKE_INSTALL_LOCK,
    CREATE_SHARED,
    REQUIRE_INSERT,
    ...inLockOrder(plan.models).flatMap((model) => [
      ...functionStatements(recordingOf(plan, model)),
      triggersStatement(namespace, model),
      forgetStatement(namespace, model.model),
    ]),
  ]
}

/** {@link installStatements} as a text for psql or a migration, with comments for those who are to run it. */
export function installSql(plan: InstallPlan): string {
  const header = `Loadstone, install version ${INSTALL_VERSION}, namespace ${plan.namespace}

Puts triggers on the tables of the cached models. They record which keys a statement has touched, in the transaction
of the statement, so that the cache forgets them. Safe to run again; run it in one transaction (psql -1).

Needs: create on the database (the first time), create on schema ${SCHEMA}, trigger on each table. A trigger that is not
there yet waits for the running writers of its table, and later writers wait behind it, so set a limit:
  set lock_timeout = '5s';
The functions run with the rights of the role that runs this: let the owner of the tables do it, not a superuser.

The role of the application, if it is not the one that runs this, needs afterwards:
${indent(grantSql('my_application'))}`
  const body = installStatements(plan).map((statement) => `${statement};\n`)
  return `${commentLines(header.trimEnd())}\n\n${body.join('\n')}`
}

/** Tables are locked in one order, whoever installs. */
export function inLockOrder(models: readonly ModelPlan[]): readonly ModelPlan[] {
  const keyOf = ({ table, model }: ModelPlan) => JSON.stringify([table.schema, table.name, model])
  return [...models].sort((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1))
}

export function recordingOf({ namespace, maxTouchedRows }: InstallPlan, model: ModelPlan): Recording {
  const { table: _, ...recorded } = model
  return { namespace, maxTouchedRows, ...recorded }
}

/**
 * All statements that remove a namespace, or some of its models, in order. They may be run twice. The tables that
 * namespaces share go with the last one.
 *
 * @param models default: all of the namespace, together with its outbox rows and its numbers of stored forms
 */
export function uninstallStatements(namespace: string, models?: readonly string[]): string[] {
  const told = `substring(pg_catalog.obj_description(p.oid, 'pg_proc') from ${quoteText(COMMENT_PATTERN)})::json`
  const otherModel = models
    ? ` or not made.told->>'model' = any (array[${models.map(quoteText).join(', ')}]::text[])`
    : ''
  const dropFunctions = `do ${dollarQuote(`declare
  made record;
begin
  for made in
    select p.proname, ${told} as told
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = '${SCHEMA}'
    order by p.proname
  loop
    continue when made.told->>'namespace' is distinct from ${quoteText(namespace)}${otherModel};
    execute pg_catalog.format('drop function ${SCHEMA}.%I() cascade', made.proname); -- and the triggers that call it
  end loop;
end`)}`
  const dropShared = `do ${dollarQuote(`begin
  if pg_catalog.to_regclass('${SCHEMA}.outbox') is null or pg_catalog.to_regclass('${SCHEMA}.stored_form') is null then
    return;
  end if;
  delete from ${SCHEMA}.outbox where namespace = ${quoteText(namespace)};
  delete from ${SCHEMA}.stored_form where namespace = ${quoteText(namespace)};
  if exists (select from ${SCHEMA}.outbox) or exists (select from ${SCHEMA}.stored_form) or exists (
    select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname = '${SCHEMA}' and ${told} is not null
  ) then
    return; -- other namespaces are left
  end if;
  drop table ${SCHEMA}.outbox, ${SCHEMA}.stored_form;
  if not exists (select from pg_class where relnamespace = '${SCHEMA}'::regnamespace)
    and not exists (select from pg_proc where pronamespace = '${SCHEMA}'::regnamespace) then
    drop schema ${SCHEMA};
  end if;
end`)}`
  return [TAKE_INSTALL_LOCK, dropFunctions, ...(models ? [] : [dropShared])]
}

/** What removes a namespace, or some of its models; see {@link uninstallStatements}. For psql or a migration. */
export function uninstallSql(namespace: string, models?: readonly string[]): string {
  const header = `Loadstone: removes ${models ? `the models ${models.join(', ')} of ` : ''}namespace ${namespace}

Waits for the running writers of the tables, and later statements wait behind it, so set a limit:
  set lock_timeout = '5s';`
  const body = uninstallStatements(namespace, models).map((statement) => `${statement};\n`)
  return `${commentLines(header)}\n\n${body.join('\n')}`
}

function indent(text: string): string {
  return text.trimEnd().replace(/^/gm, '  ')
}
