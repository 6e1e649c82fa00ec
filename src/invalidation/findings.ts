/** One thing that was looked at. */
export interface Finding {
  readonly area: 'store' | 'postgres' | 'replica' | 'install' | 'outbox' | 'writes' | 'models'
  /** `fail`: a promise is broken, or nothing works; `warn`: it works, and could go wrong or be slow. */
  readonly status: 'ok' | 'warn' | 'fail'
  /** A sentence. */
  readonly finding: string
  /** What to do; undefined where nothing is to be done. */
  readonly cure: string | undefined
}

type Area = Finding['area']

export function ok(area: Area, finding: string): Finding {
  return { area, status: 'ok', finding, cure: undefined }
}

export function warn(area: Area, finding: string, cure: string): Finding {
  return { area, status: 'warn', finding, cure }
}

export function fail(area: Area, finding: string, cure: string): Finding {
  return { area, status: 'fail', finding, cure }
}

/** The finding of a clock that is compared with ours. */
export function clockFinding(area: Area, whose: string, aheadMs: number): Finding {
  const seconds = Math.abs(aheadMs / 1000).toFixed(1)
  if (Math.abs(aheadMs) <= MAX_CLOCK_SKEW_MS) return ok(area, `the clock of ${whose} agrees with ours`)
  return warn(
    area,
    `the clock of ${whose} is ${seconds} s ${aheadMs > 0 ? 'ahead of' : 'behind'} ours: reported ages are wrong by that`,
    'keep the clocks of all machines together with NTP (chrony, systemd-timesyncd)',
  )
}

/** No promise depends on clocks of two machines, so this much is let pass. */
const MAX_CLOCK_SKEW_MS = 2000

/** Whether a version such as `7.2.4` is at least `wanted`. */
export function isAtLeast(version: string, wanted: readonly number[]): boolean {
  const parts = version.split('.').map((part) => Number.parseInt(part, 10) || 0)
  for (const [i, least] of wanted.entries()) {
    const part = parts[i] ?? 0
    if (part !== least) return part > least
  }
  return true
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[sorted.length >> 1] ?? 0
}

/** Milliseconds as people read them: `0.21 ms`, `4.2 s`, `3 h`. */
export function readableMs(ms: number): string {
  const units = [
    [86_400_000, 'days'],
    [3_600_000, 'h'],
    [60_000, 'min'],
    [1000, 's'],
  ] as const
  const [size, unit] = units.find(([least]) => ms >= 2 * least) ?? [1, 'ms']
  const value = ms / size
  return `${value.toPrecision(value >= 100 ? Math.ceil(Math.log10(value + 1)) : 2).replace(/\.0+$/, '')} ${unit}`
}
