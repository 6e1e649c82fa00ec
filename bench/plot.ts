import type { Report } from './report.ts'
import { summarize } from './results.ts'
import { digits } from './text.ts'

const LEFT = 200
const RIGHT = 690
const TOP = 58
const BAR = 12
const GAP = 14

/** A bar per workload and contender: how many times the client CPU of the first contender, which is the line at 1. */
export function plot({ results, contenders }: Report): string {
  const [baseline, ...others] = contenders as [string, ...string[]]
  // Those that cost nanoseconds have no Redis in them, and another scale.
  const workloads = [...results.keys()].filter(({ unit }) => unit !== 'ns')
  const bars = workloads.map((workload) => ({
    title: workload.title,
    ratios: others.map((contender) => summarize(results, workload, contender, baseline)?.ratio ?? 0),
  }))
  const most = Math.max(2, ...bars.flatMap(({ ratios }) => ratios)) * 1.05
  const x = (ratio: number) => (LEFT + (ratio / most) * (RIGHT - LEFT)).toFixed(1)
  const group = others.length * BAR + GAP
  const height = TOP + workloads.length * group + 34
  const bottom = TOP + workloads.length * group

  const ticks = Array.from({ length: Math.floor(most) + 1 }, (_, ratio) => ratio)
  const grid = ticks.map(
    (ratio) =>
      `<line class="${ratio === 1 ? 'one' : 'grid'}" x1="${x(ratio)}" x2="${x(ratio)}" y1="${TOP - 6}" y2="${bottom}"/>` +
      `<text class="tick" x="${x(ratio)}" y="${bottom + 16}">${ratio}</text>`,
  )
  const rows = bars.map(({ title, ratios }, i) => {
    const top = TOP + i * group
    const rects = ratios.map((ratio, j) => {
      const y = top + j * BAR
      const width = (Number(x(ratio)) - LEFT).toFixed(1)
      return (
        `<rect class="c${j}" x="${LEFT}" y="${y}" width="${width}" height="${BAR - 2}"/>` +
        `<text class="value" x="${Number(x(ratio)) + 4}" y="${y + BAR - 3}">${digits(ratio)}</text>`
      )
    })
    const middle = top + (ratios.length * BAR) / 2 + 3
    return `<text class="title" x="${LEFT - 10}" y="${middle}">${title.replace(' x ', ' × ')}</text>${rects.join('')}`
  })
  const legend = others.map((contender, j) => {
    const left = LEFT + j * 130
    return `<rect class="c${j}" x="${left}" y="30" width="10" height="10"/><text x="${left + 15}" y="39">${contender}</text>`
  })

  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 ${height}" width="740" height="${height}" role="img">
<title>Client CPU per lookup, ${baseline} = 1</title>
<style>
  text { font: 12px system-ui, sans-serif; fill: #424a53 }
  .heading { font-weight: 600 }
  .title { text-anchor: end }
  .tick { text-anchor: middle; font-size: 11px }
  .value { font-size: 10px }
  .grid { stroke: #8c959f; stroke-opacity: .3 }
  .one { stroke: #8c959f; stroke-width: 2 }
  .c0 { fill: #8c959f } .c1 { fill: #1f7fd6 } .c2 { fill: #c26b1d } .c3 { fill: #3c9a5f }
  @media (prefers-color-scheme: dark) { text { fill: #c3cad1 } .c1 { fill: #4a9eea } }
</style>
<text class="heading" x="${LEFT}" y="18">Client CPU per lookup, ${baseline} = 1 (shorter is better)</text>
${[...legend, ...grid, ...rows].join('\n')}
</svg>
`
}
