import { OptionError } from './errors.ts'

/** A time span: milliseconds, or a number with a unit: `'250ms'`, `'5s'`, `'10m'`, `'12h'`, `'7d'`. */
export type Duration = number | `${number}${'ms' | 's' | 'm' | 'h' | 'd'}`

const UNITS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const

/**
 * A {@link Duration} as whole milliseconds.
 *
 * @throws OptionError when it is no duration, or shorter than `min` ms.
 */
export function durationMs(option: string, given: unknown, min = 1): number {
  const ms = typeof given === 'string' ? parseDuration(given) : given
  if (typeof ms !== 'number' || !Number.isSafeInteger(ms) || ms < min) {
    throw new OptionError(option, `a duration of at least ${min} ms, such as 5000, '5s' or '7d'`, given)
  }
  return ms
}

function parseDuration(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(text)
  return match ? Math.round(Number(match[1]) * UNITS[match[2] as keyof typeof UNITS]) : undefined
}

/** @throws OptionError when `given` is no whole number from `min` to `max`. */
export function integerOption(
  option: string,
  given: unknown,
  min: number,
  max = Number.MAX_SAFE_INTEGER,
): number {
  if (typeof given !== 'number' || !Number.isSafeInteger(given) || given < min || given > max) {
    const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`
    throw new OptionError(option, `a whole number ${range}`, given)
  }
  return given
}

/** @throws OptionError when `given` has a key that is not among `known`: a misspelt option must not be ignored. */
export function checkOptionNames(owner: string, given: object, known: readonly string[]): void {
  for (const name of Object.keys(given)) {
    if (!known.includes(name))
      throw new OptionError(`${owner}.${name}`, `left out; known are ${known.join(', ')}`, 'given')
  }
}

/** @throws OptionError when `given` is neither true nor false. */
export function booleanOption(option: string, given: unknown): boolean {
  if (typeof given !== 'boolean') throw new OptionError(option, 'true or false', given)
  return given
}
