import type { RowCodec } from './codec.ts'
import type { CustomDefinition } from './custom.ts'
import { staleKeyOf } from './key.ts'
import type { BoundModel } from './model.ts'
import type { AddressOf, Shape } from './shape.ts'

/** What a lookup comes to: a row or null, rows, or what a custom cache has for its key. Never undefined. */
// biome-ignore lint/complexity/noBannedTypes: everything but undefined is meant
export type Answer = {} | null

/** A shape of a bound model, as a wave looks it up. */
export interface Target {
  readonly model: BoundModel
  readonly shape: Shape
  /** Of the model, or of the custom cache; for errors. */
  readonly name: string
  /** The number in stored values: entries with a lower one were stored by older code, with a higher one by newer. */
  readonly schema: number
  readonly ttlMs: number
  readonly negativeTtlMs: number
  /** How long what a write has marked stale may be answered, ms; 0: not at all. */
  readonly staleForMs: number
  /** False: its lookups go past the store. */
  readonly usesStore: boolean
  /** Whether its values are one integer: a number can stand for them. */
  readonly isInteger: boolean
  readonly addressOf: AddressOf
  /** As `addressOf`, for values that the database holds: `normalize` is for lookups alone. */
  readonly addressOfStored: AddressOf
  /** What it answers where there is nothing. */
  absent(): Answer
  /** Reads an answer of its own from the bytes from `offset` to the end; undefined when they cannot be read. */
  decode(bytes: Buffer, offset: number): Answer | undefined
  /** @throws UnstorableValueError, RowFormError */
  encode(answer: Answer): Buffer
}

/** All the keys that may hold something for a lookup. */
export function entryKeys({ staleForMs }: Target, key: string): readonly string[] {
  return staleForMs > 0 ? [key, staleKeyOf(key)] : [key]
}

export type TargetParts = Pick<Target, 'model' | 'shape' | 'isInteger' | 'addressOf' | 'addressOfStored'>

type Rows = readonly Readonly<Record<string, unknown>>[]

abstract class ModelTarget {
  readonly model: BoundModel
  readonly shape: Shape
  readonly name: string
  readonly schema: number
  readonly ttlMs: number
  readonly negativeTtlMs: number
  readonly staleForMs: number
  readonly usesStore: boolean
  readonly isInteger: boolean
  readonly addressOf: AddressOf
  readonly addressOfStored: AddressOf
  protected readonly codec: RowCodec

  constructor({ model, shape, isInteger, addressOf, addressOfStored }: TargetParts) {
    this.model = model
    this.shape = shape
    this.name = model.definition.name
    this.schema = model.schema
    this.ttlMs = model.definition.ttlMs
    this.negativeTtlMs = model.definition.negativeTtlMs
    this.staleForMs = model.definition.invalidation.staleForMs
    this.usesStore = model.definition.enabled
    this.isInteger = isInteger
    this.addressOf = addressOf
    this.addressOfStored = addressOfStored
    this.codec = model.codec
  }
}

/** A row, or null. */
export class RowTarget extends ModelTarget implements Target {
  absent(): Answer {
    return null
  }

  decode(bytes: Buffer, offset: number): Answer | undefined {
    return this.codec.decodeRow(bytes, offset)
  }

  encode(answer: Answer): Buffer {
    return this.codec.encodeRow(answer as Rows[number])
  }
}

/** The rows of a list. */
export class RowsTarget extends ModelTarget implements Target {
  absent(): Answer {
    return []
  }

  decode(bytes: Buffer, offset: number): Answer | undefined {
    return this.codec.decodeRows(bytes, offset)
  }

  encode(answer: Answer): Buffer {
    return this.codec.encodeRows(answer as Rows)
  }
}

/** The only column of what custom caches store. */
export const VALUE = 'value'

/** A value of any kind, or null. */
export class CustomTarget implements Target {
  readonly model: BoundModel
  readonly shape: Shape
  readonly name: string
  readonly schema: number
  readonly ttlMs: number
  readonly negativeTtlMs: number
  readonly staleForMs: number
  readonly usesStore: boolean
  readonly isInteger: boolean
  readonly addressOf: AddressOf
  readonly addressOfStored: AddressOf
  readonly #codec: RowCodec

  constructor(parts: TargetParts, custom: CustomDefinition, schema: number, codec: RowCodec) {
    this.model = parts.model
    this.shape = parts.shape
    this.isInteger = parts.isInteger
    this.addressOf = parts.addressOf
    this.addressOfStored = parts.addressOfStored
    this.name = custom.name
    this.schema = schema
    this.ttlMs = custom.ttlMs
    this.negativeTtlMs = custom.negativeTtlMs
    this.staleForMs = custom.invalidation.staleForMs
    this.usesStore = custom.enabled
    this.#codec = codec
  }

  absent(): Answer {
    return null
  }

  decode(bytes: Buffer, offset: number): Answer | undefined {
    return this.#codec.decodeRow(bytes, offset)?.[VALUE] as Answer | undefined
  }

  encode(answer: Answer): Buffer {
    return this.#codec.encodeRow({ [VALUE]: answer })
  }
}
