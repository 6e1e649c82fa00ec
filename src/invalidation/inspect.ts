import { sql } from 'kysely'
import type { Database } from '../sources/database.ts'
import { INSTALL_VERSION, SCHEMA, sharedVersion } from './outbox.ts'
import { INTERNAL } from './outbox-rows.ts'
import { covers, type InstallPlan, type ModelPlan, type Recording } from './recording.ts'
import { quoteName, quoteTable } from './sql-text.ts'
import {
  EVENTS,
  FOREIGN_MEMBER_PROBLEM,
  familyOf,
  functionName,
  functionParts,
  type InstalledFunction,
  KIND_PROBLEMS,
  OTHER_KIND_PROBLEM,
  parseFunctionComment,
  type TriggerEvent,
  triggerName,
} from './triggers.ts'

export interface InstallState {
  /** The schema, the outbox and the table of stored forms. `other-version`: a newer Loadstone made them, or somebody else. */
  readonly shared: 'installed' | 'missing' | 'other-version'
  /** What the connected role may not do, though an application has to: `'delete on loadstone.outbox'`. Empty while `shared` is missing. */
  readonly missingRights: readonly string[]
  /** In the order of the plan. */
  readonly models: readonly ModelState[]
  /** Whether every write to every model is recorded as planned, whichever table a statement names. */
  readonly complete: boolean
}

export interface ModelState {
  readonly model: string
  /**
   * `missing`: its table lacks a trigger, or the function is not there. `disabled`: it has all, but not all fire.
   * `outdated`: not what is planned is recorded. `impossible`: nothing that can have the triggers has its name.
   */
  readonly state: 'installed' | 'missing' | 'outdated' | 'disabled' | 'impossible'
  /** A sentence for people, for every state but `installed`. */
  readonly problem: string | undefined
  /** What is recorded now, undefined when that is not known. It may be more than planned, for processes of older code. */
  readonly recorded: InstalledFunction | undefined
  /** The function that all triggers of the model call. */
  readonly function: 'installed' | 'missing' | 'outdated'
  /**
   * Whether writes may have gone unseen, so that nothing cached of the model is sure: a trigger or a planned shape
   * is missing.
   */
  readonly blind: boolean
  /** Its table first, then partitions, inheritance children and parents. */
  readonly tables: readonly TableState[]
  /**
   * Those of `tables`, quoted, without all four triggers, its own left out. A statement that names one of them is not
   * seen; the same rows written through another table are.
   */
  readonly uncovered: readonly string[]
  /** The base types of the columns that the table has now. */
  readonly columns: ReadonlyMap<string, string>
}

export interface TableState {
  /** With its schema, quoted. */
  readonly name: string
  readonly triggers: Readonly<Record<TriggerEvent, 'installed' | 'missing' | 'disabled'>>
}

/** What of a plan is installed. Only reads, takes no lock, and needs no rights. */
export async function inspectInstall(db: Database, plan: InstallPlan): Promise<InstallState> {
  const catalog = await readCatalog(db, plan)
  const shared = sharedState(catalog)
  const models = plan.models.map((model, i) => modelState(plan, model, catalog.models[i] as CatalogModel))
  const complete =
    shared !== 'missing' &&
    models.every(({ state, uncovered }) => state === 'installed' && uncovered.length === 0)
  return { shared, missingRights: shared === 'missing' ? [] : catalog.missingRights, models, complete }
}

interface Catalog {
  readonly tables: readonly { readonly name: string; readonly comment: string | null }[]
  readonly missingRights: readonly string[]
  readonly models: readonly CatalogModel[]
}

interface CatalogModel {
  /** `pg_class.relkind`; null: there is no such table. */
  readonly kind: string | null
  readonly columns: readonly (readonly [name: string, type: string, virtual: boolean])[]
  readonly function: {
    readonly comment: string | null
    readonly body: string
    readonly settings: readonly string[] | null
    readonly definer: boolean
  } | null
  readonly family: readonly {
    readonly schema: string
    readonly name: string
    readonly kind: string
    readonly triggers: readonly CatalogTrigger[]
  }[]
}

interface CatalogTrigger {
  readonly name: string
  readonly type: number
  /** Whether it fires for what a normal session writes. */
  readonly fires: boolean
  readonly oldTable: string | null
  readonly newTable: string | null
}

/** One statement, hence one moment; one JSON text, so that nobody's type parsers have a say in it. */
async function readCatalog(db: Database, { namespace, models }: InstallPlan): Promise<Catalog> {
  const wanted = models.map(({ model, table }) => ({ ...table, function: functionName(namespace, model) }))
  const { rows } = await sql<{ catalog: string }>`${sql.raw(INTERNAL)}
    with recursive wanted as (
      select nr, w->>'schema' as schema, w->>'name' as name, w->>'function' as function
      from json_array_elements(${JSON.stringify(wanted)}::text::json) with ordinality as given(w, nr)
    ), own as (
      select oid from pg_namespace where nspname = ${SCHEMA}
    ), root as (
      select wanted.nr, c.oid, c.relkind, p.oid as function
      from wanted
      left join pg_namespace n on n.nspname = wanted.schema
      left join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name
      left join pg_proc p on p.pronamespace = (select oid from own) and p.proname = wanted.function and p.pronargs = 0
    ), base(id, oid, basetype, typname) as (
      select oid, oid, typbasetype, typname from pg_type
        where oid in (select atttypid from pg_attribute where attrelid in (select oid from root))
      union all
      select base.id, t.oid, t.typbasetype, t.typname from base join pg_type t on t.oid = base.basetype
        where base.basetype <> 0
    )
    select json_build_object(
      'tables', (
        select coalesce(json_agg(json_build_object('name', c.relname, 'comment', obj_description(c.oid, 'pg_class'))), '[]')
        from pg_class c where c.relnamespace = (select oid from own) and c.relname in ('outbox', 'stored_form')
      ),
      'missingRights', (
        select coalesce(json_agg(format('%s on %s', privilege, object)), '[]') from (
          select 'usage' as privilege, 'schema ${sql.raw(SCHEMA)}' as object from own where not has_schema_privilege(own.oid, 'usage')
          union all
          select privilege, '${sql.raw(SCHEMA)}.' || c.relname
          from pg_class c
          join (values
            ('outbox', 'select'), ('outbox', 'update'), ('outbox', 'delete'),
            ('stored_form', 'select'), ('stored_form', 'insert')
          ) as needed(relname, privilege) on needed.relname = c.relname
          where c.relnamespace = (select oid from own) and not has_table_privilege(c.oid, privilege)
        ) missing
      ),
      'models', (
        select coalesce(json_agg(json_build_object(
          'kind', root.relkind,
          'columns', (
            select coalesce(json_agg(json_build_array(a.attname, base.typname, a.attgenerated = 'v') order by a.attnum), '[]')
            from pg_attribute a join base on base.id = a.atttypid and base.basetype = 0
            where a.attrelid = root.oid and a.attnum > 0 and not a.attisdropped
          ),
          'function', (
            select json_build_object('comment', obj_description(p.oid, 'pg_proc'), 'body', p.prosrc,
              'settings', p.proconfig, 'definer', p.prosecdef)
            from pg_proc p where p.oid = root.function
          ),
          'family', (
            select coalesce(json_agg(json_build_object(
              'schema', n.nspname,
              'name', c.relname,
              'kind', c.relkind,
              'triggers', (
                select coalesce(json_agg(json_build_object('name', t.tgname, 'type', t.tgtype,
                  'fires', t.tgenabled in ('O', 'A'), 'oldTable', t.tgoldtable, 'newTable', t.tgnewtable)), '[]')
                from pg_trigger t where t.tgrelid = c.oid and t.tgfoid = root.function
              )
            ) order by c.oid <> root.oid, n.nspname, c.relname), '[]')
            from (${sql.raw(familyOf('root.oid'))}) family
            join pg_class c on c.oid = family.oid
            join pg_namespace n on n.oid = c.relnamespace
            where not pg_is_other_temp_schema(n.oid)
          )
        ) order by root.nr), '[]') from root
      )
    )::text as catalog`.execute(db.withoutPlugins())
  return JSON.parse((rows[0] as { catalog: string }).catalog) as Catalog
}

function sharedState({ tables }: Catalog): InstallState['shared'] {
  if (tables.length === 0) return 'missing'
  if (tables.some(({ comment }) => sharedVersion(comment) !== INSTALL_VERSION)) return 'other-version'
  return tables.length === 2 ? 'installed' : 'missing'
}

function modelState(plan: InstallPlan, model: ModelPlan, catalog: CatalogModel): ModelState {
  const wanted: Recording = { ...model, namespace: plan.namespace, maxTouchedRows: plan.maxTouchedRows }
  const tableName = quoteTable(model.table)
  const columns = new Map(catalog.columns.map(([name, type]) => [name, type]))
  const recorded = parseFunctionComment(catalog.function?.comment ?? null)
  const tables = catalog.family.map((table) => tableState(wanted, table))
  const outdated = catalog.function ? whyOutdated(wanted, recorded, catalog.function, columns) : undefined
  const verdict =
    impossibility(wanted, tableName, catalog) ??
    triggerProblem(tableName, tables[0]) ??
    (outdated === undefined ? undefined : (['outdated', outdated] as const))
  return {
    model: model.model,
    state: verdict?.[0] ?? 'installed',
    problem: verdict?.[1],
    recorded,
    function: !catalog.function ? 'missing' : outdated === undefined ? 'installed' : 'outdated',
    blind: !recorded || !covers(recorded, wanted) || !tables.every(isCovered),
    tables,
    uncovered: tables
      .slice(1)
      .filter((table) => !isCovered(table))
      .map(({ name }) => name),
    columns,
  }
}

type Verdict = readonly [state: ModelState['state'], problem: string] | undefined

function impossibility(
  wanted: Recording,
  tableName: string,
  { kind, family, columns }: CatalogModel,
): Verdict {
  if (kind === null) return ['impossible', `there is no table ${tableName}`]
  if (kind !== 'r' && kind !== 'p') {
    return ['impossible', `${tableName} ${KIND_PROBLEMS[kind] ?? OTHER_KIND_PROBLEM}`]
  }
  const virtual = columns.find(
    ([name, , isVirtual]) => isVirtual && wanted.columns.some((column) => column.name === name),
  )
  if (virtual) {
    const column = `column ${quoteName(virtual[0])} of ${tableName}`
    return ['impossible', `${column} is generated, but not stored: triggers cannot see its values`]
  }
  const foreign = family.find((member) => member.kind === 'f')
  return foreign && ['impossible', `${quoteTable(foreign)} ${FOREIGN_MEMBER_PROBLEM}`]
}

function triggerProblem(tableName: string, table: TableState | undefined): Verdict {
  const events = Object.entries(table?.triggers ?? {})
  for (const state of ['missing', 'disabled'] as const) {
    const affected = events.filter((entry) => entry[1] === state).map(([event]) => event)
    if (affected.length > 0)
      return [state, `the triggers of ${tableName} for ${affected.join(', ')} are ${state}`]
  }
  return undefined
}

function whyOutdated(
  wanted: Recording,
  recorded: InstalledFunction | undefined,
  { body, settings, definer }: NonNullable<CatalogModel['function']>,
  columns: ReadonlyMap<string, string>,
): string | undefined {
  if (!recorded) return 'the function of the triggers was made by something else'
  const changed = recorded.columns.find(({ name, type }) => columns.get(name) !== type)
  if (changed) {
    const { name, type } = changed
    return `column ${quoteName(name)} is recorded as ${type}, but is ${columns.get(name) ?? 'gone'}`
  }
  if (!covers(recorded, wanted)) return 'not all declared field lists are recorded'
  // What a newer version installed is its own affair.
  if (recorded.version > INSTALL_VERSION) return undefined
  const right = functionParts(recorded)
  const isOurs =
    body.trim() === right.body && definer && (settings ?? []).join('\0') === right.settings.join('\0')
  if (recorded.version < INSTALL_VERSION || !isOurs)
    return 'the function of the triggers is not that of this version'
  if (recorded.maxTouchedRows !== wanted.maxTouchedRows) {
    return `maxTouchedRows is ${recorded.maxTouchedRows}, not ${wanted.maxTouchedRows}`
  }
  return undefined
}

function tableState({ namespace, model }: Recording, table: CatalogModel['family'][number]): TableState {
  const states = EVENTS.map(({ event, ...right }) => {
    const name = triggerName(event, namespace, model)
    const found = table.triggers.find((trigger) => trigger.name === name)
    const isRight =
      found?.type === right.type && found.oldTable === right.oldTable && found.newTable === right.newTable
    return [event, !isRight ? 'missing' : found.fires ? 'installed' : 'disabled']
  })
  return { name: quoteTable(table), triggers: Object.fromEntries(states) }
}

function isCovered({ triggers }: TableState): boolean {
  return Object.values(triggers).every((state) => state === 'installed')
}

/** What keeps an installation from being complete, a phrase each; none when it is. */
export function problemsOf({ shared, missingRights, models, complete }: InstallState): string[] {
  if (complete && missingRights.length === 0) return []
  const problems: string[] = []
  if (shared === 'missing') problems.push('there is no outbox')
  if (shared === 'other-version') problems.push('the outbox was made by another version of Loadstone')
  for (const right of missingRights) problems.push(`the role lacks ${right}`)
  for (const { model, problem, uncovered } of models) {
    if (problem !== undefined) problems.push(`model '${model}': ${problem}`)
    if (uncovered.length > 0) problems.push(`model '${model}': ${uncovered.join(', ')} without triggers`)
  }
  return problems
}
