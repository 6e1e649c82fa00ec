import type { Shape } from '../models/shape.ts'
import type { TouchedKeys } from '../models/touched.ts'
import type { Lookup } from './lookup.ts'

interface Numbers {
  /** What the cache keys of the shape begin with; the number follows. */
  readonly prefix: string
  readonly lookups: Map<number, Lookup>
}

/** A scope's own results. */
export class Memo {
  readonly #byKey = new Map<string, Lookup>()
  /** Lookups by a single integer. Most are, and these are found again without the text of a cache key. */
  readonly #byNumber = new Map<Shape, Numbers>()
  /** Where {@link find} looked last. */
  #lastShape: Shape | undefined
  #lastNumbers: Map<number, Lookup> | undefined
  /** Keys of lookups whose value only the database knows: any write may be to their rows. */
  readonly #uncertain = new Set<string>()

  /** The lookup of `value`, the only field of `shape`, if it is to be found by the look of it. */
  find(shape: Shape, value: unknown): Lookup | undefined {
    if (typeof value !== 'number') return undefined
    if (shape !== this.#lastShape) {
      this.#lastShape = shape
      this.#lastNumbers = this.#byNumber.get(shape)?.lookups
    }
    return this.#lastNumbers?.get(value)
  }

  /** The lookup of the same values as `lookup`. */
  twinOf(lookup: Lookup): Lookup | undefined {
    const number = numberOf(lookup)
    if (number === undefined) return this.#byKey.get(lookup.address.key)
    return this.#byNumber.get(lookup.target.shape)?.lookups.get(number)
  }

  add(lookup: Lookup): void {
    const number = numberOf(lookup)
    if (number !== undefined) {
      this.#numbersOf(lookup).lookups.set(number, lookup)
      return
    }
    const { key, route } = lookup.address
    this.#byKey.set(key, lookup)
    if (route === 'source') this.#uncertain.add(key)
  }

  /** Takes a lookup out, unless another one has its place by now. */
  delete(lookup: Lookup): void {
    if (this.twinOf(lookup) !== lookup) return
    const number = numberOf(lookup)
    if (number === undefined) this.#byKey.delete(lookup.address.key)
    else this.#byNumber.get(lookup.target.shape)?.lookups.delete(number)
  }

  /** Takes out what was written. */
  forget({ keys: gone, prefixes, stale }: TouchedKeys): void {
    const keys = stale && stale.size > 0 ? [...gone, ...stale.keys()] : gone
    for (const key of keys) this.#byKey.delete(key)
    for (const prefix of prefixes)
      for (const key of this.#byKey.keys()) if (key.startsWith(prefix)) this.#byKey.delete(key)
    for (const key of this.#uncertain) this.#byKey.delete(key)
    this.#uncertain.clear()
    for (const { prefix, lookups } of this.#byNumber.values()) {
      for (const key of keys) if (key.startsWith(prefix)) lookups.delete(Number(key.slice(prefix.length)))
      if (prefixes.some((each) => prefix.startsWith(each))) lookups.clear()
    }
  }

  #numbersOf({ target: { shape }, address: { key, texts } }: Lookup): Numbers {
    const found = this.#byNumber.get(shape)
    if (found) return found
    const numbers = { prefix: key.slice(0, -(texts[0] as string).length), lookups: new Map<number, Lookup>() }
    this.#byNumber.set(shape, numbers)
    this.#lastShape = undefined
    return numbers
  }
}

/** The number that stands for the values of a lookup, one to one, if there is such a number. */
function numberOf({ target, address }: Lookup): number | undefined {
  if (address.route !== 'store' || !target.isInteger) return undefined
  const number = Number(address.texts[0])
  return Number.isSafeInteger(number) ? number : undefined
}
