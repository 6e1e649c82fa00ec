import { AsyncLocalStorage } from 'node:async_hooks'

/**
 * One request, job or loop turn. It owns the loaders of every cache that is used in it, so two lookups of one key
 * are one, and it is gone with them when the work is done.
 */
export class Scope {
  /** Per cache, what it keeps for this scope. */
  readonly #parts = new Map<object, unknown>()

  part<T>(owner: object, create: () => T): T {
    let part = this.#parts.get(owner) as T | undefined
    if (part === undefined) {
      part = create()
      this.#parts.set(owner, part)
    }
    return part
  }
}

const storage = new AsyncLocalStorage<Scope>()

/** The scope this code runs in, or undefined outside of any. */
export function currentScope(): Scope | undefined {
  return storage.getStore()
}

/**
 * Wraps a function so that each call of it runs in a fresh scope: lookups made in it, however deep and after however
 * many awaits, share waves and a memo; nothing is shared with other calls. Scopes nest: an inner one is fresh, and
 * the outer one is back afterwards.
 *
 * ```ts
 * const handler = runInLoop(async (req) => { ... })
 * ```
 */
export function runInLoop<This, Args extends unknown[], Result>(
  fn: (this: This, ...args: Args) => Result,
): (this: This, ...args: Args) => Result {
  return function (this: This, ...args: Args): Result {
    return storage.run(new Scope(), () => fn.apply(this, args))
  }
}
