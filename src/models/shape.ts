import { InvalidKeyError, show } from '../errors.ts'
import { type Canonicalize, IMPOSSIBLE, Refusal, Uncertain } from './canonical.ts'
import type { CustomDefinition } from './custom.ts'
import { escapeKeyPart, keyOf } from './key.ts'

export type ShapeKind = 'key' | 'filter' | 'custom'

/**
 * A declared field list of a model: `key` fields select one row at most, `filter` fields a list, those of a custom cache
 * whatever it makes of them.
 */
export interface Shape {
  readonly kind: ShapeKind
  readonly fields: readonly string[]
  /** Those of `fields` that a lookup names. The values of the others are those of its scope. */
  readonly asked: readonly string[]
  /** What the scope of a lookup has a say in; of each, the field is among `fields`. */
  readonly dimensions: readonly Dimension[]
  /** The only one of `asked`, if it is one. */
  readonly single: string | undefined
  /** Stands in cache keys and messages; unique within the model. */
  readonly name: string
  readonly custom: CustomDefinition | undefined
}

/** A part of who asks, such as the tenant, and the field in which a row says whose it is. */
export interface Dimension {
  readonly name: string
  readonly field: string
}

/** @param asked the declared fields */
export function defineShape(
  kind: 'key' | 'filter',
  asked: readonly string[],
  dimensions: readonly Dimension[] = [],
): Shape {
  const parts = fieldsOfShape(asked, dimensions)
  const name = parts.fields.map(escapeKeyPart).join(',')
  return Object.freeze({ kind, ...parts, name: kind === 'key' ? name : `${name}[]`, custom: undefined })
}

/** The fields of the dimensions are fields like others, for keys, triggers and SQL: no row of another tenant is found. */
export function fieldsOfShape(
  asked: readonly string[],
  dimensions: readonly Dimension[],
): Pick<Shape, 'fields' | 'asked' | 'dimensions' | 'single'> {
  return {
    fields: Object.freeze([...new Set([...asked, ...dimensions.map(({ field }) => field)])]),
    asked: Object.freeze([...asked]),
    dimensions,
    single: asked.length === 1 ? asked[0] : undefined,
  }
}

/** What one lookup asks of the store and the source. */
export interface Address {
  /** The cache key; of an uncertain lookup it serves the memo only. */
  readonly key: string
  /** Canonical texts in the order of the shape's fields; null is SQL's NULL. */
  readonly texts: readonly (string | null)[]
  /** `store`: the normal way. `source`: past the store, in a statement of its own. `nowhere`: no row can match. */
  readonly route: 'store' | 'source' | 'nowhere'
}

/** Turns the values of a lookup into its {@link Address}. One per shape, made when the column types are known. */
export type AddressOf = (values: Readonly<Record<string, unknown>>) => Address

/**
 * @param prefix the cache key up to the values
 * @throws InvalidKeyError (the returned function) for a value that can be no key
 */
export function createAddressOf(
  model: string,
  shape: Shape,
  prefix: string,
  canonicalizers: readonly Canonicalize[],
  normalizers: readonly (((value: never) => unknown) | undefined)[],
): AddressOf {
  const { fields, kind } = shape
  const textOf = (index: number, given: unknown): string | null | typeof IMPOSSIBLE | Uncertain => {
    const normalize = normalizers[index]
    const value = normalize && given !== null && given !== undefined ? normalize(given as never) : given
    if (value === null) return null
    const text = (canonicalizers[index] as Canonicalize)(value)
    if (text instanceof Refusal) throw new InvalidKeyError(model, fields[index] as string, text.problem)
    return text
  }
  const general: AddressOf = (values) => {
    let route: Address['route'] = 'store'
    let nowhere = false
    const texts = fields.map((field, index) => {
      const text = textOf(index, values[field])
      if (text instanceof Uncertain) {
        route = 'source'
        return text.text
      }
      // NULL equals nothing, so a key with a NULL in it identifies no row.
      if (text === IMPOSSIBLE || (text === null && kind === 'key')) nowhere = true
      return text === IMPOSSIBLE ? null : text
    })
    if (nowhere) route = 'nowhere'
    if (route === 'store') return { key: keyOf(prefix, texts), texts, route }
    // Only exact texts make a cache key. The others must not meet one in the memo: '#' starts no escaped value. Where
    // no row can match, all that differs is what the error says was asked for.
    const told = nowhere ? fields.map((field) => show(values[field])) : texts
    return { key: keyOf(`${prefix}##${route}:`, told), texts, route }
  }
  if (fields.length > 1) return general
  const [field] = fields as [string]
  const [canonicalize] = canonicalizers as [Canonicalize]
  const [normalize] = normalizers
  return (values) => {
    const given = values[field]
    if (typeof given === 'number' && normalize === undefined) {
      const text = canonicalize(given)
      // A number's text is short and has nothing in it that must be escaped.
      if (typeof text === 'string') return { key: prefix + text, texts: [text], route: 'store' }
    }
    const text = textOf(0, given)
    if (typeof text !== 'string') return general(values)
    const texts = [text]
    return { key: keyOf(prefix, texts), texts, route: 'store' }
  }
}
