import { sql } from 'kysely'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { install } from '../../src/invalidation/install.ts'
import { functionName, triggerName } from '../../src/invalidation/triggers.ts'
import { bindModel, defineModel, type ModelMeta, shapeOf } from '../../src/models/model.ts'
import { touchedKeys } from '../../src/models/touched.ts'
import { describeTable } from '../../src/sources/describe.ts'
import { ENGINES, planOf, type TestEngine, takeRecorded, takeTuples } from './engines.ts'

const USERS = { users: { keyFields: [['id'], ['email']], filterFields: [['org_id']] } }
const CREATE_USERS = 'create table users (id int primary key, email text, org_id int, note text)'

describe.each(Object.entries(ENGINES))('what the triggers record on %s', (name, openEngine) => {
  let engine: TestEngine
  beforeAll(async () => {
    engine = await openEngine()
  })
  afterAll(() => engine.close())
  beforeEach(() => engine.reset())

  /** Tables with triggers, and an empty outbox. */
  async function given(
    create: string,
    models: Readonly<Record<string, ModelMeta>>,
    options = {},
  ): Promise<void> {
    await engine.run(create)
    await install(engine.db, await planOf(engine.db, models, options))
    await takeRecorded(engine.db)
  }

  /** What these statements record: the tuples of each outbox row. */
  async function recordedBy(statements: string) {
    await engine.run(statements)
    return takeTuples(engine.db)
  }

  describe('of one table', () => {
    beforeEach(() =>
      given(`${CREATE_USERS}; insert into users values (1, 'a', 7), (2, 'b', 7), (3, null, null)`, USERS),
    )

    test('a row names its columns and shapes, so that anybody can make keys of it', async () => {
      await engine.run(`update users set note = 'x' where id = 1`)
      expect(await takeRecorded(engine.db)).toEqual([
        {
          namespace: 'shop',
          model: 'users',
          touched: {
            columns: [
              ['id', 'int4'],
              ['email', 'text'],
              ['org_id', 'int4'],
            ],
            shapes: [
              ['id', 0],
              ['email', 1],
              ['org_id[]', 2],
            ],
            rows: [['1', 'a', '7']],
          },
        },
      ])
    })

    test('INSERT: new values, NULL as null', async () => {
      expect(await recordedBy(`insert into users values (4, 'd', 8), (5, null, null)`)).toEqual([
        [
          ['4', 'd', '8'],
          ['5', null, null],
        ],
      ])
    })

    test('UPDATE: old and new values, each tuple once', async () => {
      expect(await recordedBy('update users set org_id = 8 where id in (1, 2)')).toEqual([
        [
          ['1', 'a', '7'],
          ['1', 'a', '8'],
          ['2', 'b', '7'],
          ['2', 'b', '8'],
        ],
      ])
      expect(await recordedBy(`update users set id = 9, email = 'z' where id = 3`)).toEqual([
        [
          ['3', null, null],
          ['9', 'z', null],
        ],
      ])
      expect(await recordedBy('update users set note = note')).toEqual([
        [
          ['1', 'a', '8'],
          ['2', 'b', '8'],
          ['9', 'z', null],
        ],
      ])
    })

    test('DELETE: old values', async () => {
      expect(await recordedBy('delete from users where id > 1')).toEqual([
        [
          ['2', 'b', '7'],
          ['3', null, null],
        ],
      ])
    })

    test('statements that touch no row record nothing', async () => {
      const statements = [
        'update users set org_id = 1 where false',
        'delete from users where id > 100',
        'insert into users select * from users where false',
        'insert into users values (1) on conflict do nothing',
      ]
      expect(await recordedBy(statements.join('; '))).toEqual([])
    })

    test('ON CONFLICT DO UPDATE: the rows inserted, and those updated', async () => {
      const upsert = `insert into users values (1, 'n', 1), (8, 'h', 8)
        on conflict (id) do update set email = excluded.email`
      const recorded = await recordedBy(upsert)
      expect(recorded).toHaveLength(2)
      expect(recorded).toContainEqual([['8', 'h', '8']])
      expect(recorded).toContainEqual([
        ['1', 'a', '7'],
        ['1', 'n', '7'],
      ])
    })

    test('MERGE: a row for each kind of change', async ({ skip }) => {
      const { rows } = await sql<{
        old: boolean
      }>`select current_setting('server_version_num')::int < 150000 as old`.execute(engine.db)
      if (rows[0]?.old) skip()
      const recorded =
        await recordedBy(`merge into users u using (values (1), (2), (4)) as v (id) on u.id = v.id
        when matched and v.id = 1 then update set org_id = 70
        when matched then delete
        when not matched then insert values (v.id, 'd', 4)`)
      expect(recorded).toHaveLength(3)
      expect(recorded).toContainEqual([['4', 'd', '4']])
      expect(recorded).toContainEqual([['2', 'b', '7']])
      expect(recorded).toContainEqual([
        ['1', 'a', '7'],
        ['1', 'a', '70'],
      ])
    })

    if (name === 'Postgres') {
      test('COPY: new values', async () => {
        await engine.copy?.('copy users (id, email, org_id) from stdin', '4\td\t8\n5\t\\N\t\\N\n')
        expect(await takeTuples(engine.db)).toEqual([
          [
            ['4', 'd', '8'],
            ['5', null, null],
          ],
        ])
      })
    }

    test('TRUNCATE: the whole model', async () => {
      expect(await recordedBy('truncate users')).toEqual(['all'])
    })

    test('writable CTEs: what each part writes', async () => {
      const recorded = await recordedBy(`with gone as (delete from users where id = 1 returning *)
        insert into users select id + 10, email, org_id from gone`)
      expect(recorded).toHaveLength(2)
      expect(recorded).toContainEqual([['1', 'a', '7']])
      expect(recorded).toContainEqual([['11', 'a', '7']])
    })

    test('what a savepoint undoes is not recorded, what a transaction undoes neither', async () => {
      expect(
        await recordedBy(`begin; update users set org_id = 1 where id = 1; savepoint s; delete from users;
          rollback to s; delete from users where id = 2; commit;
          begin; delete from users; rollback`),
      ).toEqual([
        [
          ['1', 'a', '1'],
          ['1', 'a', '7'],
        ],
        [['2', 'b', '7']],
      ])
    })

    test('the rows of a transaction carry its id, in savepoints too', async () => {
      await engine.db.transaction().execute(async (trx) => {
        await sql`update users set note = 'x' where id = 1`.execute(trx)
        await sql`savepoint s`.execute(trx)
        await sql`update users set note = 'x' where id = 2`.execute(trx)
        const { rows } = await sql<{ own: string; others: string }>`
          select count(*) filter (where xid = pg_current_xact_id())::text as own, count(*)::text as others
          from loadstone.outbox`.execute(trx)
        expect(rows).toEqual([{ own: '2', others: '2' }])
      })
    })

    test('triggers of the application: what they write counts, and what they change in a row', async () => {
      await engine.run(`
        create function shout() returns trigger language plpgsql as $$ begin new.email := upper(new.email); return new; end $$;
        create trigger shout before insert on users for each row execute function shout();
        create function twin() returns trigger language plpgsql as $$ begin
          if new.id < 100 then insert into users values (new.id + 100, new.email, 1); end if; return null; end $$;
        create trigger twin after insert on users for each row execute function twin()`)
      const recorded = await recordedBy(`insert into users values (4, 'd', 8)`)
      expect(recorded).toHaveLength(2)
      expect(recorded).toContainEqual([['4', 'D', '8']])
      expect(recorded).toContainEqual([['104', 'D', '1']])
    })

    test('a session that had the table before it was altered', async () => {
      await engine.run('update users set org_id = 1 where id = 1')
      await engine.run(`alter table users add extra text default 'e', drop note, alter org_id type bigint`)
      await takeRecorded(engine.db)
      expect(await recordedBy(`update users set extra = 'f', org_id = 5000000000 where id = 1`)).toEqual([
        [
          ['1', 'a', '1'],
          ['1', 'a', '5000000000'],
        ],
      ])
    })

    test.each([
      ['dropped', 'alter table users drop org_id'],
      ['renamed', 'alter table users rename org_id to organisation'],
    ])(
      'a recorded column that was %s fails no write: the whole model counts as touched',
      async (_how, alter) => {
        await engine.run(`update users set note = 'warm' where id = 1`)
        await engine.run(alter)
        await takeRecorded(engine.db)
        expect(await recordedBy(`update users set email = 'x' where id = 1`)).toEqual(['all'])
        expect(
          await recordedBy('insert into users (id) values (50); delete from users where id = 50'),
        ).toEqual(['all', 'all'])
      },
    )
  })

  describe('large statements', () => {
    beforeEach(() => given(CREATE_USERS, USERS, { maxTouchedRows: 10 }))
    const insert = (count: number) =>
      `insert into users select i, 'u' || i, 1 from generate_series(1, ${count}) i`

    test('up to maxTouchedRows: every tuple', async () => {
      expect((await recordedBy(insert(10)))[0]).toHaveLength(10)
      expect((await recordedBy('update users set org_id = 2'))[0]).toHaveLength(20)
      expect((await recordedBy('delete from users'))[0]).toHaveLength(10)
    })

    test('more: the whole model, once', async () => {
      expect(await recordedBy(insert(11))).toEqual(['all'])
      expect(await recordedBy('update users set org_id = 2')).toEqual(['all'])
      expect(await recordedBy('delete from users')).toEqual(['all'])
    })

    test('more rows with few distinct tuples are still more rows', async () => {
      await engine.reset()
      await given(
        'create table logs (id int, kind text)',
        { logs: { keyFields: [['kind']] } },
        { maxTouchedRows: 3 },
      )
      const insert = (count: number) => `insert into logs select i, 'a' from generate_series(1, ${count}) i`
      expect(new Set((await recordedBy(insert(3))).flat().map(String))).toEqual(new Set(['a']))
      expect(await recordedBy(insert(4))).toEqual(['all'])
    })

    test('an update that leaves some keys as they are and changes others records each tuple once', async () => {
      await engine.run(insert(4))
      await takeRecorded(engine.db)
      expect(
        await recordedBy('update users set org_id = 2 where id = 3; update users set org_id = 2'),
      ).toEqual([
        [
          ['3', 'u3', '1'],
          ['3', 'u3', '2'],
        ],
        [
          ['1', 'u1', '1'],
          ['1', 'u1', '2'],
          ['2', 'u2', '1'],
          ['2', 'u2', '2'],
          ['3', 'u3', '2'],
          ['4', 'u4', '1'],
          ['4', 'u4', '2'],
        ],
      ])
    })
  })

  describe('foreign keys', () => {
    const models = {
      orgs: { keyFields: [['id']] },
      members: { keyFields: [['id']], filterFields: [['org_id']] },
    }
    const tables = (action: string) => `create table orgs (id int primary key);
      create table members (id int primary key, org_id int references orgs ${action});
      insert into orgs values (1), (2), (3); insert into members values (10, 1), (11, 1), (12, 2), (13, 3)`

    test('ON DELETE CASCADE', async () => {
      await given(tables('on delete cascade'), models)
      const tuples = (await recordedBy('delete from orgs where id < 3')).flat()
      expect(tuples.sort()).toEqual([['1'], ['10', '1'], ['11', '1'], ['12', '2'], ['2']])
    })

    test('ON DELETE SET NULL, ON UPDATE CASCADE', async () => {
      await given(tables('on delete set null on update cascade'), models)
      const deleted = (await recordedBy('delete from orgs where id = 2')).flat()
      expect(deleted.sort()).toEqual([['12', null], ['12', '2'], ['2']])
      const updated = (await recordedBy('update orgs set id = 100 where id = 1')).flat()
      expect(updated.sort()).toEqual([['1'], ['10', '1'], ['10', '100'], ['100'], ['11', '1'], ['11', '100']])
    })

    test('TRUNCATE CASCADE: the referencing tables too', async () => {
      await given(tables(''), models)
      await engine.run('truncate orgs cascade')
      const recorded = await takeRecorded(engine.db)
      expect(recorded.map(({ model, touched }) => [model, touched]).sort()).toEqual([
        ['members', null],
        ['orgs', null],
      ])
    })
  })

  describe('partitions and inheritance', () => {
    const events = { events: { keyFields: [['id', 'day']], filterFields: [['kind']] } }
    const partitioned = `create table events (id int not null, day int not null, kind text) partition by range (day);
      create table "Events 1" partition of events for values from (0) to (10);
      create table events_2 (kind text, day int not null, id int not null) partition by list (kind);
      alter table events attach partition events_2 for values from (10) to (20);
      create table events_2a partition of events_2 for values in ('a');
      create table events_2b partition of events_2 default`

    test('through the parent, over several partitions', async () => {
      await given(partitioned, events)
      expect(await recordedBy(`insert into events values (1, 1, 'a'), (2, 11, 'a'), (3, 11, 'b')`)).toEqual([
        [
          ['1', '1', 'a'],
          ['2', '11', 'a'],
          ['3', '11', 'b'],
        ],
      ])
      // A row that moves to another partition is deleted there and inserted here.
      expect((await recordedBy(`update events set day = 12, kind = 'c' where id = 1`)).flat()).toEqual(
        expect.arrayContaining([
          ['1', '1', 'a'],
          ['1', '12', 'c'],
        ]),
      )
      expect(await recordedBy(`delete from events where kind = 'b'`)).toEqual([[['3', '11', 'b']]])
    })

    test('through any partition, whatever the order of its columns', async () => {
      await given(partitioned, events)
      expect(await recordedBy(`insert into "Events 1" values (1, 1, 'a')`)).toEqual([[['1', '1', 'a']]])
      expect(await recordedBy(`insert into events_2 values ('b', 11, 2)`)).toEqual([[['2', '11', 'b']]])
      expect(await recordedBy(`insert into events_2a values ('a', 11, 3)`)).toEqual([[['3', '11', 'a']]])
      expect(await recordedBy('update events_2b set id = 4')).toEqual([
        [
          ['2', '11', 'b'],
          ['4', '11', 'b'],
        ],
      ])
      expect(await recordedBy(`delete from "Events 1"`)).toEqual([[['1', '1', 'a']]])
      expect(await recordedBy('truncate events_2b')).toEqual(['all'])
      expect((await recordedBy('truncate events')).length).toBeGreaterThan(0)
    })

    test('a cascade into a partitioned table', async () => {
      await given(
        `create table kinds (name text primary key); insert into kinds values ('a'), ('b'); ${partitioned};
        alter table events add foreign key (kind) references kinds on delete cascade`,
        events,
      )
      await recordedBy(`insert into events values (1, 1, 'a'), (2, 11, 'a'), (3, 11, 'b')`)
      const tuples = (await recordedBy(`delete from kinds where name = 'a'`)).flat()
      expect(tuples.sort()).toEqual([
        ['1', '1', 'a'],
        ['2', '11', 'a'],
      ])
    })

    test('a model of one partition sees what is written through the parent', async () => {
      await given(partitioned, { events_2: events.events })
      expect(await recordedBy(`insert into events values (2, 11, 'a')`)).toEqual([[['2', '11', 'a']]])
      expect(await recordedBy('delete from events_2a')).toEqual([[['2', '11', 'a']]])
    })

    const inherited = `create table animals (id int primary key, name text);
      create table cats (lives int) inherits (animals); create table kittens () inherits (cats)`

    test('inheritance: through the parent, and through a child', async () => {
      await given(inherited, { animals: { keyFields: [['id']], filterFields: [['name']] } })
      expect(await recordedBy(`insert into kittens values (1, 'a', 9)`)).toEqual([[['1', 'a']]])
      expect(await recordedBy(`update animals set name = 'b'`)).toEqual([
        [
          ['1', 'a'],
          ['1', 'b'],
        ],
      ])
      expect(await recordedBy('delete from cats')).toEqual([[['1', 'b']]])
    })

    test('a model of a child whose keys the parent does not have: writes through the parent touch all of it', async () => {
      await given(inherited, { cats: { keyFields: [['id']], filterFields: [['lives']] } })
      await recordedBy(`insert into cats values (1, 'a', 9)`)
      expect(await recordedBy(`update animals set name = 'b'`)).toEqual(['all'])
      expect(await recordedBy('update cats set lives = 8')).toEqual([
        [
          ['1', '8'],
          ['1', '9'],
        ],
      ])
    })
  })

  describe('names', () => {
    test('anything Postgres takes for a name', async () => {
      const table = `it's "a" \\ %s $loadstone$ $$ --`
      const column = `new_rows "x" 'y' \\ %I {}`
      const quoted = (name: string) => `"${name.replaceAll('"', '""')}"`
      await given(
        `create table ${quoted(table)} (${quoted(column)} text primary key, touched int, "select" int);
        create schema if not exists other; create table if not exists other.users (id int)`,
        {
          [table]: { keyFields: [[column]], filterFields: [['touched', 'select']] },
          'other.users': { keyFields: [['id']] },
        },
        { namespace: `ns' \\ "$loadstone$"` },
      )
      await engine.run(`insert into ${quoted(table)} values ('"}'']\\', 1, null)`)
      await engine.run('insert into other.users values (1)')
      const recorded = await takeRecorded(engine.db)
      expect(recorded.map(({ namespace, model, touched }) => [namespace, model, touched?.rows])).toEqual([
        [`ns' \\ "$loadstone$"`, table, [[`"}']\\`, '1', null]]],
        [`ns' \\ "$loadstone$"`, 'other.users', [['1']]],
      ])
    })
  })

  test('several namespaces and models on one table', async () => {
    await given(CREATE_USERS, USERS)
    await install(
      engine.db,
      await planOf(engine.db, { users: { keyFields: [['id']] } }, { namespace: 'blog' }),
    )
    await takeRecorded(engine.db)
    await engine.run(`insert into users values (1, 'a', 7)`)
    const recorded = await takeRecorded(engine.db)
    expect(recorded.map(({ namespace, touched }) => [namespace, touched?.rows]).sort()).toEqual([
      ['blog', [['1']]],
      ['shop', [['1', 'a', '7']]],
    ])
  })

  describe('who writes', () => {
    const role = `writer_${Math.random().toString(36).slice(2)}`
    beforeAll(() => engine.run(`create role ${role}`))
    afterAll(() => engine.run(`drop owned by ${role}; drop role ${role}`))

    test('a role without any rights but on the table, under row-level security', async () => {
      await given(
        `${CREATE_USERS}; insert into users values (1, 'a', 7), (2, 'b', 8);
        alter table users enable row level security; alter table users force row level security;
        create policy own on users using (org_id = 7) with check (true);
        grant usage on schema public to ${role}; grant select, insert, update, delete on users to ${role}`,
        USERS,
      )
      try {
        await engine.run(`set role ${role}`)
        await engine.run(
          `insert into users values (3, 'c', 9); update users set org_id = 10; delete from users`,
        )
        await expect(engine.run('delete from loadstone.outbox')).rejects.toThrow('permission denied')
      } finally {
        await engine.run('reset role')
      }
      expect(await takeTuples(engine.db)).toEqual([
        [['3', 'c', '9']],
        [
          ['1', 'a', '10'],
          ['1', 'a', '7'],
        ],
      ])
    })
  })

  test('nothing on the search_path of a writer runs with the rights of the function', async () => {
    await given(`${CREATE_USERS}; insert into users values (1, 'a', 7), (2, 'b', 8)`, USERS)
    const evil = `begin raise exception 'evil runs as %', current_user; end`
    const operators = ['=', '<>', '<=', '||'].flatMap((operator) =>
      ['text', 'text[]', 'anyarray', 'int'].map((type) => {
        const fn = `${type === 'anyarray' ? 'polymorphic' : 'compare'}${operator === '||' ? '_text' : ''}`
        return `create operator evil.${operator} (leftarg = ${type}, rightarg = ${type}, function = evil.${fn});`
      }),
    )
    const functions = ['text', 'text[]', 'int'].map(
      (type) => `
      create function evil.compare(${type}, ${type}) returns bool language plpgsql as $$ ${evil} $$;
      create function evil.compare_text(${type}, ${type}) returns ${type} language plpgsql as $$ ${evil} $$;`,
    )
    await engine.run(`create schema evil;
      ${functions.join('')}
      create function evil.polymorphic(anyarray, anyarray) returns bool language plpgsql as $$ ${evil} $$;
      create function evil.polymorphic_text(anyarray, anyarray) returns anyarray language plpgsql as $$ ${evil} $$;
      ${operators.join('')}
      create function evil.array_length(anyarray, int) returns int language plpgsql as $$ ${evil} $$;
      create function evil.array_length(text[], int) returns int language plpgsql as $$ ${evil} $$;
      create function evil.array_to_json(anyarray) returns json language plpgsql as $$ ${evil} $$;
      create function evil.array_to_json(text[]) returns json language plpgsql as $$ ${evil} $$;
      create aggregate evil.array_agg(anyarray) (sfunc = evil.polymorphic_text, stype = anyarray);
      create domain evil.text as pg_catalog.text check (false); create domain evil.json as pg_catalog.json check (false);
      create collation evil."C" from pg_catalog."POSIX";
      create table evil.new_rows (id int); create table evil.old_rows (id int); create table evil.outbox (id int);
      create temp table new_rows (id int); create temp table old_rows (id int);
      set search_path = evil, pg_temp, public, pg_catalog`)
    try {
      await expect(
        engine.run(`do $$ begin if 'a'::pg_catalog.text = 'b' then end if; end $$`),
      ).rejects.toThrow('evil runs')
      await engine.run(`insert into public.users (id, email) values (3::int4, 'c');
        update public.users set email = 'd' where id operator(pg_catalog.=) 3;
        update public.users set org_id = 9; delete from public.users`)
    } finally {
      await engine.run(
        'reset search_path; drop schema evil cascade; drop table pg_temp.new_rows, pg_temp.old_rows',
      )
    }
    // An error would have counted as the whole model.
    expect((await takeTuples(engine.db)).map((tuples) => tuples.length)).toEqual([1, 2, 6, 3])
  })

  describe('printed values', () => {
    const SETTINGS = [
      `set DateStyle = 'SQL, DMY'; set TimeZone = 'Asia/Kathmandu'; set extra_float_digits = -15; set bytea_output = 'escape'; set IntervalStyle = 'iso_8601'`,
      'reset DateStyle; reset TimeZone; reset extra_float_digits; reset bytea_output; reset IntervalStyle',
    ] as const

    const TYPES: readonly (readonly [type: string, ...values: string[]])[] = [
      ['smallint', '-1'],
      ['integer', '42'],
      ['bigint', '9007199254740993'],
      ['oid', '4294967295'],
      ['numeric', '1.500', '-0.00', '100000000000000000000000.10', '0.0000001'],
      ['real', '0.1', '1e30', '-0'],
      ['double precision', '0.1', '0.30000000000000004', '1e21', '-1e-7', '123456789012345680'],
      ['boolean', 'true', 'false'],
      ['text', 'a', '', ' x ', "\"\\''\n{},[]", 'ü€😀', 'null', 'NULL'],
      ['varchar(20)', 'a '],
      ['char(5)', 'ab', 'ab   '],
      ['name', 'n'],
      ['citext', 'MiXed'],
      ['uuid', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'],
      ['bytea', '\\x00ff5c27', '\\x'],
      ['date', '2024-02-29', '0044-03-15 BC', '12345-01-01'],
      ['timestamp', '2024-02-29 23:59:59.120', '1999-01-01', '0044-03-15 01:02:03 BC'],
      ['timestamptz', '2024-02-29 23:59:59.123+00', '1970-01-01 00:00:00+05:45'],
      ['mood', 'so so'],
      ['small_number', '7'],
      ['moment', '2024-01-01 00:00:00+00'],
    ]

    test('are those that lookups ask for, whatever the session has set', async () => {
      await engine.run(`create extension if not exists citext; create type mood as enum ('fine', 'so so');
        create domain positive as int check (value > 0); create domain small_number as positive;
        create domain moment as timestamptz`)
      const columns = TYPES.map(([type], i) => `c${i} ${type}`).join(', ')
      const fields = TYPES.map((_type, i) => [`c${i}`])
      await given(`create table things (id int primary key, ${columns})`, {
        things: { keyFields: [['id']], filterFields: fields },
      })
      await engine.run(SETTINGS[0])
      const longest = Math.max(...TYPES.map(([, ...values]) => values.length))
      try {
        for (let i = 0; i < longest; i++) {
          const values = TYPES.map(([type, ...values]) => {
            const text = values[Math.min(i, values.length - 1)] as string
            return `'${text.replaceAll("'", "''")}'::text::${type}`
          })
          // ISO dates are read alike with every DateStyle.
          await engine.run(`insert into things values (${i}, ${values.join(', ')})`)
        }
      } finally {
        await engine.run(SETTINGS[1])
      }
      const touched = new Set(
        touchedKeys((await takeRecorded(engine.db)).map((row) => ({ ...row, xid: '', id: '' }))).keys,
      )

      const definition = defineModel('things', { keyFields: [['id']], filterFields: fields })
      const model = bindModel('shop', definition, await describeTable(engine.db, definition), 0, [])
      const asked = new Map<string, string>()
      for (const row of await engine.db.selectFrom('things').selectAll().execute()) {
        for (const [i, [type]] of TYPES.entries()) {
          const value = row[`c${i}`]
          // PGlite cannot read years before Christ.
          if (value instanceof Date && Number.isNaN(value.getTime())) continue
          const values = { [`c${i}`]: value }
          const { route, key } = model.targets.get(shapeOf(definition, 'filter', values))!.addressOf(values)
          // What a lookup is not sure of is not cached.
          if (route === 'store') asked.set(key, `${type}: ${String(value)}`)
        }
      }
      expect(asked.size).toBeGreaterThan(TYPES.length)
      expect([...asked].filter(([key]) => !touched.has(key))).toEqual([])
    })

    test('generated columns, columns with a nondeterministic collation', async () => {
      await given(
        `create collation blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        create table words (id int primary key, word text collate blind, twice text generated always as (word || word) stored)`,
        { words: { keyFields: [['id']], filterFields: [['word'], ['twice']] } },
      )
      expect(await recordedBy(`insert into words values (1, 'a'), (2, 'b')`)).toEqual([
        [
          ['1', 'a', 'aa'],
          ['2', 'b', 'bb'],
        ],
      ])
      // Equal to the collation, and yet another text.
      expect(await recordedBy(`update words set word = 'A' where id = 1`)).toEqual([
        [
          ['1', 'A', 'AA'],
          ['1', 'a', 'aa'],
        ],
      ])
    })

    test('a session that reads backslashes in its own way', async () => {
      await given(`create table "back\\slash" ("c\\n" text)`, { 'back\\slash': { keyFields: [['c\\n']] } })
      await engine.run('set standard_conforming_strings = off; set escape_string_warning = off')
      try {
        await engine.run(`insert into "back\\slash" values ('a')`)
        expect(await takeRecorded(engine.db)).toMatchObject([
          { model: 'back\\slash', touched: { columns: [['c\\n', 'text']], rows: [['a']] } },
        ])
      } finally {
        await engine.run('reset standard_conforming_strings; reset escape_string_warning')
      }
    })
  })
})

describe('names of functions and triggers', () => {
  test('are readable where they can be', () => {
    expect(functionName('shop', 'billing.users')).toBe('touch shop/billing.users')
    expect(triggerName('truncate', 'shop', 'users')).toBe('loadstone truncate shop/users')
  })

  test('fit into 63 bytes, and no two models share one', () => {
    const parts = [
      'a',
      'b',
      'a/b',
      'a#b',
      'a b',
      'a_b',
      'ä',
      'é',
      '',
      '"',
      'x'.repeat(40),
      `${'x'.repeat(40)}y`,
      'users#1234567890abcdef',
    ]
    const names = parts.flatMap((namespace) =>
      parts.map((model) => triggerName('truncate', namespace, model)),
    )
    expect(new Set(names).size).toBe(parts.length ** 2)
    for (const name of names) expect(Buffer.byteLength(name)).toBeLessThanOrEqual(63)
  })
})
