import { OptionError } from '../errors.ts'
import { checkOptionNames } from '../options.ts'

export interface ResolveOptions {
  /**
   * True: answers only what the memo or the store has: undefined where it is not known, null where it is known that
   * there is nothing. It makes no SQL and takes no lease, but for what the first use of a model asks of the database,
   * and waits for a lookup of the same key that is under way in the scope. In a transaction nothing is known. With
   * relations, all of them have to be known. Default false.
   */
  readonly onlyCache?: boolean | undefined
}

/**
 * A lookup that has not been made yet.
 *
 * `Absent` is what comes in the place of an error, when only the cache is asked, where it is known that there is nothing.
 */
export interface Query<Result, Absent = never> {
  /** Looks up now, in the current scope and its wave. Rejects as `getAsync` does; OptionError. */
  resolveAsync(options: ResolveOptions & { readonly onlyCache: true }): Promise<Result | Absent | undefined>
  resolveAsync(options?: ResolveOptions & { readonly onlyCache?: false | undefined }): Promise<Result>
}

/**
 * The one way in which queries are made, so that no two kinds of them differ.
 *
 * @param answer what it throws is what is rejected
 */
export function createQuery<Result, Absent = never>(
  answer: (onlyCache: boolean) => Promise<unknown>,
): Query<Result, Absent> {
  const resolveAsync = (options?: ResolveOptions) => {
    try {
      return answer(onlyCacheOf(options))
    } catch (error) {
      return Promise.reject(error)
    }
  }
  return { resolveAsync } as Query<Result, Absent>
}

/** @throws OptionError */
function onlyCacheOf(options: ResolveOptions | undefined): boolean {
  if (options === undefined) return false
  if (typeof options !== 'object' || options === null)
    throw new OptionError('options', 'an object such as { onlyCache: true }', options)
  checkOptionNames('resolveAsync', options, ['onlyCache'])
  const { onlyCache = false } = options
  if (typeof onlyCache !== 'boolean') throw new OptionError('onlyCache', 'true or false', onlyCache)
  return onlyCache
}
