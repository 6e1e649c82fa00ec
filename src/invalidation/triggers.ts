import { createHash } from 'node:crypto'
import { staleForOf } from '../models/touched.ts'
import { INSTALL_VERSION, SCHEMA } from './outbox.ts'
import {
  type ModelPlan,
  PRINTED_BY_SETTINGS,
  type RecordedColumn,
  type RecordedDependent,
  type RecordedShape,
  type Recording,
} from './recording.ts'
import { dollarQuote, quoteName, quoteTable, quoteText } from './sql-text.ts'

/** The triggers of a table, and how `pg_trigger` describes them. */
export const EVENTS = [
  { event: 'insert', type: 4, oldTable: null, newTable: 'new_rows' },
  { event: 'update', type: 16, oldTable: 'old_rows', newTable: 'new_rows' },
  { event: 'delete', type: 8, oldTable: 'old_rows', newTable: null },
  { event: 'truncate', type: 32, oldTable: null, newTable: null },
] as const

export type TriggerEvent = (typeof EVENTS)[number]['event']

/** The name, in schema `loadstone`, of the function that records what is written of a model. */
export function functionName(namespace: string, model: string): string {
  return `touch ${label(namespace, model)}`
}

export function triggerName(event: TriggerEvent, namespace: string, model: string): string {
  return `loadstone ${event} ${label(namespace, model)}`
}

/** What Postgres keeps of a name is 63 bytes; the longest prefix of ours is that of the truncate trigger. */
const MAX_LABEL = 63 - 'loadstone truncate '.length

/** Readable where it can be. No two models have the same one: '/' and '#' stand only where we put them. */
function label(namespace: string, model: string): string {
  const plain = `${namespace}/${model}`
  if (/^[\w.$-]+\/[\w.$-]+$/.test(plain) && plain.length <= MAX_LABEL) return plain
  const hash = createHash('sha256')
    .update(JSON.stringify([namespace, model]))
    .digest('hex')
    .slice(0, 16)
  const readable = plain.replace(/[^\w.$/-]+/g, '_').slice(0, MAX_LABEL - hash.length - 1)
  return `${readable}#${hash}`
}

/**
 * What the function of a recording is made of, and `pg_proc` shows: `inspect` compares it.
 *
 * It has its owner's rights, so that a writer needs none on the outbox.
 */
export function functionParts(recording: Recording): { body: string; settings: readonly string[] } {
  return { body: functionBody(recording), settings: settingsOf(recording.columns) }
}

/** As `pg_proc.proconfig` has them. Having any costs every write a little, so they are there only for types that need them. */
function settingsOf(columns: readonly RecordedColumn[]): readonly string[] {
  if (!columns.some(({ type }) => PRINTED_BY_SETTINGS.has(type))) return []
  return [
    'TimeZone=UTC',
    'DateStyle=ISO, YMD',
    'IntervalStyle=postgres',
    'extra_float_digits=1',
    'bytea_output=hex',
  ]
}

function functionBody({ namespace, model, columns, shapes, dependents, maxTouchedRows }: Recording): string {
  const position = new Map(columns.map(({ name }, i) => [name, i]))
  const header = JSON.stringify({
    columns: columns.map(({ name, type }) => [name, type]),
    shapes: shapes.map(({ name, columns: names }) => [name, ...names.map((each) => position.get(each))]),
    ...staleOf(shapes),
    ...(dependents.length > 0 && {
      dependents: dependents.map((dependent) => ({
        ...dependent,
        values: dependent.values.map((each) => position.get(each)),
      })),
    }),
  })
  // All of it was written, so all of what is made of it may be wrong.
  const others = [...new Set(dependents.map((dependent) => dependent.model))].filter(
    (other) => other !== model,
  )
  const alsoTouched =
    others.length === 0
      ? ''
      : `
  if touched is null then
    insert into ${SCHEMA}.outbox (namespace, model, touched)
    values ${others.map((other) => `(${quoteText(namespace)}, ${quoteText(other)}, null)`).join(', ')};
  end if;`
  const textsOf = (table: string) => columns.map(({ name }) => `${table}.${quoteName(name)}::pg_catalog.text`)
  const tuplesOf = (table: string) =>
    `array(select array[${textsOf(table).join(', ')}] from ${table} limit ${maxTouchedRows + 1})`
  // Columns of different collations can only be compared under one that all have in common.
  const comparable = (table: string) =>
    textsOf(table)
      .map((text, i) => `${text} collate pg_catalog."C" as c${i}`)
      .join(', ')
  return `-- Made by Loadstone. Records which keys of a cached model a statement has touched, in the statement's own transaction.
-- All names are qualified: whatever a writer has on its search_path, nothing of it runs with the rights of the owner.
-- To set search_path for the function would do as well, and cost every write.
declare
  tuples pg_catalog.text[]; -- old and new values of the columns
  old_tuples pg_catalog.text[];
  touched pg_catalog.json; -- null: the whole model
begin
  if tg_op operator(pg_catalog.<>) 'TRUNCATE' then
    begin
      if tg_op operator(pg_catalog.=) 'UPDATE' then
        select ${tuplesOf('old_rows')},
          ${tuplesOf('new_rows')}
        into old_tuples, tuples;
      elsif tg_op operator(pg_catalog.=) 'INSERT' then
        tuples := ${tuplesOf('new_rows')};
      else
        tuples := ${tuplesOf('old_rows')};
      end if;
      if tuples operator(pg_catalog.=) '{}' then return null; end if;
      if pg_catalog.array_length(tuples, 1) operator(pg_catalog.<=) ${maxTouchedRows} then
        if old_tuples operator(pg_catalog.<>) tuples then
          if pg_catalog.array_length(tuples, 1) operator(pg_catalog.=) 1 then
            tuples := old_tuples operator(pg_catalog.||) tuples;
          else
            select pg_catalog.array_agg(distinct array[${columns.map((_, i) => `c${i}`).join(', ')}]) into tuples
            from (select ${comparable('old_rows')} from old_rows
              union all select ${comparable('new_rows')} from new_rows) written;
          end if;
        end if;
        touched := (${quoteText(`${header.slice(0, -1)},"rows":`)} operator(pg_catalog.||) pg_catalog.array_to_json(tuples)::pg_catalog.text
          operator(pg_catalog.||) '}')::pg_catalog.json;
      end if;
    exception when others then
      -- A column was dropped or renamed, or the list grew too large: the write goes on, and all of the model counts
      -- as touched. Nothing is written in this block, so it takes no transaction id.
      touched := null;
    end;
  end if;
  insert into ${SCHEMA}.outbox (namespace, model, touched)
  values (${quoteText(namespace)}, ${quoteText(model)}, touched);${alsoTouched}
  return null;
end`
}

/** As `Touched.stale`; nothing when there is none. */
function staleOf(shapes: readonly RecordedShape[]): { stale?: Record<string, number> } {
  const stale = shapes.flatMap(({ name, staleForMs }) =>
    staleForMs === undefined ? [] : [[name, staleForMs] as const],
  )
  return stale.length > 0 ? { stale: Object.fromEntries(stale) } : {}
}

/** What the comment of a function tells of it. */
export interface InstalledFunction extends Recording {
  readonly version: number
}

/** The comment that tells later installations what is recorded. Later versions may add to it, but older ones must be able to read it. */
export function functionComment(recording: Recording): string {
  const { namespace, model, columns, shapes, dependents, maxTouchedRows } = recording
  return `Loadstone, install version ${INSTALL_VERSION}: ${JSON.stringify({
    namespace,
    model,
    columns: columns.map(({ name, type }) => [name, type]),
    shapes: shapes.map(({ name, columns: names }) => [name, ...names]),
    ...staleOf(shapes),
    dependents,
    maxTouchedRows,
  })}`
}

/** For `substring(comment from ...)` in SQL: the JSON part of {@link functionComment}. */
export const COMMENT_PATTERN = '^Loadstone, install version \\d+: (\\{.*\\})$'

/** What {@link functionComment} told; undefined for a comment that is not ours, or of a version that tells otherwise. */
export function parseFunctionComment(comment: string | null): InstalledFunction | undefined {
  const match = /^Loadstone, install version (\d+): (\{.*\})$/s.exec(comment ?? '')
  if (!match) return undefined
  try {
    const told = JSON.parse(match[2] as string) as ToldByComment
    return {
      version: Number(match[1]),
      namespace: told.namespace,
      model: told.model,
      columns: told.columns.map(([name, type]) => ({ name, type })),
      shapes: told.shapes.map(([name, ...columns]) => {
        const staleForMs = staleForOf(told.stale, name)
        return { name, columns, ...(staleForMs !== undefined && { staleForMs }) }
      }),
      dependents: [...told.dependents],
      maxTouchedRows: told.maxTouchedRows,
    }
  } catch {
    return undefined
  }
}

interface ToldByComment {
  readonly namespace: string
  readonly model: string
  readonly columns: readonly (readonly [string, string])[]
  readonly shapes: readonly (readonly [string, ...string[]])[]
  readonly stale?: Readonly<Record<string, number>>
  readonly dependents: readonly RecordedDependent[]
  readonly maxTouchedRows: number
}

/** Statements that create or replace the function of a recording. They lock no table. */
export function functionStatements(recording: Recording): string[] {
  const name = `${SCHEMA}.${quoteName(functionName(recording.namespace, recording.model))}()`
  const { body, settings } = functionParts(recording)
  const set = settings.map((setting) => {
    const [parameter, value] = setting.split('=') as [string, string]
    return `\n  set ${parameter} = ${quoteText(value)}`
  })
  return [
    `create or replace function ${name} returns pg_catalog.trigger\n  language plpgsql security definer${set.join('')}\nas ${dollarQuote(body)}`,
    `comment on function ${name} is ${quoteText(functionComment(recording))}`,
    // Else anybody could put it on a table of their own, and have the cache forget what they like.
    `revoke all on function ${name} from public`,
  ]
}

/**
 * A query for the tables whose statements may write rows of the table with the oid `root`: itself, its partitions and
 * inheritance children, and those that it is a partition or child of. The triggers of a statement are those of the
 * table it names.
 */
export function familyOf(root: string): string {
  return `with recursive
      below(oid) as (
        select ${root} union select i.inhrelid from below join pg_inherits i on i.inhparent = below.oid
      ),
      above(oid) as (
        select ${root} union select i.inhparent from above join pg_inherits i on i.inhrelid = above.oid
      )
      select oid from below union select oid from above`
}

/** Why a relation that is no table cannot have our triggers: the rest of the sentence "x ...", by `pg_class.relkind`. */
export const KIND_PROBLEMS: Readonly<Record<string, string>> = Object.freeze({
  v: 'is a view: triggers cannot tell which of its rows change. Declare the model on its table',
  m: 'is a materialized view: no trigger sees its REFRESH. Declare the model on its tables',
  f: 'is a foreign table: no trigger sees what is written on the other server',
})

export const OTHER_KIND_PROBLEM = 'is no table'

/** Postgres fails every write through a parent that would have to collect rows of a foreign table. */
export const FOREIGN_MEMBER_PROBLEM =
  'is a foreign table and a partition or child: triggers that see rows cannot be on its parent'

/**
 * A statement that puts the triggers on the table and its family, where they are missing, disabled or different. It
 * locks only those tables, against writers.
 */
export function triggersStatement(namespace: string, { model, table }: ModelPlan): string {
  const tableName = quoteTable(table)
  const events = EVENTS.map(({ event, type, oldTable, newTable }) => {
    const referencing = [
      oldTable && `old table as ${oldTable}`,
      newTable && `new table as ${newTable}`,
    ].filter(Boolean)
    const clause = referencing.length > 0 ? ` referencing ${referencing.join(' ')}` : ''
    const columns = [event, triggerName(event, namespace, model), clause, oldTable, newTable]
    return `(${type}, ${columns.map((value) => (value === null ? 'null' : quoteText(value))).join(', ')})`
  })
  const problems = Object.entries(KIND_PROBLEMS).map(
    ([kind, text]) => `when '${kind}' then ${quoteText(text)}`,
  )
  const fn = functionName(namespace, model)
  return `do ${dollarQuote(`declare
  root oid;
  kind "char";
  missing record;
begin
  select c.oid, c.relkind into root, kind from pg_class c join pg_namespace n on n.oid = c.relnamespace
  where n.nspname = ${quoteText(table.schema)} and c.relname = ${quoteText(table.name)};
  if root is null then
    raise undefined_table using message = ${quoteText(`there is no table ${tableName}`)};
  elsif kind not in ('r', 'p') then
    raise wrong_object_type using message = ${quoteText(`${tableName} `)} || case kind
      ${problems.join('\n      ')}
      else '${OTHER_KIND_PROBLEM}' end;
  end if;
  for missing in
    select pg_catalog.format('%I.%I', n.nspname, c.relname) as table_name, c.relkind, events.*
    from (
      ${familyOf('root')}
    ) family
    join pg_class c on c.oid = family.oid
    join pg_namespace n on n.oid = c.relnamespace
    cross join (values
      ${events.join(',\n      ')}
    ) as events(type, event, trigger_name, referencing, old_table, new_table)
    where not pg_catalog.pg_is_other_temp_schema(c.relnamespace) and not exists (
      select from pg_trigger t
      where t.tgrelid = c.oid and t.tgfoid = ${quoteText(`${SCHEMA}.${quoteName(fn)}()`)}::regprocedure
        and t.tgname = events.trigger_name and t.tgtype = events.type and t.tgenabled in ('O', 'A')
        and t.tgoldtable is not distinct from events.old_table and t.tgnewtable is not distinct from events.new_table
    )
    order by table_name, events.type
  loop
    if missing.relkind = 'f' then
      raise wrong_object_type using message = missing.table_name || ' ${FOREIGN_MEMBER_PROBLEM}';
    end if;
    execute pg_catalog.format('create or replace trigger %I after %s on %s%s for each statement execute function ${SCHEMA}.%I()',
      missing.trigger_name, missing.event, missing.table_name, missing.referencing, ${quoteText(fn)});
  end loop;
end`)}`
}

/** A statement that records the whole model as touched: its writes were not watched, so nothing cached of it is sure. */
export function forgetStatement(namespace: string, model: string): string {
  return `insert into ${SCHEMA}.outbox (namespace, model, touched) values (${quoteText(namespace)}, ${quoteText(model)}, null)`
}
