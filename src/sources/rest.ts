/** The longest rest, ms: how late it is noticed that something works again. */
const LONGEST_REST_MS = 1000

/**
 * Keeps from asking, again and again, for what fails: each attempt that fails is followed by a rest, twice as long as
 * the one before. After a rest one attempt is made, and the others wait for what comes of it.
 */
export class Rest {
  readonly #firstMs: number
  readonly #now: () => number
  /** 0: the last attempt did not fail. */
  #restMs = 0
  #until = 0
  #trying = false

  /** @param now a clock, ms, that never goes back */
  constructor(firstMs: number, now: () => number = () => performance.now()) {
    this.#firstMs = Math.min(firstMs, LONGEST_REST_MS)
    this.#now = now
  }

  /** Whether an attempt may be made now. One that is has to be told the end of, by `succeeded` or `failed`. */
  mayTry(): boolean {
    if (this.#restMs === 0) return true
    if (this.#trying || this.#now() < this.#until) return false
    this.#trying = true
    return true
  }

  succeeded(): void {
    this.#restMs = 0
    this.#trying = false
  }

  failed(): void {
    // Begun before the rest, with those that it is for.
    if (this.#restMs > 0 && !this.#trying) return
    this.#restMs = Math.min(this.#restMs * 2 || this.#firstMs, LONGEST_REST_MS)
    this.#until = this.#now() + this.#restMs
    this.#trying = false
  }
}
