import type { About, Violation } from './checker.ts'
import type { History, Operation, Read, Version } from './history.ts'

const MOST_LINES = 40

interface Line {
  readonly at: number
  readonly text: string
  /** The lines without which the story makes no sense. */
  readonly essential: boolean
}

/** What happened to the key of a violation around it, process by process, in the order of time. */
export function narrate(history: History, { promise, message, about }: Violation): string {
  const title = `VIOLATED: ${promise}\n  ${message}`
  if (!about) return title
  const { key, row, read } = about
  const lines = [
    ...(history.versions.get(row) ?? [])
      .filter(({ touched }) => touched.has(key))
      .flatMap((each) => told(each, about)),
    ...history.reads.filter((each) => each.key === key).map((each) => toldRead(each, row, each === read)),
    ...history.faults.flatMap(({ what, from, to }) => [
      { at: from, text: `${'faults'.padEnd(6)} ${what}`, essential: false },
      { at: to, text: `${'faults'.padEnd(6)} over: ${what}`, essential: false },
    ]),
  ].filter(({ at }) => at <= read.to + 1)
  lines.sort((a, b) => a.at - b.at)
  return [
    title,
    `  history of ${row} under ${key}; s since the start`,
    ...shorten(lines).map((line) => show(line, history.start)),
  ].join('\n')
}

function told({ version, thing, operation }: Version, { least }: About): Line[] {
  const { name, what, began, committing, ended, outcome, deferred } = operation
  // From the version that was seen to the one that should have been.
  const essential = version >= least.from && version <= least.to
  const who = name.replace(/#.*$/, '').padEnd(6)
  const as = `v${version} ${thing ? `grp=${thing.grp} kind=${thing.kind} slug=${thing.slug}` : 'deleted'}`
  const lines = [{ at: began, text: `${who} ${name} begins: ${what}`, essential }]
  if (committing > began)
    lines.push({ at: committing, text: `${who} ${name} sends COMMIT of v${version}`, essential })
  const returned = `${who} ${name} returned '${outcome}'${deferred ? ', its clear deferred' : ''}: ${as}`
  const killed = { at: committing, text: `${who} ${name} is killed; committed ${as}`, essential }
  lines.push(Number.isFinite(ended) ? { at: ended, text: returned, essential } : killed)
  return lines
}

function toldRead({ who, from, to, seen, memo }: Read, row: string, essential: boolean): Line {
  const saw = seen.find(([id]) => row.endsWith(` ${id}`))
  const text = `${who.padEnd(6)} read, begun ${((to - from) / 1000).toFixed(4)} s ago${memo ? ' (memo)' : ''}: ${saw ? `v${saw[1]} by ${saw[2]}` : 'not there'}`
  return { at: to, text: `${text}${essential ? '   <<<<' : ''}`, essential }
}

/** The essential lines nearest to the end, and as many of the others as fit between them. */
function shorten(lines: readonly Line[]): Line[] {
  const essential = lines.filter((line) => line.essential).slice(-MOST_LINES / 2)
  const others = lines.filter((line) => !line.essential).slice(essential.length - MOST_LINES)
  const kept = new Set([...essential, ...others])
  return lines.filter((line) => kept.has(line))
}

function show({ at, text }: Line, start: number): string {
  return `  ${at < start ? '   before' : ((at - start) / 1000).toFixed(4).padStart(9)}  ${text}`
}

/** How an operation ended, for summaries. */
export function outcomeName({ outcome }: Operation): string {
  return outcome ?? 'killed'
}
