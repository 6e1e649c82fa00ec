import { readFileSync } from 'node:fs'
import { arch, cpus, loadavg, release, totalmem, type } from 'node:os'
import { type Results, summarize } from './results.ts'
import { counted, digits, duration, wrapped } from './text.ts'

export interface Report {
  readonly results: Results
  /** The first one is what the others are measured against. */
  readonly contenders: readonly string[]
  readonly rounds: number
  readonly sampleMs: number
  readonly conditions: Conditions
  /** Mean length of a value in Redis, by contender; empty when rows were not looked at. */
  readonly storedBytes: ReadonlyMap<string, number>
}

export interface Conditions {
  readonly date: string
  readonly machine: string
  readonly versions: string
  /** Of the last minute, before and after. More than the number of cores: others kept the machine busy. */
  readonly load: readonly [before: number, after: number]
}

const WIDTH = 100
const TITLE_WIDTH = 30

export function conditions(servers: { redis: string; postgres: string }, loadBefore: number): Conditions {
  const [cpu] = cpus()
  const packages = ['ioredis', 'kysely', 'pg', 'dataloader'].map((name) => `${name} ${packageVersion(name)}`)
  return {
    date: new Date().toISOString().slice(0, 10),
    machine: `${cpus().length} × ${cpu?.model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GiB, ${type()} ${release()} ${arch()}`,
    versions: [
      `Node ${process.versions.node}`,
      `Redis ${servers.redis}`,
      `Postgres ${servers.postgres}`,
      ...packages,
    ].join(', '),
    load: [loadBefore, loadavg()[0] as number],
  }
}

/** For the terminal. */
export function textReport({ results, contenders, conditions, storedBytes }: Report): string {
  const [baseline] = contenders as [string]
  const columns = contenders.length > 3 ? 16 : 20
  const head = 'workload'.padEnd(TITLE_WIDTH) + contenders.map((name) => name.padStart(columns)).join('')
  const rows = [...results.keys()].map((workload) => {
    const cells = contenders.map((contender) => {
      const summary = summarize(results, workload, contender, baseline)
      if (!summary) return '-'.padStart(columns)
      const ratio = summary.ratio === undefined ? '' : digits(summary.ratio)
      return `${ratio}${duration(summary.cpuNsPerLookup).padStart(9)}`.padStart(columns)
    })
    return workload.title.padEnd(TITLE_WIDTH) + cells.join('')
  })
  const counts = [...results].map(([workload, cells]) => {
    const line = [...cells].map(([contender, cell]) => `${contender} ${counted(cell.counts)}`).join('; ')
    return wrapped(workload.title.padEnd(TITLE_WIDTH) + line, WIDTH, TITLE_WIDTH)
  })
  const bytes = [...storedBytes].map(([contender, size]) => `${contender} ${size}`).join('; ')
  return [
    `Client CPU per lookup: ratio to ${baseline}, and its median on this machine in this run (the latter`,
    'means nothing elsewhere). A list is one lookup.',
    '',
    head,
    '-'.repeat(head.length),
    ...rows,
    '',
    'On the servers, per turn',
    ...counts,
    ...(bytes === '' ? [] : [`${'bytes per cached row'.padEnd(TITLE_WIDTH)}${bytes}`]),
    '',
    wrapped(
      `${conditions.date}; ${conditions.machine}; ${conditions.versions}; ${loadText(conditions)}`,
      WIDTH,
      0,
    ),
  ].join('\n')
}

/** docs/benchmarks.md */
export function markdownReport(report: Report): string {
  const { results, contenders, rounds, sampleMs, conditions, storedBytes } = report
  const [baseline] = contenders as [string]
  const table = (
    title: string,
    cell: (workload: Parameters<typeof summarize>[1], contender: string) => string,
  ) =>
    [
      `| ${title} | ${contenders.join(' | ')} |`,
      `|---|${contenders.map(() => '--:|').join('')}`,
      ...[...results.keys()].map(
        (workload) => `| ${workload.title} | ${contenders.map((name) => cell(workload, name)).join(' | ')} |`,
      ),
    ].join('\n')
  const ratios = table('workload', (workload, contender) => {
    const summary = summarize(results, workload, contender, baseline)
    if (summary?.ratio === undefined) return '-'
    if (contender === baseline) return '1'
    const [low, high] = summary.spread as readonly [number, number]
    return `**${digits(summary.ratio)}** (${digits(low)} to ${digits(high)})`
  })
  const absolute = table('workload', (workload, contender) => {
    const summary = summarize(results, workload, contender, baseline)
    return summary ? `${duration(summary.cpuNsPerLookup)}; ${duration(summary.wallNsPerTurn)}` : '-'
  })
  const counts = table('per turn', (workload, contender) => {
    const cell = results.get(workload)?.get(contender)
    return cell ? counted(cell.counts) : '-'
  })
  const bytes =
    storedBytes.size === 0
      ? ''
      : `\n| bytes per cached row | ${contenders.map((name) => storedBytes.get(name)).join(' | ')} |`

  return `# Benchmarks

<!-- Written by \`npm run bench\`. Edit bench/report.ts instead. -->

![Client CPU per lookup, relative to ${baseline}](benchmarks.svg)

What a lookup costs the application's process, compared with code written by hand for the same job:

- **floor-raw**: the least that reading from Redis can cost. One \`mget\` of all keys, \`JSON.parse\`, no promise per key;
  Dates come back as strings. Nobody can write a program like this, but nothing should cost much more.
- **floor-loader**: what a careful team writes. A DataLoader per model and request, \`mget\`, \`JSON.parse\`; misses by
  \`where id in (...)\`, then a pipeline of \`set\`. Nothing protects it from storing old rows.
- **loadstone**: as in the README. Dates are Dates.

## Client CPU per lookup, as a ratio to ${baseline}

Medians of ${rounds} rounds, and the quartiles. A list is one lookup. \`memo hit\` and \`peek\` are compared with a \`Map\` of
promises or rows, \`empty scope\` with a bare \`AsyncLocalStorage.run\`.

${ratios}

## What the servers did

Redis commands and SQL statements, as the servers counted them.

${counts}${bytes}

## Absolute numbers

Client CPU per lookup; wall time per turn (one request, or 64, or 1000 memo lookups). **They mean nothing on another
machine**: do not compare them with numbers from elsewhere, nor with those of another run.

${absolute}

## How it was measured

- ${conditions.date}, ${conditions.machine}
- ${conditions.versions}
- ${loadText(conditions)}
- Redis and Postgres on the same machine, started for this. Five tables of ten columns, about 500 bytes of JSON a row,
  one in eight with text beyond ASCII.
- Each contender has a process of its own and runs plain JS as \`npm run build\` makes it, not through tsx. They take turns
  within each round, and each sample takes ${sampleMs} ms of CPU time, after a warm-up. CPU is that of all threads of the
  process, garbage collection included.
- Before it is timed, every contender's answers are compared with the rows in the database, and a different answer ends
  the run.
- \`100 cold keys\`: Redis is emptied before every sample and no row is looked up twice. Nobody waits for fills, but their
  cost counts.

\`npm run bench\` takes about two minutes. \`npm run bench -- --quick\` is a smoke test, \`--only warm-100,mixed\` picks
workloads, \`--compare ../other-checkout\` adds the \`src\` of another checkout, \`--profile <folder>\` writes CPU profiles.
Only a whole run writes this page.
`
}

function loadText({ load: [before, after] }: Conditions): string {
  return `load average before ${before.toFixed(1)}, after ${after.toFixed(1)}`
}

function packageVersion(name: string): string {
  const manifest = new URL(`../node_modules/${name}/package.json`, import.meta.url)
  return JSON.parse(readFileSync(manifest, 'utf8')).version
}
