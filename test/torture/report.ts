import type { Verdict } from './checker.ts'
import type { History } from './history.ts'
import { narrate, outcomeName } from './narrate.ts'

export interface Report {
  readonly seed: number
  /** How many violations there are, by promise. */
  readonly violations: Readonly<Record<string, number>>
  /** What happened, in numbers. */
  readonly summary: string
  /** The first violations of each promise, with what happened before them. */
  readonly histories: readonly string[]
}

const HISTORIES_PER_PROMISE = 2
const COUNTS = [
  'lookups',
  'hits',
  'misses',
  'joined',
  'waitedOut',
  'storeErrors',
  'cleared',
  'deferred',
  'relayed',
]

export function report(seed: number, history: History, verdict: Verdict): Report {
  const violations: Record<string, number> = {}
  const histories: string[] = []
  for (const violation of verdict.violations) {
    const count = (violations[violation.promise] ?? 0) + 1
    violations[violation.promise] = count
    if (count <= HISTORIES_PER_PROMISE) histories.push(narrate(history, violation))
  }
  return { seed, violations, histories, summary: summarise(seed, history, verdict) }
}

function summarise(seed: number, history: History, verdict: Verdict): string {
  const { operations, reads, unread, faults, stats } = history
  const app = [...operations.values()].filter(({ by }) => by === 'app')
  const psql = [...operations.values()].filter(({ by }) => by === 'psql')
  const cache = COUNTS.map((name) => [name, stats.reduce((sum, each) => sum + (each[name] ?? 0), 0)] as const)
  return [
    `seed ${seed}: ${verdict.violations.length} violations`,
    `  reads ${reads.length} (${verdict.compared} rows compared), ${unread.length} failed with SQL; slowest ${Math.round(verdict.slowestLookupMs)} ms`,
    `  writes ${app.length}: ${list(count(app.map(outcomeName)))}; psql ${psql.length}`,
    `  failures: ${list(count(app.flatMap(({ outcome, error }) => (outcome === 'failed' ? [reasonOf(error ?? '')] : []))))}`,
    `  faults ${faults.length}: ${list(count(faults.map(({ kind }) => kind)))}`,
    `  cache: ${list(cache)}`,
    `  less promised: ${list(Object.entries(verdict.excused))}`,
  ].join('\n')
}

function reasonOf(error: string): string {
  const { code } = /\b(?<code>23505|40P01|40001)\b/.exec(error)?.groups ?? {}
  if (code) return { '23505': 'taken', '40P01': 'deadlock', '40001': 'conflict' }[code] as string
  return error.startsWith('StrictWriteError') ? 'StrictWriteError' : 'connection'
}

function count(names: readonly string[]): [string, number][] {
  const counts = new Map<string, number>()
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1)
  return [...counts].sort(([a], [b]) => a.localeCompare(b))
}

function list(counts: readonly (readonly [string, number])[]): string {
  return counts.map(([name, number]) => `${name} ${number}`).join(', ') || 'none'
}
