import type { Client } from 'pg'
import { IDS, MODELS, type ModelName, type Thing, UNDONE } from './things.ts'

/** A version of a row that was written; the last of its transaction, once that has committed, is what others see. */
export interface Written {
  readonly model: ModelName
  readonly id: number
  readonly version: number
  readonly xid: string
  /** The name of the operation that wrote it. */
  readonly op: string
  /** Null: the row was deleted. */
  readonly thing: Thing | null
}

export const SEED = 'seed'

/**
 * The tables, and triggers of the test that number the versions and keep all of them. A writer holds the row's clock
 * until its transaction ends, also for rows that do not exist, so versions are numbered in the order of commits. A
 * rollback takes the record along, so what is recorded has happened.
 */
const TABLES = `
create schema torture;
create table torture.clock (
  model text, id int, version int not null default 0, primary key (model, id)
) with (fillfactor = 20);
create table torture.written (
  model text, id int, version int, xid xid8 default pg_current_xact_id(), op text not null,
  slug text, grp int, kind text, deleted boolean not null, primary key (model, id, version)
);
create function torture.write() returns trigger language plpgsql as $$
declare
  turn int;
begin
  update torture.clock set version = version + 1
  where model = tg_table_name and id = case when tg_op = 'DELETE' then old.id else new.id end
  returning version into strict turn;
  if tg_op = 'DELETE' then
    -- A deleted row has no tag to tell who it was, so the statement does.
    insert into torture.written (model, id, version, op, deleted)
    values (tg_table_name, old.id, turn, substring(current_query() from '/\\* op (\\S+) \\*/'), true);
    return old;
  end if;
  new.version := turn;
  insert into torture.written (model, id, version, op, slug, grp, kind, deleted)
  values (tg_table_name, new.id, turn, new.tag, new.slug, new.grp, new.kind, false);
  return new;
end $$;
${MODELS.map(
  (model) => `
create table ${model} (
  id int primary key, slug text unique, grp int not null, kind text, version int not null default 0, tag text not null
);
create index on ${model} (grp, kind);
create trigger write before insert or update or delete on ${model} for each row execute function torture.write();
insert into torture.clock (model, id) select '${model}', generate_series(1, ${Math.max(...IDS)});
insert into ${model} (id, slug, grp, kind, tag)
select i, 's' || i, 1 + i % 4, (array['a', 'b', null])[1 + i % 3], '${SEED}' from generate_series(1, ${IDS.length / 2}) i;`,
).join('')}`

export async function createTables(client: Client): Promise<void> {
  await client.query(TABLES)
}

export async function readWritten(client: Client): Promise<Written[]> {
  const { rows } = await client.query(
    'select model, id, version, xid::text, op, slug, grp, kind, deleted from torture.written order by model, id, version',
  )
  return rows.map(({ model, id, version, xid, op, slug, grp, kind, deleted }) => ({
    model,
    id,
    version,
    xid,
    op: op.replace(UNDONE, ''),
    thing: deleted ? null : { id, slug, grp, kind, version, tag: op },
  }))
}

/** The rows as they are now. */
export async function readThings(client: Client, model: ModelName): Promise<Thing[]> {
  const { rows } = await client.query(`select * from ${model} order by id`)
  return rows
}
