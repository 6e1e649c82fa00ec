import pc from 'picocolors'
import { type Measured, WAYS, type Way } from './measure.ts'
import type { Workload } from './workloads.ts'

// As picocolors decides, but plain when the output goes to a file or another program and nobody asked for colours.
const { bold, cyan, dim, green, red, yellow } = pc.createColors(
  pc.isColorSupported && (process.stdout.isTTY || Boolean(process.env.FORCE_COLOR)),
)

const NAMES: Record<Way, string> = { plain: 'Kysely alone', cold: 'Loadstone, cold', warm: 'Loadstone, warm' }
const COLORS: Record<Way, (text: string) => string> = { plain: yellow, cold: cyan, warm: green }

const COLUMNS = [17, 7, 7, 13, 7, 10] as const
const BAR_WIDTH = 12

export function printTitle(title: string, lines: readonly string[]): void {
  print('', bold(title), ...lines.map(dim))
}

/** What was asked, and a line for each way to do it. */
export function printMeasured({ title, asks }: Workload, { results }: Measured): void {
  print('', bold(title), ...asks.map(dim), '')
  print(dim(cells(['', 'lookups', 'waves', 'store trips', 'SQL', 'time'])))
  const slowest = Math.max(...WAYS.map((way) => results[way].ms))
  for (const way of WAYS) {
    const { counts, ms } = results[way]
    const { lookups, waves, mget, acquire, fill, statements } = counts
    const store = way === 'plain' ? '–' : String(mget + acquire + fill)
    const line = [
      NAMES[way],
      lookups,
      way === 'plain' ? '–' : waves,
      store,
      statements,
      `${ms.toFixed(1)} ms`,
    ]
    print(`${COLORS[way](cells(line))}  ${COLORS[way](bar(ms / slowest))}`)
  }
}

export function printLegend(rounds: number): void {
  print(
    '',
    dim('A wave: all the lookups that are made at one moment, whoever makes them.'),
    dim('Warm, a wave is one trip to the store, and no SQL. Cold, it is two trips more'),
    dim('(take leases, store what was loaded), and one SQL statement per shape: per'),
    dim(`declared field list of a model. Time: the fastest of ${rounds} runs.`),
  )
}

export function printVerdict(problems: readonly string[]): void {
  if (problems.length === 0) {
    print('', green('✓ All counts are exactly what they must be, and all answers are the same.'), '')
    return
  }
  print('', red('✗ This is not what it must be:'))
  for (const problem of problems) print(red(`  ${problem}`))
  print('')
}

/** The first cell to the left, numbers to the right. */
function cells(values: readonly (string | number)[]): string {
  return values
    .map((value, i) => {
      const width = COLUMNS[i] ?? 0
      return i === 0 ? String(value).padEnd(width) : String(value).padStart(width)
    })
    .join('')
}

/** Eighths of a character, so that short bars differ too. */
function bar(share: number): string {
  const eighths = Math.max(1, Math.round(share * BAR_WIDTH * 8))
  const rest = eighths % 8
  return '█'.repeat(Math.floor(eighths / 8)) + (rest ? ('▏▎▍▌▋▊▉'[rest - 1] as string) : '')
}

function print(...lines: string[]): void {
  for (const line of lines) console.log(line && `  ${line}`)
}
