import { InvalidKeyError, OptionError } from '../errors.ts'
import { keyAddressed } from '../models/custom.ts'
import { withKeysOfRows } from '../models/relation.ts'
import type { Shape } from '../models/shape.ts'
import { type Answer, entryKeys } from '../models/target.ts'
import { answerAsync } from './asking.ts'
import type { AnswerMeta } from './lookup.ts'
import { createQuery, type Query } from './query.ts'
import { forgetEverywhere, type Reader } from './reader.ts'
import { type Wanted, withRelations } from './related.ts'

/**
 * Looks up what a custom cache has for a key: `EventOnSlug({ slug })`, or positional, in the order of `keyFields`,
 * `EventOnSlug(slug)`. In an object, the row of a `one` relation may stand for its key. The query it returns looks up
 * when it is resolved, in the scope and the wave of that moment.
 */
export interface CustomLookup<Key extends object, Positional extends readonly unknown[], Value> {
  (key: Key): Query<Value>
  (...key: Positional): Query<Value>
  /** As declared. */
  readonly cacheName: string
  /** Forgets a key, in the store and in the memo of the current scope. Rejects StoreUnavailableError. */
  invalidate(key: Key): Promise<void>
  /** The cache key of a lookup. Rejects InvalidKeyError, also where nothing is ever cached; ModelError, SourceError. */
  keyOf(key: Key): Promise<string>
}

/** A custom cache whose answers are entries of its own. */
export interface CustomCache<Key extends object, Positional extends readonly unknown[], Value>
  extends CustomLookup<Key, Positional, Value> {
  /** What the memo of the current scope knows of a key, without any I/O; undefined when it is not known here. */
  peek(key: Key): Value | undefined
  /** Where the answer that this scope has for a key came from, and how old it is; undefined when nothing is known here. */
  metaOf(key: Key): AnswerMeta | undefined
  /**
   * Has the current scope know a value that the application has already, and nobody else; see `Model.cache.prime`.
   *
   * @returns false when nothing was put
   * @throws InvalidKeyError, CacheClosedError; OptionError for undefined
   */
  prime(key: Key, value: Value): boolean
  /**
   * Forgets a key, then loads it: the value is of a load that began after the call, and so is what other lookups get
   * from then on. Rejects as a lookup does; and StoreUnavailableError when the store could not be told.
   */
  refresh(key: Key): Promise<Value>
}

/**
 * @param shape of the model behind `reader`
 * @param wanted the relations that its rows come with, found at the first lookup
 */
export function createCustomCache<Key extends object, Positional extends readonly unknown[], Value>(
  name: string,
  reader: Reader,
  shape: Shape,
  wanted?: () => Wanted,
): CustomCache<Key, Positional, Value> {
  const valuesOf = (given: readonly unknown[]) =>
    withKeysOfRows(reader.definition.foreignFields, keyAddressed(name, shape.asked, given))
  const query = (...given: readonly unknown[]): Query<Value> =>
    createQuery((onlyCache) => {
      const onAbsent = onlyCache ? 'only-cache' : 'null'
      if (!wanted) return reader.lookUp(() => shape, valuesOf(given), onAbsent)
      const parent = { reader, shape: () => shape, values: valuesOf(given), onAbsent } as const
      return answerAsync(withRelations(parent, wanted()), onlyCache)
    })
  return Object.assign(query, {
    cacheName: name,
    metaOf: (key: Key) => reader.metaOf(() => shape, valuesOf([key])),
    peek: (key: Key) => reader.peek(() => shape, valuesOf([key])) as Value | undefined,
    prime(key: Key, value: Value) {
      if (value === undefined) throw new OptionError(`${name}.prime`, 'a value, or null', value)
      return reader.prime(() => shape, valuesOf([key]), value as Answer)
    },
    refresh: async (key: Key) => (await reader.refresh(() => shape, valuesOf([key]))) as Value,
    keyOf: async (key: Key) => reader.keyOf(() => shape, valuesOf([key])),
    async invalidate(key: Key) {
      const { target, address } = await reader.addressed(shape, valuesOf([key]))
      if (address.route === 'source')
        throw new InvalidKeyError(name, shape.fields.join(', '), 'is of a type that is not cached')
      await forgetEverywhere(reader.parts, { keys: entryKeys(target, address.key), prefixes: [] })
    },
  })
}
