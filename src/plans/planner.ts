/** One way to a node: what it takes, and what it costs. */
export interface WayCost {
  readonly node: string
  /** Nodes, or parameters: names that no way leads to. */
  readonly inputs: readonly string[]
  /** Lookups it makes, all in one wave; 0: none, and no wave. */
  readonly cost: number
}

/** Ways that are gone side by side: those that look something up are one wave. */
export interface Stage<Way> {
  /** The wave it is, from 1; of a stage that looks nothing up, the one it comes after, from 0. */
  readonly wave: number
  readonly looksUp: boolean
  readonly ways: readonly Way[]
}

export interface Path<Way> {
  readonly waves: number
  /** Of all its ways together. */
  readonly cost: number
  readonly stages: readonly Stage<Way>[]
}

/** How many choices are looked at before the best so far is taken: far more than a graph drawn by hand has. */
const MAX_CHOICES = 20_000

/**
 * The path from what is given to what is wanted with the fewest waves and, among those, the lowest cost; where paths are
 * alike, the one by the ways declared first. It goes to each node once, and to none that is given.
 *
 * Always of the fewest waves; of the lowest cost unless there are more than 20,000 choices to compare.
 *
 * @returns undefined when something wanted cannot be reached
 */
export function findPath<Way extends WayCost>(
  ways: readonly Way[],
  given: ReadonlySet<string>,
  wanted: readonly string[],
): Path<Way> | undefined {
  const first = firstArrivals(ways, given)
  if (!wanted.every((node) => first.has(node))) return undefined
  const chosen = cheapest(ways, first, wanted)
  return inStages(
    ways.filter((way) => chosen.get(way.node) === way),
    given,
  )
}

/** The earliest wave a node can be there after, and the way that makes it so; no way for what is given. */
interface Arrival<Way> {
  readonly wave: number
  readonly way: Way | undefined
}

type Arrivals<Way> = ReadonlyMap<string, Arrival<Way>>

/** Of every node that can be reached. Their ways form no cycle: each takes only what was there before. */
function firstArrivals<Way extends WayCost>(ways: readonly Way[], given: ReadonlySet<string>): Arrivals<Way> {
  const arrivals = new Map<string, Arrival<Way>>()
  for (const node of given) arrivals.set(node, { wave: 0, way: undefined })
  for (;;) {
    let next: { node: string; wave: number; way: Way } | undefined
    for (const way of ways) {
      if (arrivals.has(way.node)) continue
      const wave = arrivalBy(way, (input) => arrivals.get(input)?.wave ?? Number.POSITIVE_INFINITY)
      if (wave < (next?.wave ?? Number.POSITIVE_INFINITY)) next = { node: way.node, wave, way }
    }
    if (!next) return arrivals
    arrivals.set(next.node, next)
  }
}

function arrivalBy({ inputs, cost }: WayCost, waveOf: (node: string) => number): number {
  return Math.max(0, ...inputs.map(waveOf)) + (cost > 0 ? 1 : 0)
}

/** A way to each node that is needed, in as few waves as can be, and then as cheap as can be. */
function cheapest<Way extends WayCost>(
  ways: readonly Way[],
  first: Arrivals<Way>,
  wanted: readonly string[],
): ReadonlyMap<string, Way> {
  const isToBeReached = (node: string) => first.get(node)?.way !== undefined
  const waysTo = new Map<string, Way[]>()
  for (const way of ways) {
    if (!isToBeReached(way.node) || !way.inputs.every((input) => first.has(input))) continue
    waysTo.set(way.node, [...(waysTo.get(way.node) ?? []), way])
  }
  for (const each of waysTo.values()) each.sort((a, b) => a.cost - b.cost)
  const leastCost = (node: string) => waysTo.get(node)?.[0]?.cost ?? 0

  const waves = Math.max(0, ...wanted.map((node) => first.get(node)?.wave ?? 0))
  // The fastest ways are within `waves`, so there is an answer before anything is compared.
  let best = fastest(first, wanted)
  let bestCost = costOf(best.values())
  let left = MAX_CHOICES

  const chosen = new Map<string, Way>()
  const choose = (needed: readonly string[], cost: number) => {
    const atLeast = needed.reduce((sum, node) => sum + leastCost(node), cost)
    if (atLeast >= bestCost || left-- <= 0 || !isInTime(chosen, first, wanted, waves)) return
    const [node, ...rest] = needed
    if (node === undefined) {
      best = new Map(chosen)
      bestCost = cost
      return
    }
    for (const way of waysTo.get(node) ?? []) {
      chosen.set(node, way)
      const more = way.inputs.filter((input) => isToBeReached(input) && !chosen.has(input))
      choose([...new Set([...rest, ...more])], cost + way.cost)
      chosen.delete(node)
    }
  }
  choose([...new Set(wanted)].filter(isToBeReached), 0)
  return best
}

function fastest<Way extends WayCost>(first: Arrivals<Way>, wanted: readonly string[]): Map<string, Way> {
  const chosen = new Map<string, Way>()
  const add = (node: string) => {
    const way = first.get(node)?.way
    if (!way || chosen.has(node)) return
    chosen.set(node, way)
    way.inputs.forEach(add)
  }
  wanted.forEach(add)
  return chosen
}

/** Whether what is wanted can still be there after so many waves, when the rest is as fast as can be. A cycle never is. */
function isInTime<Way extends WayCost>(
  chosen: ReadonlyMap<string, Way>,
  first: Arrivals<Way>,
  wanted: readonly string[],
  waves: number,
): boolean {
  const known = new Map<string, number>()
  const waveOf = (node: string): number => {
    const found = known.get(node)
    if (found !== undefined) return found
    // Until it is known; who comes back here meanwhile goes round in a circle.
    known.set(node, Number.POSITIVE_INFINITY)
    const way = chosen.get(node)
    const wave = way ? arrivalBy(way, waveOf) : (first.get(node)?.wave ?? Number.POSITIVE_INFINITY)
    known.set(node, wave)
    return wave
  }
  return wanted.every((node) => waveOf(node) <= waves)
}

function inStages<Way extends WayCost>(chosen: readonly Way[], given: ReadonlySet<string>): Path<Way> {
  const there = new Set(given)
  const left = new Set(chosen)
  const stages: Stage<Way>[] = []
  let waves = 0
  while (left.size > 0) {
    const ready = [...left].filter(({ inputs }) => inputs.every((input) => there.has(input)))
    const free = ready.filter(({ cost }) => cost === 0)
    // What costs nothing goes first: what it gives may be what others of the same wave wait for.
    const looksUp = free.length === 0
    const ways = looksUp ? ready : free
    if (looksUp) waves++
    stages.push({ wave: waves, looksUp, ways })
    for (const way of ways) {
      there.add(way.node)
      left.delete(way)
    }
  }
  return { waves, cost: costOf(chosen), stages }
}

function costOf(ways: Iterable<WayCost>): number {
  let sum = 0
  for (const { cost } of ways) sum += cost
  return sum
}

/** How many sets of parameters are told of a node that cannot be reached. */
const MAX_TOLD = 4

/**
 * What would have to be given besides so that `node` could be reached: sets of parameters, each of which is enough, the
 * smallest first, four at most. None when nothing would help: it is no node, or all ways to it are cycles.
 */
export function missingFor(
  ways: readonly WayCost[],
  given: ReadonlySet<string>,
  node: string,
): readonly (readonly string[])[] {
  const isNode = new Set(ways.map((way) => way.node))
  const setsOf = new Map<string, readonly (readonly string[])[]>()
  for (const name of [...given, ...ways.flatMap(({ inputs }) => inputs)])
    if (given.has(name) || !isNode.has(name)) setsOf.set(name, [given.has(name) ? [] : [name]])
  // No set needs a longer chain of ways than there are nodes.
  for (let round = 0; round < isNode.size; round++) {
    for (const way of ways) {
      if (given.has(way.node)) continue
      const sets = way.inputs.reduce<readonly (readonly string[])[]>(
        (found, input) => smallest(found.flatMap((a) => (setsOf.get(input) ?? []).map((b) => [...a, ...b]))),
        [[]],
      )
      setsOf.set(way.node, smallest([...(setsOf.get(way.node) ?? []), ...sets]))
    }
  }
  return setsOf.get(node) ?? []
}

/** Without those that contain another. */
function smallest(sets: readonly (readonly string[])[]): readonly (readonly string[])[] {
  const kept: (readonly string[])[] = []
  const distinct = sets.map((set) => [...new Set(set)]).sort((a, b) => a.length - b.length)
  for (const set of distinct)
    if (!kept.some((smaller) => smaller.every((name) => set.includes(name)))) kept.push(set)
  return kept.slice(0, MAX_TOLD)
}
