import { AsyncLocalStorage } from 'node:async_hooks'
import DataLoader from 'dataloader'
import { OptionError } from '../errors.ts'
import { booleanOption, checkOptionNames } from '../options.ts'

/** Values of dimensions, by name: `{ tenant: 7 }`. */
export type ScopeDimensions = Readonly<Record<string, string | number | bigint>>

const NO_DIMENSIONS: ScopeDimensions = Object.freeze(Object.create(null))

/**
 * One request, job or loop turn. It owns the loaders of every cache that is used in it, so two lookups of one key
 * are one, and it is gone with them when the work is done.
 */
export class Scope {
  /** The scope this one is a part of, if it is a transaction's; that one's memo then goes on outside of it. */
  readonly parent: Scope | undefined
  /** False: lookups in it are answered by SQL and its memo alone. */
  readonly usesStore: boolean
  /** Whose work this is, for models with `scopeBy`. Without a prototype. */
  readonly scopeBy: ScopeDimensions
  /** Per cache, what it keeps for this scope. */
  readonly #parts = new Map<object, unknown>()
  /** What `set` has put here. */
  readonly #ofTransactions = new Map<object, unknown>()
  #loaders: Map<string, unknown> | undefined

  /**
   * @param parent its parts are this scope's parts too, but for those that `set` replaces
   * @internal
   */
  constructor(
    parent?: Scope,
    usesStore = parent?.usesStore ?? true,
    scopeBy: ScopeDimensions = parent?.scopeBy ?? NO_DIMENSIONS,
  ) {
    this.parent = parent
    this.usesStore = usesStore
    this.scopeBy = scopeBy
  }

  /**
   * A DataLoader of the application's own, with this scope's life: for what no model looks up.
   *
   * @param name one loader per name; the first call's `batch` counts
   */
  loaderFor<Key, Value>(
    name: string,
    batch: DataLoader.BatchLoadFn<Key, Value>,
    options?: DataLoader.Options<Key, Value>,
  ): DataLoader<Key, Value> {
    this.#loaders ??= new Map()
    let loader = this.#loaders.get(name) as DataLoader<Key, Value> | undefined
    if (!loader) {
      loader = new DataLoader(batch, options)
      this.#loaders.set(name, loader)
    }
    return loader
  }

  /**
   * What `owner` keeps here, made when it is first asked for.
   *
   * @internal
   */
  part<T>(owner: object, create: () => T): T {
    const found = this.own<T>(owner)
    if (found !== undefined) return found
    if (this.parent) return this.parent.part(owner, create)
    const part = create()
    this.#parts.set(owner, part)
    return part
  }

  /** @internal */
  own<T>(owner: object): T | undefined {
    return this.#parts.get(owner) as T | undefined
  }

  /**
   * What `owner` keeps here, and in the scopes inside, for the transaction that this scope is of.
   *
   * @internal
   */
  set(owner: object, part: unknown): void {
    this.#parts.set(owner, part)
    this.#ofTransactions.set(owner, part)
  }

  /** @internal */
  get isInTransaction(): boolean {
    return this.#ofTransactions.size > 0 || (this.parent?.isInTransaction ?? false)
  }

  /**
   * A fresh scope inside this one: it is in the same transaction.
   *
   * @internal
   */
  inner(usesStore: boolean, scopeBy: ScopeDimensions): Scope {
    const scope = new Scope(undefined, usesStore, scopeBy)
    for (let outer: Scope | undefined = this; outer; outer = outer.parent)
      for (const [owner, part] of outer.#ofTransactions) scope.set(owner, part)
    return scope
  }

  /**
   * Forgets what was looked up, and all loaders. What `set` has put here stays: a transaction reads through its
   * connection until it ends.
   *
   * @internal
   */
  reset(): void {
    if (this.parent) this.parent.reset()
    else this.#parts.clear()
    for (const [owner, part] of this.#ofTransactions) this.#parts.set(owner, part)
    this.#loaders = undefined
  }

  /**
   * Lets go of the memo when the work is done, which the scope itself may outlive by far: Node keeps it in every
   * promise, timer and write request that was made in it, and V8 may have moved one of those to its old space.
   *
   * @internal
   */
  end(): void {
    this.#parts.clear()
    this.#ofTransactions.clear()
    this.#loaders = undefined
  }
}

const storage = new AsyncLocalStorage<Scope>()

/** The scope this code runs in, or undefined outside of any. */
export function currentScope(): Scope | undefined {
  return storage.getStore()
}

/**
 * Has the current scope begin anew: its memo and its own loaders are forgotten, for what goes on so long that it must
 * see what others have written since. Lookups under way still answer those who wait for them, and nobody else. Outside
 * of any scope, does nothing.
 */
export function resetScope(): void {
  currentScope()?.reset()
}

/** Runs `fn` in `scope`. */
export function runInScope<Result>(scope: Scope, fn: () => Result): Result {
  return storage.run(scope, fn)
}

/**
 * Runs what loads for the store in a scope of its own, past the store. A memo, and the store until a clear is through, may
 * be older than the lease that is filled; and it is nobody's work, as scopes that share a wave may be of several tenants.
 */
export async function runApart<Result>(fn: () => Promise<Result>): Promise<Result> {
  const scope = new Scope(undefined, false)
  try {
    return await storage.run(scope, fn)
  } finally {
    scope.end()
  }
}

export interface ScopeOptions {
  /**
   * False: lookups in the scope are answered by SQL, batched and memoised as always; the store is neither asked nor
   * filled. Writes invalidate as always. Default: as in the scope around it, and true where there is none.
   */
  readonly store?: boolean | undefined
  /**
   * Whose work this is: `{ tenant: 7 }`, for models that declare `scopeBy: { tenant: 'org_id' }`. What is not named here
   * is as in the scope around it; what is named is what counts. Default: all as in the scope around it.
   */
  readonly scopeBy?: ScopeDimensions | undefined
}

/**
 * Wraps a function so that each call of it runs in a fresh scope: lookups made in it, however deep and after however
 * many awaits, share waves and a memo; nothing is shared with other calls. Scopes nest: an inner one is fresh, and
 * the outer one is back afterwards.
 *
 * ```ts
 * const handler = runInLoop(async (req) => { ... })
 * ```
 *
 * @throws OptionError
 */
export function runInLoop<This, Args extends unknown[], Result>(
  fn: (this: This, ...args: Args) => Result,
  options: ScopeOptions = {},
): (this: This, ...args: Args) => Result {
  checkOptionNames('runInLoop', options, ['store', 'scopeBy'])
  const { store } = options
  if (store !== undefined) booleanOption('runInLoop.store', store)
  const own = checkDimensions(options.scopeBy)
  return function (this: This, ...args: Args): Result {
    const outer = currentScope()
    const usesStore = store ?? outer?.usesStore ?? true
    const scopeBy = withDimensions(outer?.scopeBy, own)
    const scope = outer?.isInTransaction
      ? outer.inner(usesStore, scopeBy)
      : new Scope(undefined, usesStore, scopeBy)
    const result = storage.run(scope, () => fn.apply(this, args))
    if (result instanceof Promise) {
      const end = () => scope.end()
      result.then(end, end)
    }
    return result
  }
}

/** @throws OptionError: what is not given must not be taken for what the scope around it gives */
function checkDimensions(given: unknown): ScopeDimensions | undefined {
  if (given === undefined) return undefined
  const wanted = 'a text that is not empty, a whole number or a bigint'
  if (typeof given !== 'object' || given === null || Array.isArray(given))
    throw new OptionError('runInLoop.scopeBy', 'an object such as { tenant: 7 }', given)
  for (const [name, value] of Object.entries(given)) {
    const good =
      typeof value === 'string' ? value !== '' : typeof value === 'bigint' || Number.isSafeInteger(value)
    if (!good) throw new OptionError(`runInLoop.scopeBy.${name}`, wanted, value)
  }
  return Object.freeze(Object.assign(Object.create(null), given))
}

function withDimensions(
  outer: ScopeDimensions | undefined,
  own: ScopeDimensions | undefined,
): ScopeDimensions {
  if (!outer || !own) return own ?? outer ?? NO_DIMENSIONS
  return Object.freeze(Object.assign(Object.create(null), outer, own))
}
