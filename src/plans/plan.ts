import { LRUCache } from 'lru-cache'
import { OptionError, PlanError } from '../errors.ts'
import { checkOptionNames } from '../options.ts'
import { explainPath } from './explain.ts'
import { findPath, missingFor, type Path, type WayCost } from './planner.ts'

/** A query, whatever else it can be asked. */
interface AnyQuery<Value> {
  resolveAsync(): Promise<Value>
}

/** What a way may give: a query, which is then looked up in the wave of its level, or a value or promise as it is. */
export type WayResult<Value> = AnyQuery<Value> | PromiseLike<Value> | Value

/** What comes of a way's result. */
export type Settled<Result> = Result extends AnyQuery<infer Value> ? Value : Awaited<Result>

/** What a way takes: never null, as a way is not gone while one of its inputs is null. */
export type InputsOf<Known, Inputs extends readonly (keyof Known)[]> = {
  readonly [Input in Inputs[number]]: NonNullable<Known[Input]>
}

/** `Value` if one of the inputs can be null or undefined, else never. */
type IfNullable<Known, Inputs extends readonly (keyof Known)[], Value> = [
  Extract<Known[Inputs[number]], null | undefined>,
] extends [never]
  ? never
  : Value

/** Their union; one of them where it is all of it, so that `[]` adds nothing to a list of rows. */
type Either<Value, Other> = [Other] extends [Value] ? Value : Value | Other

type WithNode<Known, Node extends string, Value> = {
  [N in keyof Known | Node]: N extends keyof Known ? Known[N] : Value
}

export interface WayOptions<OnNull> {
  /**
   * Lookups the way makes, all at once. Default 1. Among paths of equally few waves, that of the lowest sum is taken, so
   * it may weigh a way that is dear in some other sense. 0: looks nothing up, only makes something of its inputs; costs
   * no wave.
   */
  readonly cost?: number | undefined
  /** What the node is when an input is null, or undefined; the way is not gone then. Default: null. */
  readonly onNull?: (() => OnNull) | undefined
}

/** Options of one more way: `onNull` has to be told where an input may be null and the node may not. */
type MoreOptions<Known, Node extends keyof Known, Inputs extends readonly (keyof Known)[]> = [
  IfNullable<Known, Inputs, null>,
] extends [Known[Node]]
  ? [options?: WayOptions<Known[Node]>]
  : [options: WayOptions<Known[Node]> & { readonly onNull: () => Known[Node] }]

interface Way extends WayCost {
  readonly take: (inputs: never) => unknown
  readonly onNull: (() => unknown) | undefined
}

/** How many paths are kept, one for each set of given and wanted names. */
const MAX_PATHS = 1_000

/**
 * Nodes (values by name) and the ways between them, declared once. {@link Plan.resolve} takes the shortest path from what
 * a caller has to what it wants. Immutable: `node` and `way` return a plan with more in it.
 */
export class Plan<Known extends object> {
  readonly #ways: readonly Way[]
  readonly #names: ReadonlySet<string>
  /** Made when it is needed: it takes its room at once, and most plans are only steps towards another. */
  #paths: LRUCache<string, Path<Way>> | undefined

  /** @internal */
  constructor(ways: readonly Way[] = []) {
    this.#ways = ways
    this.#names = new Set(ways.flatMap(({ node, inputs }) => [node, ...inputs]))
  }

  /**
   * Declares a node by its first way.
   *
   * ```ts
   * .node('owner', ['event'], ({ event }) => User.cache.getQuery({ id: event.owner_id }))
   * ```
   *
   * @param inputs the parameters and nodes the way takes, declared before
   * @param way gives a query, a promise or a value; called once a `resolve`, when its inputs are there and none is null
   * @throws OptionError
   */
  node<Node extends string, const Inputs extends readonly (keyof Known & string)[], Result, OnNull = null>(
    node: Node extends keyof Known ? never : Node,
    inputs: Inputs,
    way: (inputs: InputsOf<Known, Inputs>) => Result,
    options?: WayOptions<OnNull>,
  ): Plan<WithNode<Known, Node, Either<Settled<Result>, IfNullable<Known, Inputs, OnNull>>>> {
    if (this.#ways.some((other) => other.node === node))
      throw new OptionError('node', 'a name that has no way yet (add another with `way`)', node)
    return this.#with(node, inputs, way, options)
  }

  /**
   * Declares another way to a node, or one to a parameter, taken when it is not given. Ways may form cycles, such as from
   * an event to its slug and from a slug to its event.
   *
   * @throws OptionError
   */
  way<Node extends keyof Known & string, const Inputs extends readonly (keyof Known & string)[]>(
    node: Node,
    inputs: Inputs,
    way: (inputs: InputsOf<Known, Inputs>) => WayResult<Known[Node]>,
    ...[options]: MoreOptions<Known, Node, Inputs>
  ): Plan<Known> {
    return this.#with(node, inputs, way, options)
  }

  /**
   * Goes the shortest path from `given` to `wanted`: the fewest waves, then the fewest lookups. The nodes of one level are
   * looked up in one wave of the current scope, each once, and none that is given. What is undefined in `given` is not
   * given; other names than those of the plan are left alone.
   *
   * Rejects PlanError when something cannot be reached from what is given, before anything is looked up; else what the
   * first way that fails rejects with, such as NotFoundError of a query of `getQuery`.
   *
   * @param given parameters, and nodes the caller has already
   */
  async resolve<const Wanted extends readonly (keyof Known & string)[]>(
    given: { readonly [Name in keyof Known]?: Known[Name] | undefined },
    wanted: Wanted,
  ): Promise<{ [Name in Wanted[number]]: Known[Name] }> {
    const values = new Map(Object.entries(given).filter(([, value]) => value !== undefined))
    const path = this.#pathFrom([...values.keys()], wanted)
    // Level by level, though some of a next one could begin before all of this one is there: its wave would be two.
    for (const { ways } of path.stages) {
      const results = await Promise.all(ways.map((way) => take(way, values)))
      for (const [i, { node }] of ways.entries()) values.set(node, results[i])
    }
    return Object.fromEntries(wanted.map((name) => [name, values.get(name)])) as {
      [Name in Wanted[number]]: Known[Name]
    }
  }

  /**
   * What `resolve` would do, for people: the waves, and the way taken to each node. Looks nothing up.
   *
   * @throws PlanError when something cannot be reached, so a test can say what must be
   */
  explain(given: readonly (keyof Known & string)[], wanted: readonly (keyof Known & string)[]): string {
    return explainPath(this.#ways, this.#pathFrom(given, wanted), given, wanted)
  }

  #with<More extends object>(
    node: string,
    inputs: readonly string[],
    take: Way['take'],
    options: object = {},
  ): Plan<More> {
    if (typeof node !== 'string' || node === '') throw new OptionError('node', 'the name of a node', node)
    if (!Array.isArray(inputs) || !inputs.every((input) => typeof input === 'string' && input !== ''))
      throw new OptionError(`${node}.inputs`, 'a list of names of parameters and nodes', inputs)
    if (inputs.includes(node)) throw new OptionError(`${node}.inputs`, 'without the node itself', inputs)
    if (typeof take !== 'function') throw new OptionError(`${node}.way`, 'a function', take)
    checkOptionNames(node, options, ['cost', 'onNull'])
    const { cost = 1, onNull } = options as WayOptions<unknown>
    if (typeof cost !== 'number' || !Number.isFinite(cost) || cost < 0)
      throw new OptionError(`${node}.cost`, 'a number of at least 0', cost)
    if (onNull !== undefined && typeof onNull !== 'function')
      throw new OptionError(`${node}.onNull`, 'a function', onNull)
    return new Plan([...this.#ways, Object.freeze({ node, inputs: [...inputs], cost, take, onNull })])
  }

  #pathFrom(given: readonly string[], wanted: readonly string[]): Path<Way> {
    const known = given.filter((name) => this.#names.has(name) || wanted.includes(name)).sort()
    const key = JSON.stringify([known, [...wanted].sort()])
    this.#paths ??= new LRUCache({ max: MAX_PATHS })
    const found = this.#paths.get(key)
    if (found) return found
    const there = new Set(known)
    const path = findPath(this.#ways, there, wanted)
    if (!path) {
      const unreachable = wanted
        .filter((node) => !findPath(this.#ways, there, [node]))
        .map((node) => ({ node, missing: missingFor(this.#ways, there, node) }))
      throw new PlanError(known, unreachable, [...this.#names])
    }
    this.#paths.set(key, path)
    return path
  }
}

async function take({ inputs, take, onNull }: Way, values: ReadonlyMap<string, unknown>): Promise<unknown> {
  const given = inputs.map((input) => [input, values.get(input) ?? null] as const)
  if (given.some(([, value]) => value === null)) return onNull ? onNull() : null
  const result = take(Object.fromEntries(given) as never)
  return isQuery(result) ? result.resolveAsync() : result
}

function isQuery(result: unknown): result is AnyQuery<unknown> {
  return typeof (result as Partial<AnyQuery<unknown>> | null | undefined)?.resolveAsync === 'function'
}
