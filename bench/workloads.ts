import { AssertionError, deepStrictEqual } from 'node:assert'
import type { Contender } from './contender.ts'
import { idsOfOrg, range, rowOf, TABLES } from './data.ts'

/** What is timed: a turn, again and again. Turns differ in what they look up, and after `turns` begin anew. */
export interface Workload {
  readonly name: string
  /** As it stands in reports. */
  readonly title: string
  /** How many lookups one turn is. */
  readonly lookups: number
  readonly turns: number
  /** Redis is emptied before every sample, and no turn is run twice. */
  readonly cold?: true
  /** Unit of the report; default 'µs'. */
  readonly unit?: 'ns'
  /** Makes the turns. Undefined: the contender has no such thing. */
  begin(contender: Contender): Promise<RunTurn | undefined>
  /** What a turn must give. Undefined: nothing to compare. */
  expected?(turn: number): unknown
}

export type RunTurn = (turn: number) => Promise<unknown> | unknown

const WARM_ROWS = 1_000
const SCOPES = 64
const SCOPE_KEYS = 20
const MEMO_ROWS = 100
const MEMO_LOOKUPS = 1_000

export const WORKLOADS: readonly Workload[] = [
  warm(1, '1 warm key'),
  warm(10, '10 warm keys'),
  warm(100, '100 warm keys'),
  warm(1_000, '1000 warm keys'),
  mixed(),
  scopes(),
  lists(),
  cold(),
  {
    ...memo('memo', 'memo hit, awaited'),
    begin: async (contender) => {
      const known = await contender.known?.(range(MEMO_ROWS, 1))
      return known && ((turn) => known.load(memoIds(turn)))
    },
  },
  {
    ...memo('peek', 'peek'),
    begin: async (contender) => {
      const { peek } = (await contender.known?.(range(MEMO_ROWS, 1))) ?? {}
      return peek && ((turn) => peek(memoIds(turn)))
    },
  },
  {
    name: 'scope',
    title: 'empty scope',
    lookups: 1_000,
    turns: 1,
    unit: 'ns',
    begin: async (contender) => contender.emptyRequests && (() => contender.emptyRequests?.(1_000)),
  },
]

function warm(count: number, title: string): Workload {
  // Not always the same keys, but few enough to be looked at as a whole before every sample.
  const batches = range(Math.min(WARM_ROWS / count, 50), 0).map((batch) => range(count, batch * count + 1))
  return {
    name: `warm-${count}`,
    title,
    lookups: count,
    turns: batches.length,
    begin: async (contender) => (turn) => contender.rows(batches[turn] as number[]),
    expected: (turn) => batches[turn]?.map((id) => rowOf('users', id)),
  }
}

function mixed(): Workload {
  const batches = range(5, 0).map((batch) => range(20, batch * 20 + 1))
  return {
    name: 'mixed',
    title: '5 models x 20 warm keys',
    lookups: 100,
    turns: batches.length,
    begin: async (contender) => (turn) => contender.mixed(batches[turn] as number[]),
    expected: (turn) => TABLES.flatMap((table) => batches[turn]?.map((id) => rowOf(table, id))),
  }
}

function scopes(): Workload {
  const batches = range(SCOPES, 0).map((scope) => range(SCOPE_KEYS, ((scope * SCOPE_KEYS) % WARM_ROWS) + 1))
  return {
    name: 'scopes',
    title: `${SCOPES} scopes at once x ${SCOPE_KEYS} keys`,
    lookups: SCOPES * SCOPE_KEYS,
    turns: 1,
    begin: async (contender) => () => Promise.all(batches.map((ids) => contender.rows(ids))),
    expected: () => batches.map((ids) => ids.map((id) => rowOf('users', id))),
  }
}

function lists(): Workload {
  const batches = range(5, 0).map((batch) => range(20, batch * 20 + 1))
  return {
    name: 'lists',
    title: '20 warm lists x 10 rows',
    lookups: 20,
    turns: batches.length,
    begin: async (contender) => (turn) => contender.lists(batches[turn] as number[]),
    expected: (turn) => batches[turn]?.map((org) => idsOfOrg(org).map((id) => rowOf('users', id))),
  }
}

function cold(): Workload {
  const batches = range(200, 0).map((batch) => range(100, batch * 100 + 1))
  return {
    name: 'cold-100',
    title: '100 cold keys',
    lookups: 100,
    turns: batches.length,
    cold: true,
    begin: async (contender) => (turn) => contender.rows(batches[turn] as number[]),
    expected: (turn) => batches[turn]?.map((id) => rowOf('users', id)),
  }
}

function memo(name: string, title: string) {
  return {
    name,
    title,
    lookups: MEMO_LOOKUPS,
    turns: 2,
    unit: 'ns',
    expected: (turn: number) => memoIds(turn).map((id) => rowOf('users', id)),
  } as const
}

const SAME_KEY = Array.from({ length: MEMO_LOOKUPS }, () => 7)
const KNOWN_KEYS = range(MEMO_LOOKUPS, 0).map((i) => (i % MEMO_ROWS) + 1)

/** By turns one key over and over, and all keys that are known. */
function memoIds(turn: number): readonly number[] {
  return turn % 2 === 0 ? SAME_KEY : KNOWN_KEYS
}

/**
 * Compares a turn's result with what it must be. A floor may give JSON texts in place of Dates.
 *
 * @throws AssertionError
 */
export function check(workload: Workload, turn: number, result: unknown, datesAsJson: boolean): void {
  const expected = workload.expected?.(turn)
  if (expected === undefined) return
  const plain = (value: unknown) => (datesAsJson ? JSON.parse(JSON.stringify(value)) : value)
  try {
    deepStrictEqual(plain(result), plain(expected))
  } catch (error) {
    if (!(error instanceof AssertionError)) throw error
    throw new AssertionError({
      message: `${workload.name}, turn ${turn}: wrong rows. ${error.message.slice(0, 2_000)}`,
    })
  }
}
