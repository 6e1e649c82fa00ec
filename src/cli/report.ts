import type { Finding } from '../invalidation/findings.ts'
import { readableMs } from '../invalidation/findings.ts'
import type { Staleness, Unchecked, VerifyReport } from '../invalidation/verify.ts'
import { formatCount, type Styles } from './terminal.ts'

const SIGNS = { ok: 'ok', warn: 'warn', fail: 'FAIL' } as const

/** What the doctor found, by area, each cure under what it cures. */
export function describeFindings(findings: readonly Finding[], styles: Styles): string {
  const colours = { ok: styles.green, warn: styles.yellow, fail: styles.red }
  const lines: string[] = []
  let area: string | undefined
  for (const { area: ofArea, status, finding, cure } of findings) {
    if (ofArea !== area) lines.push(...(area === undefined ? [] : ['']), styles.bold(ofArea))
    area = ofArea
    lines.push(`  ${colours[status](SIGNS[status].padEnd(4))}  ${indent(finding)}`)
    if (cure !== undefined) lines.push(`        ${styles.dim('cure:')} ${indent(cure)}`)
  }
  const count = (status: Finding['status']) => findings.filter((each) => each.status === status).length
  const [failed, warned] = [count('fail'), count('warn')]
  const summary = failed + warned === 0 ? 'nothing to cure' : `${failed} failed, ${warned} to look at`
  lines.push('', (failed > 0 ? styles.red : warned > 0 ? styles.yellow : styles.green)(summary))
  return `${lines.join('\n')}\n`
}

/** A message of several lines stays in its column. */
function indent(text: string): string {
  return text.replaceAll('\n', `\n${' '.repeat(8)}`)
}

const UNCHECKED: Record<keyof Unchecked, string> = {
  gone: 'gone or cleared, or filled under another Redis master',
  otherSchema: 'stored by older or newer code',
  leased: 'being loaded',
  intended: 'about to be written',
  damaged: 'not readable, so a miss',
  unverifiable: 'whose key has only a hash of its values',
  undeclared: 'of shapes that the cache does not declare',
}

/** What was measured, for people. */
export function describeReport(report: VerifyReport, styles: Styles): string {
  const { entries, checked, stale, inFlight, overdue, repaired, unchecked, durationMs } = report
  const lines = [
    `${formatCount(checked)} of ${formatCount(entries)} entries compared with the database in ${readableMs(durationMs)}`,
    '',
    ...table(report, styles),
    '',
  ]
  for (const [why, text] of Object.entries(UNCHECKED)) {
    const count = unchecked[why as keyof Unchecked]
    if (count > 0) lines.push(styles.dim(`not compared: ${formatCount(count)} ${text}`))
  }
  if (inFlight > 0) lines.push(styles.dim(`${formatCount(inFlight)} differed, but were about to be cleared`))
  if (stale === 0) lines.push(styles.green(checked === 0 ? 'nothing to compare' : 'nothing is stale'))
  else {
    lines.push(
      styles.red(`${formatCount(stale)} stale (${percent(report)}), the oldest filled ${age(report)} ago`),
    )
    if (overdue > 0) {
      lines.push(
        `${formatCount(overdue)} of them wait in the outbox for a relay: loadstone doctor tells more`,
      )
    }
    for (const { examples } of report.shapes) for (const key of examples) lines.push(`  ${key}`)
    if (repaired > 0) lines.push(`${formatCount(repaired)} deleted`)
    else lines.push(styles.dim('--repair deletes them'))
  }
  return `${lines.join('\n')}\n`
}

function table({ shapes }: VerifyReport, styles: Styles): string[] {
  const rows = shapes.map((shape) => [
    `${shape.model}  ${shape.shape}`,
    formatCount(shape.checked),
    formatCount(shape.stale),
    shape.checked === 0 ? '' : percent(shape),
    shape.stale === 0 ? '' : age(shape),
  ])
  const header = ['shape', 'checked', 'stale', 'rate', 'oldest']
  const widths = header.map((title, i) =>
    Math.max(title.length, ...rows.map((row) => (row[i] as string).length)),
  )
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, i) => (i === 0 ? cell.padEnd(widths[i] as number) : cell.padStart(widths[i] as number)))
      .join('  ')
      .trimEnd()
  return [
    styles.bold(line(header)),
    ...rows.map((row, i) => ((shapes[i]?.stale ?? 0) > 0 ? styles.red(line(row)) : line(row))),
  ]
}

function percent({ rate }: Staleness): string {
  return `${(100 * rate).toFixed(rate > 0 && rate < 0.0001 ? 4 : 2)} %`
}

function age({ oldestStaleMs }: Staleness): string {
  return readableMs(oldestStaleMs ?? 0)
}
