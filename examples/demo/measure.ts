import { isDeepStrictEqual } from 'node:util'
import type { ShopDatabase } from '../shop/connections.ts'
import { openCache, type ShopCache } from '../shop/open-shop.ts'
import { plainModels } from '../shop/plain.ts'
import type { Run, Workload } from './workloads.ts'

/** What can be told exactly of a run, on any machine. */
export interface Counts {
  readonly lookups: number
  readonly waves: number
  /** Trips to the store: reading, taking leases, filling. */
  readonly mget: number
  readonly acquire: number
  readonly fill: number
  /** SQL statements as Kysely executed them, whoever sent them. */
  readonly statements: number
}

export const WAYS = ['plain', 'cold', 'warm'] as const
export type Way = (typeof WAYS)[number]

export interface Result {
  readonly counts: Counts
  readonly ms: number
}

export interface Measured {
  readonly results: Readonly<Record<Way, Result>>
  /** What was not as it must be; one line each. */
  readonly problems: readonly string[]
}

/**
 * Runs a workload without Loadstone, on an empty cache and on the same cache again. Every round is checked; times are
 * the fastest of all but the first, in which Node compiles the code.
 */
export async function measure(workload: Workload, database: ShopDatabase, rounds: number): Promise<Measured> {
  const problems = new Set<string>()
  let best: Record<Way, Result> | undefined
  for (let round = 0; round <= rounds; round++) {
    const { results, answers } = await runRound(workload, database)
    for (const way of WAYS) {
      for (const problem of differences(results[way].counts, workload[way]))
        problems.add(`${way}: ${problem}`)
      if (!isDeepStrictEqual(answers[way], answers.plain))
        problems.add(`${way}: the answer is not the plain one`)
      const fastest = best?.[way]
      if (fastest && fastest.ms < results[way].ms) results[way] = { ...results[way], ms: fastest.ms }
    }
    if (round > 0) best = results
  }
  if (!best) throw new RangeError(`rounds must be at least 1, but is ${rounds}`)
  return { results: best, problems: [...problems].map((problem) => `${workload.name}, ${problem}`) }
}

async function runRound(workload: Workload, database: ShopDatabase) {
  const shopCache = openCache(database)
  // Asks the database about the tables, which an application does once, when it starts.
  await shopCache.cache.ready()
  const plain = workload.start(plainModels(database.db))
  const cached = workload.start(shopCache.models)
  try {
    const first = await runOnce(plain, database, undefined)
    const second = await runOnce(cached, database, shopCache)
    const third = await runOnce(cached, database, shopCache)
    return {
      results: { plain: first.result, cold: second.result, warm: third.result },
      answers: { plain: first.answer, cold: second.answer, warm: third.answer },
    }
  } finally {
    await plain.stop()
    await cached.stop()
    await shopCache.close()
  }
}

async function runOnce(run: Run, database: ShopDatabase, shopCache: ShopCache | undefined) {
  const before = await countsNow(database, shopCache)
  const began = performance.now()
  const answer = await run.once()
  const ms = performance.now() - began
  const counts = subtract(await countsNow(database, shopCache), before)
  // Without Loadstone, each lookup is a statement.
  return { answer, result: { ms, counts: shopCache ? counts : { ...counts, lookups: counts.statements } } }
}

async function countsNow(database: ShopDatabase, shopCache: ShopCache | undefined): Promise<Counts> {
  // The caller of a lookup does not wait for its fill, but it counts.
  await shopCache?.cache.idle()
  const statements = database.statementCount()
  if (!shopCache) return { lookups: 0, waves: 0, mget: 0, acquire: 0, fill: 0, statements }
  const { lookups, memoHits, waves, trips } = shopCache.cache.stats()
  const { mget, acquire, fill } = trips
  return { lookups: lookups + memoHits, waves, mget, acquire, fill, statements }
}

function subtract(after: Counts, before: Counts): Counts {
  return {
    lookups: after.lookups - before.lookups,
    waves: after.waves - before.waves,
    mget: after.mget - before.mget,
    acquire: after.acquire - before.acquire,
    fill: after.fill - before.fill,
    statements: after.statements - before.statements,
  }
}

function differences(made: Counts, wanted: Counts): string[] {
  return (Object.keys(wanted) as (keyof Counts)[])
    .filter((name) => made[name] !== wanted[name])
    .map((name) => `${name} must be ${wanted[name]}, but is ${made[name]}`)
}
