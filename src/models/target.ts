import type { RowCodec } from './codec.ts'
import type { CustomDefinition } from './custom.ts'
import { staleKeyOf } from './key.ts'
import type { BoundModel, ModelDefinition } from './model.ts'
import type { AddressOf, Shape } from './shape.ts'

/** What a lookup comes to: a row or null, rows, or what a custom cache has for its key. Never undefined. */
// biome-ignore lint/complexity/noBannedTypes: everything but undefined is meant
export type Answer = {} | null

/** What a target is made of, besides what was declared. */
export interface TargetParts {
  readonly model: BoundModel
  readonly shape: Shape
  readonly schema: number
  readonly codec: RowCodec
  readonly isInteger: boolean
  readonly addressOf: AddressOf
  readonly addressOfStored: AddressOf
}

/** A shape of a bound model, as a wave looks it up. */
export abstract class Target {
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
  protected readonly codec: RowCodec

  constructor(
    { model, shape, schema, codec, isInteger, addressOf, addressOfStored }: TargetParts,
    declared: ModelDefinition | CustomDefinition,
  ) {
    this.model = model
    this.shape = shape
    this.name = declared.name
    this.schema = schema
    this.ttlMs = declared.ttlMs
    this.negativeTtlMs = declared.negativeTtlMs
    this.staleForMs = declared.invalidation.staleForMs
    this.usesStore = declared.enabled
    this.isInteger = isInteger
    this.addressOf = addressOf
    this.addressOfStored = addressOfStored
    this.codec = codec
  }

  /** What it answers where there is nothing. */
  abstract absent(): Answer
  /** Reads an answer of its own from the bytes from `offset` to the end; undefined when they cannot be read. */
  abstract decode(bytes: Buffer, offset: number): Answer | undefined
  /** @throws UnstorableValueError, RowFormError */
  abstract encode(answer: Answer): Buffer
}

/** All the keys that may hold something for a lookup. */
export function entryKeys({ staleForMs }: Target, key: string): readonly string[] {
  return staleForMs > 0 ? [key, staleKeyOf(key)] : [key]
}

type Rows = readonly Readonly<Record<string, unknown>>[]

/** A row, or null. */
export class RowTarget extends Target {
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
export class RowsTarget extends Target {
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
export class CustomTarget extends Target {
  absent(): Answer {
    return null
  }

  decode(bytes: Buffer, offset: number): Answer | undefined {
    return this.codec.decodeRow(bytes, offset)?.[VALUE] as Answer | undefined
  }

  encode(answer: Answer): Buffer {
    return this.codec.encodeRow({ [VALUE]: answer })
  }
}
