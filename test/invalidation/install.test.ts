import { spawnSync } from 'node:child_process'
import { existsSync, realpathSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { CamelCasePlugin, sql } from 'kysely'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { InstallError } from '../../src/errors.ts'
import { inspectInstall } from '../../src/invalidation/inspect.ts'
import { install, uninstall } from '../../src/invalidation/install.ts'
import { installSql, installStatements, uninstallSql } from '../../src/invalidation/install-sql.ts'
import { grantSql } from '../../src/invalidation/outbox.ts'
import type { InstallPlan } from '../../src/invalidation/recording.ts'
import type { Database } from '../../src/sources/database.ts'
import { findPostgres } from '../servers/find-binary.ts'
import { ENGINES, planOf, type TestEngine, takeRecorded, takeTuples } from './engines.ts'

const MODELS = {
  users: { keyFields: [['id'], ['email']] },
  orgs: { keyFields: [['id']], filterFields: [['name']] },
}
const TABLES = `create table users (id int primary key, email text, org_id int);
  create table orgs (id int primary key, name text)`

describe.each(Object.entries(ENGINES))('installing on %s', (name, openEngine) => {
  let engine: TestEngine
  let db: Database
  let plan: InstallPlan
  beforeAll(async () => {
    engine = await openEngine()
    db = engine.db
  })
  afterAll(() => engine.close())
  beforeEach(async () => {
    await engine.reset()
    await engine.run(TABLES)
    plan = await planOf(db, MODELS)
  })

  const stateOf = async (model: string, of = plan) => {
    const { models } = await inspectInstall(db, of)
    return models.find((each) => each.model === model)
  }

  describe('install', () => {
    test('tells what it made, and then has nothing to do', async () => {
      expect(await install(db, plan)).toEqual([
        'created loadstone.outbox and loadstone.stored_form',
        'created function loadstone."touch shop/users", which records id, email',
        'created trigger "loadstone insert shop/users" on "public"."users"',
        'created trigger "loadstone update shop/users" on "public"."users"',
        'created trigger "loadstone delete shop/users" on "public"."users"',
        'created trigger "loadstone truncate shop/users" on "public"."users"',
        "recorded all of model 'users' as touched, since not all of its writes were seen so far",
        'created function loadstone."touch shop/orgs", which records id, name[]',
        'created trigger "loadstone insert shop/orgs" on "public"."orgs"',
        'created trigger "loadstone update shop/orgs" on "public"."orgs"',
        'created trigger "loadstone delete shop/orgs" on "public"."orgs"',
        'created trigger "loadstone truncate shop/orgs" on "public"."orgs"',
        "recorded all of model 'orgs' as touched, since not all of its writes were seen so far",
      ])
      expect(await install(db, plan)).toEqual([])
    })

    test('has all of a model forgotten whose writes were not watched, and of no other', async () => {
      await install(db, plan)
      expect((await takeRecorded(db)).map(({ model, touched }) => [model, touched]).sort()).toEqual([
        ['orgs', null],
        ['users', null],
      ])
      await engine.run('alter table users disable trigger user')
      await install(db, plan)
      expect((await takeRecorded(db)).map(({ model, touched }) => [model, touched])).toEqual([
        ['users', null],
      ])
    })

    test('in a transaction of the caller, it is undone with it', async () => {
      const failure = new Error('no')
      const attempt = db.transaction().execute(async (trx) => {
        expect(await install(trx, plan)).toHaveLength(13)
        throw failure
      })
      await expect(attempt).rejects.toBe(failure)
      expect((await inspectInstall(db, plan)).shared).toBe('missing')
    })

    test('does not care for plugins', async () => {
      expect(await install(db.withPlugin(new CamelCasePlugin()), plan)).toHaveLength(13)
      expect(await inspectInstall(db.withPlugin(new CamelCasePlugin()), plan)).toMatchObject({
        complete: true,
      })
      expect(await uninstall(db.withPlugin(new CamelCasePlugin()), 'shop')).not.toEqual([])
    })

    test.each([
      ['view', 'create view things as select 1 as id', '"public"."things" is a view: triggers cannot tell'],
      [
        'materialized view',
        'create materialized view things as select 1 as id',
        'is a materialized view: no trigger sees',
      ],
      [
        'foreign table',
        'create foreign data wrapper f; create server s foreign data wrapper f; create foreign table things (id int) server s',
        '"public"."things" is a foreign table: no trigger sees',
      ],
      [
        'foreign partition',
        `create foreign data wrapper f; create server s foreign data wrapper f; create table things (id int) partition by list (id);
        create foreign table far partition of things for values in (1) server s`,
        '"public"."far" is a foreign table and a partition or child',
      ],
    ])('refuses a %s, saying why', async (_kind, create, message) => {
      await engine.run(create)
      try {
        const things = {
          model: 'things',
          table: { schema: 'public', name: 'things' },
          columns: [{ name: 'id', type: 'int4' }],
          shapes: [{ name: 'id', columns: ['id'] }],
          dependents: [],
        }
        const impossible = { ...plan, models: [...plan.models, things] }
        const error = await install(db, impossible).catch((reason: unknown) => reason)
        expect(error).toBeInstanceOf(InstallError)
        expect(error).toMatchObject({ code: 'ERR_INSTALL', message: expect.stringContaining(message) })
        expect(await stateOf('things', impossible)).toMatchObject({
          state: 'impossible',
          problem: expect.stringContaining(message),
        })
        expect((await inspectInstall(db, impossible)).shared).toBe('missing')
        // As unquoted as it needs to be.
        await expect(engine.run(`begin; ${installSql(impossible)}`)).rejects.toThrow(
          message.replaceAll('"', '').replace('public.things', ''),
        )
        await engine.run('rollback')
      } finally {
        await engine.run('drop foreign data wrapper if exists f cascade')
      }
    })

    test('refuses a table that is gone', async () => {
      await engine.run('drop table users')
      await expect(install(db, plan)).rejects.toThrow(`model 'users': there is no table "public"."users"`)
    })

    // Postgres 18 brought them, which PGlite is made of.
    if (name === 'PGlite') {
      test('refuses a key of a generated column that is not stored', async () => {
        const create = 'create table things (id int, twice int generated always as (id * 2) virtual)'
        await engine.run(create)
        const things = await planOf(db, { things: { keyFields: [['twice']] } })
        const message =
          'column "twice" of "public"."things" is generated, but not stored: triggers cannot see its values'
        await expect(install(db, things)).rejects.toThrow(message)
        await install(db, await planOf(db, { things: { keyFields: [['id']] } }))
      })
    }

    test('leaves alone a schema of somebody else that has the name', async () => {
      await engine.run('create schema loadstone; create table loadstone.outbox (id int)')
      expect(await inspectInstall(db, plan)).toMatchObject({ shared: 'other-version', complete: false })
      await expect(install(db, plan)).rejects.toThrow('this version of Loadstone did not make')
      await expect(engine.run(installSql(plan))).rejects.toThrow('this version of Loadstone did not make')
    })
  })

  describe('a plan that changes', () => {
    const grown = { ...MODELS, users: { keyFields: [['id'], ['email']], filterFields: [['org_id']] } }

    test('records what older code looks up besides, until told otherwise', async () => {
      await install(db, plan)
      const later = await planOf(db, grown)
      expect(await stateOf('users', later)).toMatchObject({ state: 'outdated', blind: true })
      expect(await install(db, later)).toEqual([
        'replaced function loadstone."touch shop/users", which records id, email, org_id[]',
        "recorded all of model 'users' as touched, since not all of its writes were seen so far",
      ])

      expect(await install(db, plan)).toEqual([])
      const fewer = await planOf(db, { users: { keyFields: [['org_id']] } })
      expect(await install(db, fewer)).toHaveLength(2)
      await takeRecorded(db)
      await engine.run(`insert into users values (1, 'a', 7)`)
      expect((await takeRecorded(db))[0]?.touched).toEqual({
        columns: [
          ['org_id', 'int4'],
          ['id', 'int4'],
          ['email', 'text'],
        ],
        shapes: [
          ['org_id', 0],
          ['id', 1],
          ['email', 2],
          ['org_id[]', 0],
        ],
        rows: [['7', '1', 'a']],
      })

      expect(await install(db, plan, { exact: true })).toEqual([
        'replaced function loadstone."touch shop/users", which records id, email',
      ])
      expect(await install(db, plan, { exact: true })).toEqual([])
    })

    test('gives up what was recorded of a column that is gone', async () => {
      await install(db, await planOf(db, grown))
      await engine.run('alter table users drop org_id')
      expect(await stateOf('users')).toMatchObject({
        state: 'outdated',
        problem: 'column "org_id" is recorded as int4, but is gone',
      })
      expect(await install(db, plan)).toEqual([
        'replaced function loadstone."touch shop/users", which records id, email',
      ])
      await takeRecorded(db)
      await engine.run(`insert into users values (1, 'a')`)
      expect(await takeTuples(db)).toEqual([[['1', 'a']]])
    })

    test('notices a changed type', async () => {
      await install(db, plan)
      await engine.run(`alter table users alter email type bytea using convert_to(email, 'UTF8')`)
      expect(await stateOf('users')).toMatchObject({
        state: 'outdated',
        problem: 'column "email" is recorded as text, but is bytea',
      })
      const now = await planOf(db, MODELS)
      expect(await install(db, now)).toHaveLength(2)
      expect(await inspectInstall(db, now)).toMatchObject({ complete: true })
    })

    test('notices another maxTouchedRows', async () => {
      await install(db, plan)
      const other = { ...plan, maxTouchedRows: 5 }
      expect(await stateOf('users', other)).toMatchObject({ state: 'outdated', blind: false })
      expect(await install(db, other)).toHaveLength(2)
      expect(await inspectInstall(db, other)).toMatchObject({ complete: true })
    })
  })

  describe('inspectInstall', () => {
    test('before and after', async () => {
      expect(await inspectInstall(db, plan)).toMatchObject({
        shared: 'missing',
        missingRights: [],
        complete: false,
        models: [
          {
            model: 'users',
            state: 'missing',
            problem: 'the triggers of "public"."users" for insert, update, delete, truncate are missing',
            recorded: undefined,
            function: 'missing',
            blind: true,
          },
          { model: 'orgs', state: 'missing' },
        ],
      })
      await install(db, plan)
      expect(await inspectInstall(db, plan)).toMatchObject({
        shared: 'installed',
        missingRights: [],
        complete: true,
        models: [
          {
            model: 'users',
            state: 'installed',
            problem: undefined,
            recorded: { namespace: 'shop', model: 'users', maxTouchedRows: 10_000, version: 1 },
            function: 'installed',
            blind: false,
            tables: [
              {
                name: '"public"."users"',
                triggers: {
                  insert: 'installed',
                  update: 'installed',
                  delete: 'installed',
                  truncate: 'installed',
                },
              },
            ],
            uncovered: [],
          },
          { model: 'orgs', state: 'installed' },
        ],
      })
    })

    test.each([
      [
        'a dropped trigger',
        `drop trigger "loadstone update shop/users" on users`,
        'missing',
        'the triggers of "public"."users" for update are missing',
        'created trigger "loadstone update shop/users" on "public"."users"',
      ],
      [
        'a disabled trigger',
        `alter table users disable trigger "loadstone update shop/users"`,
        'disabled',
        'the triggers of "public"."users" for update are disabled',
        'enabled trigger "loadstone update shop/users" on "public"."users"',
      ],
      [
        'a trigger for replicas only',
        `alter table users enable replica trigger "loadstone delete shop/users"`,
        'disabled',
        'for delete are disabled',
        'enabled trigger "loadstone delete shop/users" on "public"."users"',
      ],
      [
        'a table made anew',
        `drop table users; ${TABLES.split(';')[0]}`,
        'missing',
        'for insert, update, delete, truncate are missing',
        'created trigger "loadstone insert shop/users" on "public"."users"',
      ],
      [
        'a function of somebody else',
        `create or replace function loadstone."touch shop/users"() returns trigger language plpgsql as $$ begin return null; end $$`,
        'outdated',
        'is not that of this version',
        'replaced function loadstone."touch shop/users", which records id, email',
      ],
      [
        'a function without its comment',
        `comment on function loadstone."touch shop/users"() is null`,
        'outdated',
        'made by something else',
        'replaced function loadstone."touch shop/users", which records id, email',
      ],
      [
        'a function with other settings',
        `alter function loadstone."touch shop/users"() security invoker`,
        'outdated',
        'is not that of this version',
        'replaced function loadstone."touch shop/users", which records id, email',
      ],
    ])('notices %s, and install mends it', async (_what, damage, state, problem, line) => {
      await install(db, plan)
      await takeRecorded(db)
      await engine.run(damage)
      expect(await inspectInstall(db, plan)).toMatchObject({ complete: false })
      expect(await stateOf('users')).toMatchObject({ state, problem: expect.stringContaining(problem) })
      expect(await install(db, plan)).toContain(line)
      expect(await inspectInstall(db, plan)).toMatchObject({ complete: true })
      await takeRecorded(db)
      await engine.run(`insert into users values (1, 'a'); update users set email = 'b'; delete from users`)
      expect(await takeTuples(db)).toEqual([
        [['1', 'a']],
        [
          ['1', 'a'],
          ['1', 'b'],
        ],
        [['1', 'b']],
      ])
    })

    test('a trigger that always fires is as good', async () => {
      await install(db, plan)
      for (const event of ['insert', 'update', 'delete', 'truncate']) {
        await engine.run(`alter table users enable always trigger "loadstone ${event} shop/users"`)
      }
      expect(await inspectInstall(db, plan)).toMatchObject({ complete: true })
      expect(await install(db, plan)).toEqual([])
    })

    test('names partitions that came later', async () => {
      await engine.run(
        `create table logs (id int, kind text) partition by list (kind); create table logs_a partition of logs for values in ('a')`,
      )
      const logs = await planOf(db, { logs: { keyFields: [['id']] } })
      expect(await install(db, logs)).toHaveLength(1 + 1 + 8 + 1)
      await engine.run(`create table "logs b" partition of logs default`)
      expect(await stateOf('logs', logs)).toMatchObject({
        state: 'installed',
        uncovered: ['"public"."logs b"'],
      })
      expect(await inspectInstall(db, logs)).toMatchObject({ complete: false })
      expect(await install(db, logs)).toContain(
        'created trigger "loadstone insert shop/logs" on "public"."logs b"',
      )
      expect(await inspectInstall(db, logs)).toMatchObject({ complete: true })
    })

    test('what a newer version installed is left alone while it covers the plan', async () => {
      await install(db, plan)
      await engine.run(`do $$ begin execute format('comment on function loadstone."touch shop/users"() is %L',
        replace(obj_description('loadstone."touch shop/users"'::regproc), 'version 1', 'version 2')); end $$;
        comment on table loadstone.outbox is 'New. (Loadstone, install version 2)'`)
      expect(await inspectInstall(db, plan)).toMatchObject({ shared: 'other-version', complete: true })
      expect(await install(db, plan)).toEqual([])
      const more = await planOf(db, { users: { keyFields: [['id'], ['email'], ['org_id']] } })
      await expect(install(db, more)).rejects.toThrow('a newer version of Loadstone')
    })
  })

  describe('as SQL', () => {
    test('may be run twice', async () => {
      await engine.run(installSql(plan))
      expect(await inspectInstall(db, plan)).toMatchObject({ complete: true })
      await engine.run(installSql(plan))
      expect(await inspectInstall(db, plan)).toMatchObject({ complete: true })
      expect(await install(db, plan)).toEqual([])
    })

    if (name === 'Postgres')
      test('psql takes it as it is, whatever the names are', async () => {
        const initdb = findPostgres()?.initdb
        const psql = initdb && join(dirname(realpathSync(initdb)), 'psql')
        if (!psql || !existsSync(psql))
          throw new Error('psql is not where the other programs of Postgres are')
        await engine.run(`create table "it's :a \\ ""b"" :'c' :""d"" $loadstone$" ("\\ :x; $$" timestamptz)`)
        const odd = await planOf(
          db,
          { ...MODELS, 'it\'s :a \\ "b" :\'c\' :"d" $loadstone$': { keyFields: [['\\ :x; $$']] } },
          { namespace: `a\n\\! false :b ' " $1` },
        )
        const run = (text: string) => {
          const args = [engine.url as string, '-X', '-q', '-1', '-v', 'ON_ERROR_STOP=1', '-f', '-']
          return spawnSync(psql, args, { input: text, encoding: 'utf8' })
        }
        expect(run(installSql(odd))).toMatchObject({ status: 0, stdout: '', stderr: '' })
        expect(await inspectInstall(db, odd)).toMatchObject({ complete: true })
        expect(run(uninstallSql(odd.namespace))).toMatchObject({ status: 0, stdout: '' })
        expect((await inspectInstall(db, odd)).shared).toBe('missing')
      })

    test('statement by statement', async () => {
      for (const statement of installStatements(plan)) await sql.raw(statement).execute(db)
      expect(await inspectInstall(db, plan)).toMatchObject({ complete: true })
    })

    test('says what it is, whatever the names are', async () => {
      const text = installSql({ ...plan, namespace: 'a\n; drop table users; --\r\nb', models: [] })
      await engine.run(text)
      expect(await stateOf('users')).toMatchObject({ state: 'missing' })
      expect(text).toContain('-- ; drop table users; --\n')
    })

    test('removes some models of a namespace', async () => {
      await install(db, plan)
      await engine.run(uninstallSql('shop', ['users']))
      expect(await stateOf('users')).toMatchObject({ state: 'missing' })
      expect(await stateOf('orgs')).toMatchObject({ state: 'installed' })
      await engine.run(uninstallSql('shop', []))
      expect(await stateOf('orgs')).toMatchObject({ state: 'installed' })
      await engine.run(uninstallSql('shop'))
      await engine.run(uninstallSql('shop'))
      expect((await inspectInstall(db, plan)).shared).toBe('missing')
    })
  })

  describe('uninstall', () => {
    test('leaves other namespaces alone, and goes with the last one', async () => {
      const blog = await planOf(db, MODELS, { namespace: 'blog' })
      await install(db, plan)
      await install(db, blog)
      await engine.run(
        `create function loadstone.mine() returns int language sql as 'select 1'; comment on function loadstone.mine() is 'mine'`,
      )
      await takeRecorded(db)
      await install(db, { ...plan, maxTouchedRows: 5 })
      expect(await uninstall(db, 'shop')).toEqual([
        'dropped trigger "loadstone insert shop/orgs" on "public"."orgs"',
        'dropped trigger "loadstone delete shop/orgs" on "public"."orgs"',
        'dropped trigger "loadstone update shop/orgs" on "public"."orgs"',
        'dropped trigger "loadstone truncate shop/orgs" on "public"."orgs"',
        'dropped function loadstone."touch shop/orgs"',
        'dropped trigger "loadstone insert shop/users" on "public"."users"',
        'dropped trigger "loadstone delete shop/users" on "public"."users"',
        'dropped trigger "loadstone update shop/users" on "public"."users"',
        'dropped trigger "loadstone truncate shop/users" on "public"."users"',
        'dropped function loadstone."touch shop/users"',
      ])
      expect(await inspectInstall(db, blog)).toMatchObject({ complete: true })
      // The schema stays, as there is something in it that is not ours.
      expect((await uninstall(db, 'blog')).slice(-2)).toEqual([
        'dropped table loadstone.outbox',
        'dropped table loadstone.stored_form',
      ])
      await engine.run('drop function loadstone.mine(); drop schema loadstone')
      await install(db, plan)
      expect((await uninstall(db, 'shop')).at(-1)).toBe('dropped schema loadstone')
      expect(await uninstall(db, 'shop')).toEqual([])
    })
  })

  describe('rights', () => {
    const role = `deployer_${Math.random().toString(36).slice(2)}`
    beforeAll(() => engine.run(`create role ${role}`))
    afterAll(() => engine.run(`drop owned by ${role}; drop role ${role}`))
    afterEach(() => engine.run(`drop owned by ${role}`))

    const as = <Result>(run: (trx: Database) => Promise<Result>): Promise<Result> =>
      db.transaction().execute(async (trx) => {
        await sql.raw(`set local role ${role}`).execute(trx)
        return run(trx)
      })

    test('without them, the error has what somebody else has to run', async () => {
      await engine.run(`grant usage on schema public to ${role}`)
      const error = await as((trx) => install(trx, plan)).catch((reason: unknown) => reason)
      expect(error).toBeInstanceOf(InstallError)
      expect(error).toMatchObject({ transient: false, cause: { code: '42501' } })
      const message = (error as InstallError).message
      expect(message).toMatch(
        /^could not install: permission denied for database .*\. Have a role that may run this:/,
      )
      await engine.run(message.slice(message.indexOf('\n\n')))
      expect(await inspectInstall(db, plan)).toMatchObject({ complete: true })
      expect(await as((trx) => install(trx, plan))).toEqual([])
    })

    test('nobody else may put the functions on a table of their own', async () => {
      await install(db, plan)
      await engine.run(
        `grant usage on schema loadstone to ${role}; grant create, usage on schema public to ${role}`,
      )
      const abuse = as(async (trx) => {
        await sql`create table mine (id int)`.execute(trx)
        await sql`create trigger t after truncate on mine execute function loadstone."touch shop/users"()`.execute(
          trx,
        )
      })
      await expect(abuse).rejects.toThrow(/^permission denied for function .*touch shop.users/)
    })

    test('inspect tells what the role of an application lacks, and grantSql grants it', async () => {
      await install(db, plan)
      expect((await as((trx) => inspectInstall(trx, plan))).missingRights.toSorted()).toEqual([
        'delete on loadstone.outbox',
        'insert on loadstone.stored_form',
        'select on loadstone.outbox',
        'select on loadstone.stored_form',
        'update on loadstone.outbox',
        'usage on schema loadstone',
      ])
      await engine.run(grantSql(role))
      expect((await as((trx) => inspectInstall(trx, plan))).missingRights).toEqual([])
    })

    test('a second role may install beside the first, but no triggers that could not write', async () => {
      await install(db, plan)
      await engine.run(
        `grant usage, create on schema loadstone to ${role}; grant trigger on users, orgs to ${role}; grant usage on schema public to ${role}`,
      )
      const blog = await planOf(db, MODELS, { namespace: 'blog' })
      await expect(as((trx) => install(trx, blog))).rejects.toThrow(
        /^could not install: role \w+ may not insert into loadstone\.outbox/,
      )
      await engine.run(`grant insert on loadstone.outbox to ${role}`)
      expect(await as((trx) => install(trx, blog))).toHaveLength(12)
      await takeRecorded(db)
      // Its function records rows that the role itself may not read.
      await engine.run(`insert into users values (1, 'a')`)
      expect(await takeTuples(db)).toHaveLength(2)
      await uninstall(db, 'blog')
    })
  })

  const otherProcesses = name === 'Postgres' ? describe : undefined
  otherProcesses?.('while others are at work', () => {
    test('two processes that install at once', async () => {
      const lines = await Promise.all([install(db, plan), install(db, plan), install(db, plan)])
      expect(lines.map(({ length }) => length).sort()).toEqual([0, 0, 13])
    })

    test('waits for a writer no longer than it is told to', async () => {
      await engine.run(`begin; insert into users values (1, 'a')`)
      try {
        const error = await install(db, plan, { lockTimeoutMs: 50 }).catch((reason: unknown) => reason)
        expect(error).toBeInstanceOf(InstallError)
        expect(error).toMatchObject({ transient: true, cause: { code: '55P03' } })
      } finally {
        await engine.run('rollback')
      }
      expect((await inspectInstall(db, plan)).shared).toBe('missing')
    })

    test('waits for no writer when all is there, nor for those of tables that have their triggers', async () => {
      await install(db, plan)
      await engine.run('drop trigger "loadstone update shop/users" on users')
      await engine.run(`begin; insert into orgs values (1, 'a')`)
      try {
        expect(await install(db, plan, { lockTimeoutMs: 50 })).toHaveLength(2)
        await engine.run(`insert into users values (1, 'a')`)
        expect(await install(db, plan, { lockTimeoutMs: 50 })).toEqual([])
        const more = await planOf(db, { ...MODELS, orgs: { keyFields: [['id'], ['name']] } })
        expect(await install(db, more, { lockTimeoutMs: 50 })).toHaveLength(2)
      } finally {
        await engine.run('rollback')
      }
    })
  })
})
