import type { Shape } from '../models/shape.ts'
import type { OnAbsent } from './lookup.ts'
import type { Reader } from './reader.ts'

/** One lookup that a query asks for. */
export interface Ask {
  readonly reader: Reader
  readonly shape: () => Shape
  readonly values: object
  readonly onAbsent: OnAbsent
}

/**
 * A query of several lookups without the I/O: it yields the lookups to be made side by side, never none, and is resumed
 * with their answers. Another driver may answer them in another way.
 */
export type Asking<Result> = Generator<readonly Ask[], Result, readonly unknown[]>

/**
 * Asks in the current scope; lookups that are yielded together are one wave.
 *
 * @param onlyCache undefined comes out when the cache lacks an answer
 */
export async function answerAsync<Result>(
  asking: Asking<Result>,
  onlyCache: boolean,
): Promise<Result | undefined> {
  let step = asking.next()
  while (!step.done) {
    const answers = await Promise.all(
      step.value.map(({ reader, shape, values, onAbsent }) =>
        reader.lookUp(shape, values, onlyCache ? 'only-cache' : onAbsent),
      ),
    )
    if (onlyCache && answers.includes(undefined)) return undefined
    step = asking.next(answers)
  }
  return step.value
}

/** Runs askings in step, so that what each asks next is one wave. An ask that several share is made once. */
export function* together<Result>(askings: readonly Asking<Result>[]): Asking<Result[]> {
  const steps = askings.map((asking) => asking.next())
  for (;;) {
    const places = new Map<Ask, number>()
    for (const { done, value } of steps) {
      if (!done) for (const ask of value) if (!places.has(ask)) places.set(ask, places.size)
    }
    if (places.size === 0) return steps.map(({ value }) => value as Result)
    const answers = yield [...places.keys()]
    for (const [i, { done, value }] of steps.entries()) {
      const asking = askings[i] as Asking<Result>
      if (!done) steps[i] = asking.next(value.map((ask) => answers[places.get(ask) as number]))
    }
  }
}

/** Goes on with an asking whose first lookups were made already. */
export function* resumed<Result>(asking: Asking<Result>, answers: readonly unknown[]): Asking<Result> {
  let step = asking.next(answers)
  while (!step.done) step = asking.next(yield step.value)
  return step.value
}
