import { EVERY_SCHEMA, type Fill } from '../../src/stores/store.ts'

/** A key as the protocol describes it, and not as any store keeps it. */
export type ReferenceEntry =
  | { kind: 'none' }
  | { kind: 'value'; schema: number; payload: string | null }
  | { kind: 'lease'; holder: string }
  | { kind: 'intents'; writers: ReadonlySet<string> }

/** The protocol in a few lines, without bytes, ttls and batches: what the stores are compared with. */
export class ReferenceStore {
  readonly #entries = new Map<string, ReferenceEntry>()

  at(key: string): ReferenceEntry {
    return this.#entries.get(key) ?? { kind: 'none' }
  }

  /** Whether a lease was granted. */
  acquire(key: string, schema: number, holder: string): boolean {
    const entry = this.at(key)
    const usable =
      entry.kind === 'none' || (entry.kind === 'value' && (schema === EVERY_SCHEMA || entry.schema < schema))
    if (usable) this.#entries.set(key, { kind: 'lease', holder })
    return usable
  }

  /** Whether something was stored. */
  fill(key: string, holder: string, schema: number, payload: Fill['payload']): boolean {
    const entry = this.at(key)
    if (entry.kind !== 'lease' || entry.holder !== holder) return false
    if (payload === 'release') this.#entries.delete(key)
    else {
      const text = payload === 'absent' ? null : payload.toString('latin1')
      this.#entries.set(key, { kind: 'value', schema, payload: text })
    }
    return payload !== 'release'
  }

  intend(key: string, writer: string): void {
    const entry = this.at(key)
    const others = entry.kind === 'intents' ? entry.writers : []
    this.#entries.set(key, { kind: 'intents', writers: new Set([...others, writer]) })
  }

  clear(key: string, writer: string | null, committed: boolean): void {
    const entry = this.at(key)
    if (entry.kind === 'intents') {
      const others = new Set([...entry.writers].filter((each) => each !== writer))
      if (others.size > 0) this.#entries.set(key, { kind: 'intents', writers: others })
      else this.#entries.delete(key)
    } else if (committed) {
      this.#entries.delete(key)
    }
  }

  clearPrefix(prefix: string): void {
    for (const key of [...this.#entries.keys()]) if (key.startsWith(prefix)) this.clear(key, null, true)
  }

  /** So much time passes that nothing is left. */
  outlive(): void {
    this.#entries.clear()
  }
}
