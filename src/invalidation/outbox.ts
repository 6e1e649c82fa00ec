import { dollarQuote, quoteName } from './sql-text.ts'

/**
 * The version of everything that `install` puts into a database. Raise it with every change to the text of these
 * objects: processes of an older version leave what a newer one installed alone.
 */
export const INSTALL_VERSION = 1

export const SCHEMA = 'loadstone'

/** Ends the comments of the shared objects, by which we know them for ours. */
export const SHARED_MARK = `(Loadstone, install version ${INSTALL_VERSION})`

/** The version in the comment of a shared object; undefined for an object that is not ours. */
export function sharedVersion(comment: string | null): number | undefined {
  const version = /\(Loadstone, install version (\d+)\)$/.exec(comment ?? '')?.[1]
  return version === undefined ? undefined : Number(version)
}

/**
 * Takes turns with every other installation on this database, until the transaction ends. As a statement without a
 * result, so that psql prints nothing.
 */
// Functions are qualified here and in the other statements of an installation: those who run it may be superusers, and
// on their search_path may be a schema where others can put a function that fits better.
export const TAKE_INSTALL_LOCK = `do ${dollarQuote(`begin
  perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('loadstone install', 0));
end`)}`

const OUTBOX_COMMENT = `What writes touched and nobody has cleared from the cache yet. Rows live for milliseconds. ${SHARED_MARK}`
const STORED_FORM_COMMENT = `Numbers of the forms in which models are cached, in the order they were first seen. Never delete from it. ${SHARED_MARK}`

/**
 * Creates the schema and the tables that all namespaces share, when they are not there. A role that does not own
 * them gets by with rights on them.
 */
// The primary key serves everybody: a writer that reads its own rows knows its xid, and the relay goes by age. With
// the namespace first, a writer would have to know all of them. Both columns grow, so inserts stay on one hot page.
// No ANALYZE: it would see the table now empty and now full, and plans would change with it. No truncation after a
// vacuum: it takes a lock that every writer of every model would wait for.
export const CREATE_SHARED = `do ${dollarQuote(`begin
  if pg_catalog.to_regnamespace('${SCHEMA}') is null then
    create schema ${SCHEMA};
    comment on schema ${SCHEMA} is 'Keeps caches right about this database. ${SHARED_MARK}';
  end if;
  if pg_catalog.to_regclass('${SCHEMA}.outbox') is null then
    create table ${SCHEMA}.outbox (
      xid xid8 not null default pg_catalog.pg_current_xact_id(),
      id bigint generated always as identity (cache 32),
      namespace text not null,
      model text not null,
      touched json, -- null: the whole model
      at timestamptz not null default pg_catalog.clock_timestamp(),
      primary key (xid, id)
    ) with (
      autovacuum_vacuum_scale_factor = 0,
      autovacuum_vacuum_threshold = 5000,
      autovacuum_vacuum_insert_threshold = -1,
      autovacuum_vacuum_cost_delay = 0,
      autovacuum_analyze_scale_factor = 0,
      autovacuum_analyze_threshold = 2000000000,
      vacuum_truncate = false
    );
    comment on table ${SCHEMA}.outbox is '${OUTBOX_COMMENT}';
  end if;
  if pg_catalog.to_regclass('${SCHEMA}.stored_form') is null then
    create table ${SCHEMA}.stored_form (
      namespace text not null,
      model text not null,
      form text not null,
      number integer not null check (number between 0 and 65000),
      at timestamptz not null default pg_catalog.clock_timestamp(),
      primary key (namespace, model, form),
      unique (namespace, model, number)
    );
    comment on table ${SCHEMA}.stored_form is '${STORED_FORM_COMMENT}';
  end if;
  if pg_catalog.obj_description('${SCHEMA}.outbox'::regclass, 'pg_class') is distinct from '${OUTBOX_COMMENT}'
    or pg_catalog.obj_description('${SCHEMA}.stored_form'::regclass, 'pg_class') is distinct from '${STORED_FORM_COMMENT}' then
    raise object_not_in_prerequisite_state
      using message = 'schema ${SCHEMA} has tables that this version of Loadstone did not make';
  end if;
end`)}`

/** Fails for a role whose trigger functions could not write: they run as their owner, and would fail every write to a cached table. */
export const REQUIRE_INSERT = `do ${dollarQuote(`begin
  if not pg_catalog.has_table_privilege('${SCHEMA}.outbox', 'insert') then
    raise insufficient_privilege
      using message = pg_catalog.format('role %I may not insert into ${SCHEMA}.outbox', current_user);
  end if;
end`)}`

/** What the role of an application needs, besides its own tables. Writers need nothing: the triggers have their owner's rights. */
export function grantSql(role: string): string {
  const to = quoteName(role)
  return [
    `grant usage on schema ${SCHEMA} to ${to};`,
    `grant select, update, delete on ${SCHEMA}.outbox to ${to};`,
    `grant select, insert on ${SCHEMA}.stored_form to ${to};`,
    '',
  ].join('\n')
}
