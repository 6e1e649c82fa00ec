import type { Kysely } from 'kysely'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Tables } from '../../src/sources/database.ts'
import { openPostgres, type SourceDatabase, type Statement } from './databases.ts'
import { type Lookups, lookups } from './lookups.ts'

/*
 * The statements of a source over a table of 200,000 rows, as Postgres plans them with its default settings. However
 * many keys there are, and whatever their type, no index must be missed for the form that the statement has.
 */
const COLUMNS = ['id', 'email', 'handle', 'code', 'uuid', 'score', 'ratio', 'hash', 'joined'] as const

let database: SourceDatabase
let db: Kysely<Tables>
let statements: Statement[]
let users: Lookups

beforeAll(async () => {
  database = await openPostgres()
  await database.run(`
    create extension citext;
    create domain handle as text;
    create unlogged table users as
      select i::int8 as id, ('user' || i || '@example.org')::citext as email, ('h' || i)::handle as handle,
        ('c' || i)::char(10) as code, md5(i::text)::uuid as uuid, (i / 100.0)::numeric(12, 2) as score,
        (i / 7.0)::float8 as ratio, decode(md5(i::text), 'hex') as hash,
        timestamptz '2020-01-01' + i * interval '1 hour' as joined,
        nullif(i / 3, 100) as org_id, nullif('role' || i % 5, 'role0') as role, repeat('x', 100) as bio
      from generate_series(1, 200000) i;
    alter table users ${COLUMNS.map((column) => `add unique (${column})`).join(', ')};
    create index on users (org_id, role)`)
  await database.run('vacuum analyze users')
  ;({ db, statements } = database.kysely())
  users = await lookups(db, 'users', {
    keyFields: [...COLUMNS.map((column) => [column]), ['org_id', 'id']],
    filterFields: [['org_id'], ['org_id', 'role']],
    orderBy: [['joined', 'desc']],
  })
}, 60_000)
afterAll(() => database.close())

/** The plan of the statement that `look` sends, as lines. */
async function planOf(look: () => Promise<unknown>): Promise<string> {
  await look()
  const { sql, parameters } = statements.at(-1) as Statement
  const rows = await database.query(`explain ${sql}`, parameters)
  return rows.map((row) => row['QUERY PLAN']).join('\n')
}

const several = <T>(count: number, value: (i: number) => T) =>
  Array.from({ length: count }, (_, i) => value(i + 1))

const md5 = async (count: number) =>
  (await database.query('select uuid, hash from users where id <= $1 order by id', [count])) as {
    uuid: string
    hash: Buffer
  }[]

test.each([1, 100, 1_000])('%i keys of any type are found by an index', async (count) => {
  const hashes = await md5(count)
  const values: Record<(typeof COLUMNS)[number], (i: number) => unknown> = {
    id: (i) => i * 39,
    email: (i) => `User${i * 39}@example.org`,
    handle: (i) => `h${i * 39}`,
    code: (i) => `c${i * 39}`,
    uuid: (i) => hashes[i - 1]?.uuid,
    score: (i) => i / 100,
    ratio: (i) => i / 7,
    hash: (i) => hashes[i - 1]?.hash,
    joined: (i) => new Date(Date.UTC(2020, 0, 1, i)),
  }
  for (const column of COLUMNS) {
    const plan = await planOf(() => users.get(...several(count, (i) => ({ [column]: values[column](i) }))))
    expect(plan).toContain(`Index Scan using users_${column}_key on users`)
    expect(plan).not.toContain('Seq Scan')
  }
})

// Of so many keys, Postgres would hash the whole table were it only somewhat smaller, and rightly so.
test('5,000 keys are found by an index', async () => {
  const plan = await planOf(() => users.get(...several(5_000, (i) => ({ id: i * 39 }))))
  expect(plan).toContain('Index Scan using users_id_key on users')
  expect(plan).not.toContain('Seq Scan')
})

test.each([1, 100, 5_000])('%i composite keys are found by an index', async (count) => {
  const plan = await planOf(() => users.get(...several(count, (id) => ({ id, org_id: Math.floor(id / 3) }))))
  expect(plan).toContain('Index Scan using')
  expect(plan).not.toContain('Seq Scan')
})

test.each([1, 100, 1_000])('%i filters are found by an index', async (count) => {
  for (const filter of [
    (i: number) => ({ org_id: i }),
    (i: number) => ({ org_id: i, role: `role${i % 5}` }),
  ]) {
    const plan = await planOf(() => users.filter(...several(count, filter)))
    expect(plan).toContain('users_org_id_role_idx')
    expect(plan).not.toContain('Seq Scan')
  }
})

test.each([1, 100, 1_000])('%i filters with NULLs among them are found by an index', async (count) => {
  const nulls: ((i: number) => Record<string, unknown>)[] = [
    (i) => ({ org_id: i === 1 ? null : i }),
    (i) => ({ org_id: i, role: i % 2 === 1 ? null : `role${i % 5}` }),
    (i) => ({ org_id: i % 10 === 1 ? null : i, role: i % 3 === 1 ? null : `role${i % 5}` }),
  ]
  for (const filter of nulls) {
    const plan = await planOf(() => users.filter(...several(count, filter)))
    expect(plan).toContain('users_org_id_role_idx')
    expect(plan).not.toContain('Seq Scan')
  }
})

test('the same statement, prepared and run often, still uses the index', async () => {
  await users.get({ id: 1 })
  const { sql } = statements.at(-1) as Statement
  await database.run(`set plan_cache_mode = force_generic_plan; prepare by_id (text[]) as ${sql}`)
  const plan = await database.query(`explain execute by_id('{1,2,3}')`)
  expect(JSON.stringify(plan)).toContain('Index Scan using users_id_key')
})
