import { OptionError } from '../errors.ts'
import { checkOptionNames } from '../options.ts'
import type { Query, ResolveOptions } from './query.ts'

export interface BatchOptions extends ResolveOptions {
  /**
   * What a query that fails comes to, one that finds no row included: `'throw'` (the default) fails the batch, `'null'`
   * and `'return'` put null, or the error, in its place.
   */
  readonly errors?: 'throw' | 'null' | 'return' | undefined
}

/** Queries by name or in lists, to any depth. */
export type Queries = AnyQuery | { readonly [name: string]: Queries } | readonly Queries[]

type AnyQuery = Pick<Query<unknown, unknown>, 'resolveAsync'>

/** What queries come to, in their places. */
export type Answers<Given, Options extends BatchOptions> = Given extends AnyQuery
  ? AnswerOf<Given, Options>
  : { -readonly [Name in keyof Given]: Answers<Given[Name], Options> }

type AnswerOf<Given, Options extends BatchOptions> =
  | (Given extends Query<infer Result, infer Absent>
      ? Options extends { readonly onlyCache: true }
        ? Result | Absent | undefined
        : Result
      : never)
  | (Options extends { readonly errors: 'null' } ? null : never)
  | (Options extends { readonly errors: 'return' } ? Error : never)

/**
 * Makes queries in one wave, and resolves to their results, by the same names:
 * `await batch({ user: User.cache.getQuery({ id }), event: EventOnSlug({ slug }) })`.
 *
 * Rejects what the first query that fails rejects with, unless `errors` says otherwise; OptionError.
 */
export function batch<
  const Given extends Queries,
  const Options extends BatchOptions = Readonly<Record<never, never>>,
>(queries: Given, options?: Options): Promise<Answers<Given, Options>> {
  const answers = async () => answersOf('queries', queries, pusher(options))
  return answers() as Promise<never>
}

/** A batch whose queries come one by one. */
export interface OpenBatch<Options extends BatchOptions> {
  /** Makes a query. Those that are pushed in one tick are one wave; a rejection that nobody awaits goes unnoticed. */
  push<const Given extends AnyQuery>(query: Given): Promise<AnswerOf<Given, Options>>
}

/**
 * A batch to push queries to, as they are come by: `const user = b.push(query)`, and later `await user`.
 *
 * @throws OptionError
 */
export function openBatch<const Options extends BatchOptions = Readonly<Record<never, never>>>(
  options?: Options,
): OpenBatch<Options> {
  return { push: pusher(options) as OpenBatch<Options>['push'] }
}

type Push = (query: AnyQuery) => Promise<unknown>

/** @throws OptionError */
function pusher(options: BatchOptions | undefined): Push {
  const { errors, onlyCache } = checked(options)
  const resolve = async (query: AnyQuery): Promise<unknown> => {
    if (!isQuery(query)) throw new OptionError('query', 'a query', query)
    try {
      return await (onlyCache ? query.resolveAsync({ onlyCache }) : query.resolveAsync())
    } catch (error) {
      if (errors === 'null') return null
      if (errors === 'return') return error instanceof Error ? error : new Error(String(error))
      throw error
    }
  }
  return (query) => {
    const answer = resolve(query)
    // It may well be awaited after others that take longer than it takes to fail.
    answer.catch(() => {})
    return answer
  }
}

async function answersOf(path: string, given: unknown, push: Push): Promise<unknown> {
  if (isQuery(given)) return push(given)
  if (Array.isArray(given)) {
    return Promise.all(given.map((each, i) => answersOf(`${path}[${i}]`, each, push)))
  }
  if (typeof given !== 'object' || given === null)
    throw new OptionError(path, 'a query, or an object or a list of queries', given)
  const entries = Object.entries(given).map(
    async ([name, each]) => [name, await answersOf(`${path}.${name}`, each, push)] as const,
  )
  return Object.fromEntries(await Promise.all(entries))
}

function isQuery(given: unknown): given is AnyQuery {
  return (
    typeof given === 'object' &&
    given !== null &&
    typeof (given as Partial<AnyQuery>).resolveAsync === 'function'
  )
}

/** @throws OptionError */
function checked(options: BatchOptions = {}): BatchOptions {
  if (typeof options !== 'object' || options === null)
    throw new OptionError('options', "an object such as { errors: 'null' }", options)
  checkOptionNames('batch', options, ['onlyCache', 'errors'])
  const { errors = 'throw', onlyCache = false } = options
  if (!['throw', 'null', 'return'].includes(errors))
    throw new OptionError('errors', "'throw', 'null' or 'return'", errors)
  if (typeof onlyCache !== 'boolean') throw new OptionError('onlyCache', 'true or false', onlyCache)
  return { errors, onlyCache }
}
