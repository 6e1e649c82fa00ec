import { cpus } from 'node:os'
import type { Shots } from './shots.ts'

export interface Measured extends Shots {
  readonly name: string
  readonly commandsPerRequest: number
  readonly statementsPerRequest: number
  /** Of the server's process. */
  readonly cpuMsPerRequest: number
  readonly rejections: number
}

export interface Sample {
  readonly minutes: number
  readonly rssBytes: number
  readonly heapBytes: number
}

export interface LoadReport {
  readonly calm: readonly Measured[]
  readonly faults: readonly Measured[]
  readonly seconds: number
  readonly connections: number
}

export function markdown({ calm, faults, seconds, connections }: LoadReport): string {
  return `# The GraphQL example under load

Measured by \`npm run load\` on ${new Date().toISOString().slice(0, 10)}: Node ${process.versions.node}, ${cpus().length} cores, on which the server, the load,
Redis and Postgres are all at once; ${connections} requests at a time for ${seconds} s each, an event with its 25 or so tickets, their
holders and orders. Absolute numbers mean little elsewhere. *dataloader* batches per request and keeps nothing, *none* is
a statement per lookup.

![p99 of each](load.svg)

## In calm

${table(calm)}

## With Loadstone, while Redis fails

Each fault begins under load and lasts for a whole measurement; the one *after it* begins when it is over.

${table(faults)}
`
}

function table(rows: readonly Measured[]): string {
  const lines = rows.map((row) =>
    [
      row.name,
      row.perSecond.toFixed(0),
      `${row.p50Ms} ms`,
      `${row.p99Ms} ms`,
      `${row.maxMs} ms`,
      row.commandsPerRequest.toFixed(1),
      row.statementsPerRequest.toFixed(1),
      `${row.cpuMsPerRequest.toFixed(2)} ms`,
      row.errors,
    ].join(' | '),
  )
  return [
    '| | requests/s | p50 | p99 | longest | Redis commands per request | SQL per request | CPU per request | failed |',
    '|---|--:|--:|--:|--:|--:|--:|--:|--:|',
    ...lines.map((line) => `| ${line} |`),
  ].join('\n')
}

const LEFT = 230
const RIGHT = 680
const ROW = 24

/** The 99th percentile of each, as bars. */
export function plot(rows: readonly Measured[]): string {
  const most = Math.max(...rows.map(({ p99Ms }) => p99Ms), 1)
  const bars = rows.map(({ name, p50Ms, p99Ms }, i) => {
    const top = 40 + i * ROW
    const width = (ms: number) => ((ms / most) * (RIGHT - LEFT)).toFixed(1)
    return (
      `<text class="name" x="${LEFT - 10}" y="${top + 13}">${name}</text>` +
      `<rect class="p99" x="${LEFT}" y="${top}" width="${width(p99Ms)}" height="16"/>` +
      `<rect class="p50" x="${LEFT}" y="${top}" width="${width(p50Ms)}" height="16"/>` +
      `<text x="${LEFT + Number(width(p99Ms)) + 5}" y="${top + 13}">${p50Ms} / ${p99Ms}</text>`
    )
  })
  const height = 50 + rows.length * ROW
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 ${height}" width="760" height="${height}" role="img">
<title>Latency of requests, ms</title>
<style>
  text { font: 12px system-ui, sans-serif; fill: #424a53 }
  .name { text-anchor: end }
  .p50 { fill: #1f7fd6 } .p99 { fill: #8c959f }
  @media (prefers-color-scheme: dark) { text { fill: #c3cad1 } .p50 { fill: #4a9eea } }
</style>
<text x="${LEFT}" y="20">p50 (blue) and p99 of the requests, ms</text>
${bars.join('\n')}
</svg>
`
}
