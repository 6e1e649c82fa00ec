import { now } from './clock.ts'
import type { Journal } from './journal.ts'

/** Longer than any fault lasts, and what follows it. */
const HANGS_AFTER_MS = 15_000

/** Sees to it that nothing hangs, and writes down what must not be. */
export class Watch {
  readonly #journal: Journal
  readonly #pending = new Map<object, { readonly what: string; readonly since: number }>()
  readonly #timer: NodeJS.Timeout

  constructor(journal: Journal) {
    this.#journal = journal
    this.#timer = setInterval(() => this.#look(), 1000)
  }

  problem(promise: string, message: string): void {
    this.#journal.noteForSure({ t: 'problem', at: now(), promise, message })
  }

  /** Runs something that has to come to an end. */
  async over<T>(what: string, run: () => Promise<T>): Promise<T> {
    const id = {}
    this.#pending.set(id, { what, since: now() })
    try {
      return await run()
    } finally {
      this.#pending.delete(id)
    }
  }

  end(): void {
    clearInterval(this.#timer)
  }

  #look(): void {
    for (const [id, { what, since }] of this.#pending) {
      if (now() - since < HANGS_AFTER_MS) continue
      this.#pending.delete(id)
      this.problem('nothing hangs', `${what}: for ${Math.round(now() - since)} ms`)
    }
  }
}
