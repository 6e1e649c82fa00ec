import { InvalidKeyError } from '../errors.ts'
import { booleanOption, type Duration, durationMs, integerOption } from '../options.ts'
import { type Codec, checkCodec } from './codec-layer.ts'
import { escapeKeyPart } from './key.ts'
import {
  fieldList,
  type Invalidation,
  type InvalidationMeta,
  invalidationOf,
  MAX_VERSION,
  type ModelDefinition,
} from './model.ts'
import { fieldsOfShape, type Shape } from './shape.ts'

/**
 * What a custom cache of a model loads for its keys: rows of the table, how many there are, or what the application
 * makes of them.
 */
export type CustomLoad =
  | { readonly kind: 'count' | 'exists' | 'first' }
  | {
      /** The rows at the end of the path, each once; with `single` the first of them. */
      readonly kind: 'related'
      readonly path: readonly Hop[]
      readonly single: boolean
    }
  | {
      readonly kind: 'load'
      /** One result per key, in their order: a value, null for none, an Error for that key alone, or doNotCache(value). */
      readonly load: (
        keys: readonly Readonly<Record<string, unknown>>[],
        context: { readonly db: never },
      ) => Promise<readonly unknown[]>
      /** Undefined: `load` itself sees to it that it ends. */
      readonly timeoutMs: number | undefined
    }

/** From the rows of one model to those of the next. */
export interface Hop {
  /** As declared. */
  readonly model: string
  /** Of the model, as it is declared by now. */
  definition(): ModelDefinition
  /** Pairs of fields that are equal: of the model before, and of this one. */
  readonly on: readonly (readonly [before: string, after: string])[]
}

/** A cache of values that are not the rows of a table, but made of them, by fields of one model. */
export interface CustomDefinition {
  readonly name: string
  readonly load: CustomLoad
  readonly ttlMs: number
  readonly negativeTtlMs: number
  readonly version: number
  readonly invalidation: Invalidation
  readonly codec: Codec | undefined
  /** False: lookups go past the store. */
  readonly enabled: boolean
}

export interface CustomMeta extends InvalidationMeta {
  readonly name: string
  readonly keyFields: readonly string[]
  readonly ttl?: Duration | undefined
  readonly negativeTtl?: Duration | undefined
  readonly version?: number | undefined
  readonly codec?: Codec | undefined
  readonly enabled?: boolean | undefined
}

/**
 * Checks and freezes a custom cache.
 *
 * @throws OptionError naming the option
 */
export function defineCustom(model: ModelDefinition, meta: CustomMeta, load: CustomLoad): Shape {
  const { name } = meta
  const at = (option: string) => `${name}.${option}`
  const ttlMs = meta.ttl === undefined ? model.ttlMs : durationMs(at('ttl'), meta.ttl)
  const negativeTtlMs =
    meta.negativeTtl === undefined
      ? Math.min(ttlMs, model.negativeTtlMs)
      : durationMs(at('negativeTtl'), meta.negativeTtl)
  const parts = fieldsOfShape(fieldList(at('keyFields'), meta.keyFields), model.dimensions)
  return Object.freeze({
    kind: 'custom',
    ...parts,
    // No shape of rows has '~' in its name.
    name: `${escapeKeyPart(name)}~${parts.fields.map(escapeKeyPart).join(',')}`,
    custom: Object.freeze({
      name,
      load,
      ttlMs,
      negativeTtlMs,
      version: integerOption(at('version'), meta.version ?? 0, 0, MAX_VERSION),
      invalidation: invalidationOf(at, meta, model.invalidation, model.consistency === 'strict'),
      codec: meta.codec === undefined ? model.codec : checkCodec(at('codec'), meta.codec),
      enabled: booleanOption(at('enabled'), meta.enabled ?? model.enabled),
    }),
  })
}

/**
 * The key of a custom cache by its fields, from an object, or from values in the order of the fields.
 *
 * @throws InvalidKeyError when fields are missing, or there are others
 */
export function keyAddressed(
  name: string,
  fields: readonly string[],
  given: readonly unknown[],
): Readonly<Record<string, unknown>> {
  const [first] = given
  const isObject = given.length === 1 && isPlain(first)
  const values = isObject
    ? first
    : Object.fromEntries(given.map((value, i) => [fields[i] ?? `argument ${i + 1}`, value]))
  const extra = Object.keys(values).find((field) => !fields.includes(field))
  if (extra !== undefined)
    throw new InvalidKeyError(name, extra, `is no key field of it; they are ${fields.join(', ')}`)
  const missing = fields.find((field) => !Object.hasOwn(values, field) || values[field] === undefined)
  if (missing !== undefined) throw new InvalidKeyError(name, missing, 'must not be undefined')
  return values
}

function isPlain(value: unknown): value is Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null) return false
  const prototype = Object.getPrototypeOf(value)
  return prototype === Object.prototype || prototype === null
}

/** A loaded value that is answered, but not kept. */
export class DoNotCache {
  readonly value: unknown
  constructor(value: unknown) {
    this.value = value
  }
}

/** For a custom `load`: answers this value, and does not cache it. */
export function doNotCache<Value>(value: Value): Value {
  return new DoNotCache(value) as Value
}
