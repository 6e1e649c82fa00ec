import type { Path, WayCost } from './planner.ts'

/**
 * A path, for people:
 *
 * ```text
 * owner, tags from eventSlug: 2 waves, 3 lookups
 *   wave 1  event ← eventSlug (way 1 of 2)
 *   wave 2  owner ← event
 *           tags ← event
 * ```
 */
export function explainPath<Way extends WayCost>(
  ways: readonly Way[],
  { waves, cost, stages }: Path<Way>,
  given: readonly string[],
  wanted: readonly string[],
): string {
  const lines = stages.flatMap(({ wave, looksUp, ways: taken }) => {
    const title = looksUp ? `wave ${wave}` : 'then'
    return taken.map((way, i) => `  ${(i === 0 ? title : '').padEnd(7)} ${describeWay(ways, way)}`)
  })
  const sum = `${count(waves, 'wave')}, ${count(cost, 'lookup')}`
  return [`${wanted.join(', ')} from ${given.join(', ') || 'nothing'}: ${sum}`, ...lines].join('\n')
}

function describeWay<Way extends WayCost>(ways: readonly Way[], way: Way): string {
  const { node, inputs } = way
  const all = ways.filter((other) => other.node === node)
  const which = all.length > 1 ? ` (way ${all.indexOf(way) + 1} of ${all.length})` : ''
  return `${node} ← ${inputs.join(', ') || 'nothing'}${which}`
}

function count(number: number, name: string): string {
  return `${number} ${name}${number === 1 ? '' : 's'}`
}
