/** The part of a stream that a command writes to. */
export interface Output {
  write(text: string): unknown
  readonly isTTY?: boolean
  readonly columns?: number
}

/** What a command has of the process it runs in. */
export interface Terminal {
  readonly stdout: Output
  readonly stderr: Output
  readonly env: Readonly<Record<string, string | undefined>>
  /** Relative paths begin here. */
  readonly cwd: string
}

type Style = (text: string) => string

export interface Styles {
  readonly bold: Style
  readonly dim: Style
  readonly red: Style
  readonly green: Style
  readonly yellow: Style
}

/** Colours for a terminal; plain text for pipes and files, and where `NO_COLOR` (see no-color.org) is set. */
export function stylesFor(output: Output, env: Terminal['env']): Styles {
  const coloured = isInteractive(output, env) && !env.NO_COLOR
  const style = (open: number, close: number): Style =>
    coloured ? (text) => `\x1b[${open}m${text}\x1b[${close}m` : (text) => text
  return {
    bold: style(1, 22),
    dim: style(2, 22),
    red: style(31, 39),
    green: style(32, 39),
    yellow: style(33, 39),
  }
}

function isInteractive(output: Output, env: Terminal['env']): boolean {
  return output.isTTY === true && env.TERM !== 'dumb'
}

/** A line at the end of the terminal that tells how far something is. */
export interface ProgressLine {
  /** @param total undefined while nobody knows */
  show(what: string, done: number, total: number | undefined): void
  /** Takes the line away. */
  end(): void
}

const BAR_WIDTH = 30
const REDRAW_MS = 50

/** A progress line on a terminal; nothing at all elsewhere. */
export function progressLine(output: Output, env: Terminal['env']): ProgressLine {
  if (!isInteractive(output, env)) return { show: () => undefined, end: () => undefined }
  const { dim } = stylesFor(output, env)
  let drawnAt = Number.NEGATIVE_INFINITY
  return {
    show(what, done, total) {
      const now = performance.now()
      if (now - drawnAt < REDRAW_MS && done !== total) return
      drawnAt = now
      const filled = total ? Math.round((BAR_WIDTH * Math.min(done, total)) / total) : 0
      const bar = total === undefined ? '' : `${'█'.repeat(filled)}${dim('░'.repeat(BAR_WIDTH - filled))} `
      const count = total === undefined ? formatCount(done) : `${formatCount(done)} / ${formatCount(total)}`
      output.write(`\r${bar}${count} ${what}\x1b[K`)
    },
    end() {
      if (drawnAt !== Number.NEGATIVE_INFINITY) output.write('\r\x1b[K')
    },
  }
}

export function formatCount(count: number): string {
  return count.toLocaleString('en-US')
}
