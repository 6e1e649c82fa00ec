import { NotFoundError, NotFoundHttpError } from '../errors.ts'
import type { Address } from '../models/shape.ts'
import type { Answer, Target } from '../models/target.ts'
import { filledAt } from '../stores/entry.ts'
import type { Memo } from './memo.ts'

/**
 * What a lookup that finds no row comes to. `only-cache`: null as well, and undefined where neither the memo nor the
 * store knows; it makes no SQL and takes no lease.
 */
export type OnAbsent = 'null' | 'not-found' | 'not-found-http' | 'only-cache'

/** Where an answer came from, and how old it is. */
export interface AnswerMeta {
  /** `store`: from the cache; `sql`: loaded by this scope; `primed`: given by the application. */
  readonly source: 'store' | 'sql' | 'primed'
  /** Since it was read from the database, or primed, ms. By the clocks of this process and of the one that filled it. */
  readonly ageMs: number
  /** Whether a write had marked it stale, and it was given all the same: see `staleFor`. */
  readonly stale: boolean
}

/**
 * One call for one key, and the slot of its answer in a scope's memo: whoever clears the memo takes the slot away,
 * so a load that is still under way can only answer those who already wait for it.
 */
export class Lookup {
  readonly target: Target
  readonly values: Readonly<Record<string, unknown>>
  readonly address: Address
  /** Undefined until answered. */
  answered: Answer | undefined = undefined
  /** When the answer was read from the database, or from the application, ms since 1970; 0 until answered. */
  readAt = 0
  source: AnswerMeta['source'] = 'sql'
  /** Whether a write had marked it stale. */
  isStale = false
  /** What callers wait for: the answer as `#onAbsent` puts it. Undefined until {@link begin}. */
  promise: Promise<unknown> | undefined = undefined
  readonly #onAbsent: OnAbsent
  /** Of the scope it was made in; undefined outside of any. */
  readonly memo: Memo | undefined
  /** Failed, or left without an answer. */
  #ended = false
  #resolve: ((value: unknown) => void) | undefined = undefined
  #reject: ((error: Error) => void) | undefined = undefined

  /** One executor for all promises, which are made one at a time: a closure for each would cost as much as the promise. */
  static #beginning: Lookup
  static readonly #executor = (resolve: (value: unknown) => void, reject: (error: Error) => void) => {
    Lookup.#beginning.#resolve = resolve
    Lookup.#beginning.#reject = reject
  }

  constructor(
    target: Target,
    values: Readonly<Record<string, unknown>>,
    address: Address,
    onAbsent: OnAbsent,
    memo: Memo | undefined,
  ) {
    this.target = target
    this.values = values
    this.address = address
    this.#onAbsent = onAbsent
    this.memo = memo
  }

  get pending(): boolean {
    return this.answered === undefined && !this.#ended
  }

  get isOnlyCache(): boolean {
    return this.#onAbsent === 'only-cache'
  }

  begin(): Promise<unknown> {
    Lookup.#beginning = this
    this.promise = new Promise(Lookup.#executor)
    return this.promise
  }

  /** Its answer is in a record of the store. */
  seenIn(record: Buffer): void {
    this.readAt = filledAt(record)
    this.source = 'store'
  }

  answer(value: Answer): void {
    this.answered = value
    if (this.readAt === 0) this.readAt = Date.now()
    if (value !== null || this.#onAbsent === 'null') this.#resolve?.(value)
    else this.#settle(this.#as(this.#onAbsent))
  }

  /** Fails those who wait. A failure is no answer: the next lookup of this key asks again. */
  fail(error: Error): void {
    this.#ended = true
    this.memo?.delete(this)
    this.#reject?.(error)
  }

  /** Leaves a lookup that asks only the cache without an answer: it is not known there. */
  leave(): void {
    this.#ended = true
    this.#resolve?.(undefined)
  }

  /** The answer for a caller who wants absence told in this way, which need not be how the first caller wanted it. */
  promiseAs(onAbsent: OnAbsent): Promise<unknown> {
    const promise = this.promise as Promise<unknown>
    if (onAbsent === this.#onAbsent) return promise
    const again = () => {
      const result = this.#as(onAbsent)
      if (result instanceof Error) throw result
      return result
    }
    return promise.then(again, (error: unknown) => {
      if (this.answered !== undefined) return again()
      // Whoever asks only the cache did not ask for what failed.
      if (onAbsent === 'only-cache') return undefined
      throw error
    })
  }

  #settle(result: Answer | Error): void {
    if (result instanceof Error) this.#reject?.(result)
    else this.#resolve?.(result)
  }

  #as(onAbsent: OnAbsent): Answer | Error {
    const answer = this.answered as Answer
    if (answer !== null || onAbsent === 'null' || onAbsent === 'only-cache') return answer
    const Absent = onAbsent === 'not-found' ? NotFoundError : NotFoundHttpError
    return new Absent(this.target.name, this.values)
  }
}
