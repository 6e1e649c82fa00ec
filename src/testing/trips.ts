import { AssertionError } from 'node:assert'
import type { Cache } from '../cache.ts'
import type { Trips } from '../loaders/driver.ts'

/**
 * Runs `fn` and checks how many round trips its lookups made, fills included; a kind that is not named must not
 * occur. Asks that nothing else uses the cache meanwhile.
 *
 * ```ts
 * await expectTrips(cache, { mget: 1, acquire: 1, select: 2, fill: 1 }, () => page([1, 2, 3]))
 * ```
 *
 * @returns what `fn` returned
 * @throws AssertionError with the trips that were made
 */
export async function expectTrips<DB, Result>(
  cache: Cache<DB>,
  expected: Partial<Trips>,
  fn: () => Result | Promise<Result>,
): Promise<Result> {
  await cache.idle()
  const before = cache.stats().trips
  const result = await fn()
  await cache.idle()
  const after = cache.stats().trips
  const kinds = Object.keys(after) as (keyof Trips)[]
  const made = Object.fromEntries(kinds.map((kind) => [kind, after[kind] - before[kind]]))
  const wanted = Object.fromEntries(kinds.map((kind) => [kind, expected[kind] ?? 0]))
  if (kinds.some((kind) => made[kind] !== wanted[kind])) {
    const print = (trips: Record<string, number | undefined>) =>
      kinds.map((kind) => `${kind} ${trips[kind]}`).join(', ')
    throw new AssertionError({
      message: `expected the trips ${print(wanted)}, but made ${print(made)}`,
      actual: made,
      expected: wanted,
      operator: 'expectTrips',
    })
  }
  return result
}
