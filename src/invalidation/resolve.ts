import { CompiledQuery } from 'kysely'
import { addDependent, dependentPrefix, type TouchedKeys, type Unresolved } from '../models/touched.ts'
import { INTERNAL, type RunRaw } from './outbox-rows.ts'
import { quoteName } from './sql-text.ts'

/** More keys of one shape than this, and all of the shape is cleared. */
const MAX_KEYS = 10_000

/**
 * Adds the keys of dependent shapes, as the rows between them and what was written are now. To be called after the
 * commit: a row that comes to link to what was written from then on is loaded together with the new value.
 *
 * @param run on a connection that sees what was committed
 */
export async function resolveTouched(run: RunRaw, touched: TouchedKeys): Promise<TouchedKeys> {
  const keys = new Set(touched.keys)
  const prefixes = new Set(touched.prefixes)
  const stale = new Map(touched.stale)
  for (const unresolved of touched.unresolved ?? []) {
    const { namespace, dependent } = unresolved
    const { rows } = await run(backQuery(unresolved))
    if (rows.length > MAX_KEYS) {
      prefixes.add(dependentPrefix(namespace, dependent))
      continue
    }
    const texts = (rows as Record<string, string | null>[]).map((row) =>
      dependent.key.map((_, i) => row[`k${i}`] ?? null),
    )
    addDependent(namespace, dependent, texts, keys, stale)
  }
  return { keys: [...keys], prefixes: [...prefixes], stale }
}

/** The distinct keys of a dependent shape whose rows are linked to the values. Reads the tables, not the cache. */
export function backQuery({ dependent: { steps, key }, values }: Unresolved): CompiledQuery {
  const width = values[0]?.length ?? 0
  const arrays = Array.from({ length: width }, (_, i) => values.map((row) => row[i]))
  const texts = arrays.map((_, i) => `$${i + 1}::text[]`).join(', ')
  const joins = steps.map(({ table, on }, s) => {
    const conditions = on.map(([column, other], i) => {
      const value = s === 0 ? `v.v${i}::${other}` : `t${s - 1}.${quoteName(other)}`
      return `t${s}.${quoteName(column)} = ${value}`
    })
    return `join ${table} t${s} on ${conditions.join(' and ')}`
  })
  const selected = key.map(([column], i) => `t${steps.length - 1}.${quoteName(column)}::text as k${i}`)
  return CompiledQuery.raw(
    `${INTERNAL} select distinct ${selected.join(', ')}
from unnest(${texts}) as v(${arrays.map((_, i) => `v${i}`).join(', ')})
${joins.join('\n')} limit ${MAX_KEYS + 1}`,
    arrays,
  )
}
