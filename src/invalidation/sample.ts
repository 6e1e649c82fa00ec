/** What may be drawn for a sample, and where it belongs. */
export interface Drawn<Group> {
  readonly group: Group
  readonly key: string
}

/** Draws at random from a stream of unknown length, each item as likely as any other. */
export class Sample<Group> {
  readonly #size: number
  readonly #drawn: Drawn<Group>[] = []
  #offered = 0

  /** @param size most that are drawn; Infinity: all */
  constructor(size: number) {
    this.#size = size
  }

  get offered(): number {
    return this.#offered
  }

  offer(group: Group, key: string): void {
    this.#offered++
    if (this.#drawn.length < this.#size) {
      this.#drawn.push({ group, key })
      return
    }
    // The n-th item stays with a chance of size/n, in the place of any other.
    const at = Math.floor(Math.random() * this.#offered)
    if (at < this.#size) this.#drawn[at] = { group, key }
  }

  /** What was drawn, by group; each key once, though it was offered twice. */
  groups(): ReadonlyMap<Group, readonly string[]> {
    const groups = new Map<Group, Set<string>>()
    for (const { group, key } of this.#drawn) {
      const keys = groups.get(group)
      if (keys) keys.add(key)
      else groups.set(group, new Set([key]))
    }
    return new Map([...groups].map(([group, keys]) => [group, [...keys]]))
  }
}
