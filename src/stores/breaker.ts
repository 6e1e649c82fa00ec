/**
 * `closed`: steps are taken. `open`: none is, and lookups go to SQL at once. `half-open`: as open, while a probe is
 * under way that tells which of the two it will be.
 */
export type BreakerState = 'closed' | 'open' | 'half-open'

export interface BreakerSettings {
  /** So many steps that fail in a row open it. */
  readonly failures: number
  /** How long it stays open before a probe, and between two of them, ms. */
  readonly pauseMs: number
}

/**
 * Tells when a store is not worth asking. Lookups are never the probe: what they would wait for is what it spares them.
 * Does no I/O and sets no timer; whoever owns it says what happened, and asks when to probe.
 */
export class Breaker {
  readonly #settings: BreakerSettings
  readonly #now: () => number
  #state: BreakerState = 'closed'
  #failures = 0
  #opened = 0
  #probeAt = 0
  #lastError: unknown
  /** Called after every change. */
  onChange: (() => void) | undefined

  /** @param now a clock, in ms; only differences count */
  constructor(settings: BreakerSettings, now: () => number) {
    this.#settings = settings
    this.#now = now
  }

  get state(): BreakerState {
    return this.#state
  }

  /** How often it has opened, failed probes not counted. */
  get opened(): number {
    return this.#opened
  }

  /** What failed last. */
  get lastError(): unknown {
    return this.#lastError
  }

  /** @param began {@link opened} when the step began: what began before it opened last tells nothing of now */
  succeeded(began: number): void {
    if (this.#state === 'closed' && began === this.#opened) this.#failures = 0
  }

  /** @param began as in {@link succeeded} */
  failed(began: number, error: unknown): void {
    if (this.#state !== 'closed' || began !== this.#opened) return
    this.#lastError = error
    if (++this.#failures < this.#settings.failures) return
    this.#opened++
    this.#open()
  }

  /** How long until a probe is due, ms; undefined: none is to be made. */
  get probeInMs(): number | undefined {
    return this.#state === 'open' ? Math.max(0, this.#probeAt - this.#now()) : undefined
  }

  /** Begins a probe if one is due. True: make it, and tell with {@link probed} how it went. */
  tryProbe(): boolean {
    if (this.probeInMs !== 0) return false
    this.#change('half-open')
    return true
  }

  /** @param error undefined: it was answered in time */
  probed(error?: unknown): void {
    if (this.#state !== 'half-open') return
    if (error !== undefined) {
      this.#lastError = error
      this.#open()
      return
    }
    // On trial: one probe is not the load, so the first step that fails opens it again.
    this.#failures = this.#settings.failures - 1
    this.#change('closed')
  }

  #open(): void {
    this.#probeAt = this.#now() + this.#settings.pauseMs
    this.#change('open')
  }

  #change(state: BreakerState): void {
    this.#state = state
    this.onChange?.()
  }
}
