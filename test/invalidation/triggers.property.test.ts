import fc from 'fast-check'
import { sql } from 'kysely'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { install } from '../../src/invalidation/install.ts'
import { ENGINES, planOf, type TestEngine, takeTuples } from './engines.ts'

type Tuple = readonly (string | null)[]

const id = fc.integer({ min: 1, max: 8 })
const kind = fc.constantFrom(`'a'`, `'b'`, 'null')
const row = fc.tuple(id, id, kind).map(([a, b, c]) => `(${a}, ${b}, ${c})`)
const table = fc.constantFrom('items', 'items_low', 'items_high')
const condition = fc.oneof(
  id.map((value) => `id = ${value}`),
  id.map((value) => `parent > ${value}`),
  kind.map((value) => `kind is not distinct from ${value}`),
)
const change = fc.oneof(
  id.map((value) => `parent = ${value}`),
  kind.map((value) => `kind = ${value}`),
  fc.constant('kind = kind'),
  fc.constant('parent = case when parent < 8 then parent + 1 else parent end'),
)
const undo = fc.constantFrom(`raise exception 'undo';`, '')
const statement = fc.oneof(
  fc
    .tuple(table, fc.array(row, { minLength: 1, maxLength: 4 }))
    .map(([name, rows]) => `insert into ${name} values ${rows.join(', ')}`),
  fc
    .tuple(table, change, condition)
    .map(([name, what, where]) => `update ${name} set ${what} where ${where}`),
  fc.tuple(table, condition).map(([name, where]) => `delete from ${name} where ${where}`),
  fc.tuple(condition, id).map(
    ([where, value]) => `with gone as (delete from items where ${where} returning *)
    insert into items select id, ${value}, kind from gone`,
  ),
  id.map((value) => `delete from parents where id = ${value}`),
  id.map((value) => `update parents set id = id + 100 where id = ${value}`),
  fc.tuple(id, undo).map(
    ([value, undone]) => `do $$ begin
    begin delete from items where id = ${value}; ${undone} exception when raise_exception then null; end; end $$`,
  ),
)

describe.each(Object.entries(ENGINES))('on %s', (_, openEngine) => {
  let engine: TestEngine
  beforeAll(async () => {
    engine = await openEngine()
    await engine.run(`create table parents (id int primary key);
      create table items (id int, parent int references parents on delete cascade on update cascade, kind text) partition by range (id);
      create table items_low (kind text, id int, parent int);
      alter table items attach partition items_low for values from (0) to (5);
      create table items_high partition of items for values from (5) to (100)`)
    await install(engine.db, await planOf(engine.db, { items: { keyFields: [['id', 'parent', 'kind']] } }))
  })
  afterAll(() => engine.close())

  const contents = async (): Promise<string[]> => {
    const { rows } = await sql<{ tuple: string }>`
      select json_build_array(id::text, parent::text, kind)::text as tuple from items`.execute(engine.db)
    return rows.map(({ tuple }) => JSON.stringify(JSON.parse(tuple)))
  }

  test('everything that a random statement changes is recorded, and nothing that was never there', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(statement, { minLength: 1, maxLength: 6 }), async (statements) => {
        await engine.run(`truncate parents cascade; insert into parents select generate_series(1, 8);
          insert into items select i, i, 'a' from generate_series(1, 8) i; delete from loadstone.outbox`)
        for (const text of statements) {
          const before = await contents()
          // An insert into the wrong partition or a key that is taken changes nothing, and must record nothing.
          const failed = await engine.run(text).then(
            () => false,
            () => true,
          )
          const after = await contents()
          const recorded = (await takeTuples(engine.db))
            .flatMap((tuples) => tuples as Tuple[])
            .map((tuple) => JSON.stringify(tuple))
          if (failed) expect(recorded).toEqual([])
          expect(recorded).toEqual(expect.arrayContaining(difference(before, after)))
          expect([...before, ...after]).toEqual(expect.arrayContaining(recorded))
        }
      }),
      { numRuns: 60 },
    )
  }, 120_000)
})

/** The rows that are not on both sides equally often. */
function difference(before: readonly string[], after: readonly string[]): string[] {
  const count = (rows: readonly string[], wanted: string) => rows.filter((each) => each === wanted).length
  return [...new Set([...before, ...after])].filter((each) => count(before, each) !== count(after, each))
}
