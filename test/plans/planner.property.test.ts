import fc from 'fast-check'
import { expect, test } from 'vitest'
import { findPath, missingFor, type WayCost } from '../../src/plans/planner.ts'

const PARAMS = ['p', 'q', 'r']
const NODES = ['a', 'b', 'c', 'd', 'e']

const way: fc.Arbitrary<WayCost> = fc.record({
  node: fc.constantFrom(...NODES),
  inputs: fc.uniqueArray(fc.constantFrom(...PARAMS, ...NODES), { maxLength: 3 }),
  cost: fc.constantFrom(0, 1, 1, 1, 2, 5),
})

const graph = fc.record({
  ways: fc.array(way, { maxLength: 9 }),
  given: fc
    .uniqueArray(fc.constantFrom('p', 'q', 'a'), { maxLength: 2 })
    .map((names) => new Set<string>(names)),
  wanted: fc.uniqueArray(fc.constantFrom(...NODES), { minLength: 1, maxLength: 3 }),
})

/** Waves and cost of what is chosen; undefined when something wanted is not there in the end. */
function weigh(chosen: readonly WayCost[], given: ReadonlySet<string>, wanted: readonly string[]) {
  const wave = new Map<string, number>([...given].map((name) => [name, 0]))
  for (let round = 0; round <= chosen.length; round++) {
    for (const { node, inputs, cost } of chosen) {
      if (wave.has(node) || !inputs.every((input) => wave.has(input))) continue
      wave.set(node, Math.max(0, ...inputs.map((input) => wave.get(input) as number)) + (cost > 0 ? 1 : 0))
    }
  }
  if (!wanted.every((node) => wave.has(node))) return undefined
  return {
    waves: Math.max(0, ...wanted.map((node) => wave.get(node) as number)),
    cost: chosen.reduce((sum, { cost }) => sum + cost, 0),
  }
}

/** The best of all ways to choose one way, or none, for every node. */
function bruteForce(ways: readonly WayCost[], given: ReadonlySet<string>, wanted: readonly string[]) {
  let best: { waves: number; cost: number } | undefined
  const choose = (nodes: readonly string[], chosen: readonly WayCost[]) => {
    const [node, ...rest] = nodes
    if (node !== undefined) {
      choose(rest, chosen)
      for (const way of ways) if (way.node === node) choose(rest, [...chosen, way])
      return
    }
    const found = weigh(chosen, given, wanted)
    if (!found) return
    if (!best || found.waves < best.waves || (found.waves === best.waves && found.cost < best.cost))
      best = found
  }
  choose(
    NODES.filter((node) => !given.has(node)),
    [],
  )
  return best
}

test('no other choice of ways has fewer waves, or as many and a lower cost', () => {
  fc.assert(
    fc.property(graph, ({ ways, given, wanted }) => {
      const path = findPath(ways, given, wanted)
      expect(path && { waves: path.waves, cost: path.cost }).toEqual(bruteForce(ways, given, wanted))
    }),
    { numRuns: 3_000 },
  )
})

test('a path can be gone: each way has what it takes, each node is gone to once', () => {
  fc.assert(
    fc.property(graph, ({ ways, given, wanted }) => {
      const path = findPath(ways, given, wanted)
      if (!path) return
      const there = new Set(given)
      for (const stage of path.stages) {
        expect(stage.ways.length).toBeGreaterThan(0)
        for (const { inputs, cost } of stage.ways) {
          expect(cost > 0).toBe(stage.looksUp)
          expect(inputs.every((input) => there.has(input))).toBe(true)
        }
        for (const { node } of stage.ways) {
          expect(there.has(node)).toBe(false)
          there.add(node)
        }
      }
      expect(wanted.every((node) => there.has(node))).toBe(true)
      const lookups = path.stages.filter(({ looksUp }) => looksUp)
      expect(lookups.map(({ wave }) => wave)).toEqual(lookups.map((_, i) => i + 1))
      expect(lookups).toHaveLength(path.waves)
    }),
    { numRuns: 2_000 },
  )
})

test('what is told to be missing is enough, and nothing of it could be left out', () => {
  fc.assert(
    fc.property(graph, ({ ways, given, wanted }) => {
      const params = ways
        .flatMap(({ inputs }) => inputs)
        .filter((name) => !ways.some(({ node }) => node === name))
      for (const node of wanted) {
        const sets = missingFor(ways, given, node)
        const isReached = (more: readonly string[]) =>
          findPath(ways, new Set([...given, ...more]), [node]) !== undefined
        expect(isReached(params)).toBe(sets.length > 0)
        for (const set of sets) {
          expect(isReached(set)).toBe(true)
          for (const name of set) expect(isReached(set.filter((other) => other !== name))).toBe(false)
        }
      }
    }),
    { numRuns: 2_000 },
  )
})
