import {
  finishRow,
  parseJson,
  type RowReader,
  type RowWriter,
  readBigint,
  readBoolean,
  readBuffer,
  readDate,
  readFlagged,
  readJson,
  readNumber,
  readString,
  readUint8Array,
} from './codec-fields.ts'
import { decodeTagged, encodeTagged } from './codec-tagged.ts'
import { type ColumnContext, decodeValueType, encodeValueType, Tag, valueTypeOf } from './codec-values.ts'

/** How the values of a column are written and read under one tag. */
export interface FieldType {
  readonly tag: string
  /** Not for null, and only for values that the tag fits. Throws UnstorableValueError. */
  write(writer: RowWriter, value: unknown): void
  /** Throws on damage. */
  read(reader: RowReader): unknown
}

/** Reads one row into an object. Throws on damage. */
export type RowBuilder = (reader: RowReader) => Record<string, unknown>

// Bytes choose their form, so what they can make us compile and keep is bounded. A model has a handful of forms;
// any beyond these are read by a loop.
const COMPILED_FORMS = 64

const FIELD_TYPES: ReadonlyMap<string, FieldType> = new Map(
  [
    fieldOf(Tag.string, (writer, value: string) => writer.string(value), readString),
    fieldOf(Tag.number, (writer, value: number) => writer.number(value), readNumber),
    fieldOf(Tag.boolean, (writer, value: boolean) => writer.boolean(value), readBoolean),
    fieldOf(Tag.bigint, (writer, value: bigint) => writer.bigint(value), readBigint),
    fieldOf(Tag.date, (writer, value: Date) => writer.date(value), readDate),
    fieldOf(Tag.buffer, (writer, value: Buffer) => writer.binary(value), readBuffer),
    fieldOf(Tag.uint8Array, (writer, value: Uint8Array) => writer.binary(value), readUint8Array),
    fieldOf(Tag.json, (writer, value: unknown) => writer.string(JSON.stringify(value)), readJson),
  ].map((type) => [type.tag, type]),
)

function fieldOf<T>(
  tag: string,
  write: (writer: RowWriter, value: T) => void,
  read: (reader: RowReader) => unknown,
): FieldType {
  return { tag, write: write as FieldType['write'], read }
}

/** undefined: there is no such tag. */
export function fieldType(tag: string, context: ColumnContext): FieldType | undefined {
  if (tag === Tag.tagged) {
    return {
      tag,
      write: (writer, value) => writer.string(JSON.stringify(encodeTagged(value, context))),
      read: (reader) => decodeTagged(readJson(reader), context),
    }
  }
  const type = valueTypeOf(tag, context)
  if (type === undefined) return FIELD_TYPES.get(tag)
  return {
    tag,
    write: (writer, value) => {
      const data = encodeValueType(type, value, context)
      if (typeof data === 'string') writer.flagged(data, false)
      else writer.flagged(JSON.stringify(data), true)
    },
    read: (reader) => {
      const field = readFlagged(reader)
      return field === null ? null : decodeValueType(type, field.flag ? parseJson(field.text) : field.text)
    },
  }
}

/** The builders for one kind of record. A record begins with its header: a prefix, then one tag per column. */
export class RowForms {
  /** Bytes of every header. */
  readonly headerSize: number
  readonly #contexts: readonly ColumnContext[]
  readonly #prefix: string
  readonly #builders = new Map<string, RowBuilder>()
  #lastHeader: Uint8Array = new Uint8Array(0)
  #lastBuilder: RowBuilder | undefined

  constructor(contexts: readonly ColumnContext[], prefix: string) {
    this.headerSize = prefix.length + contexts.length
    this.#contexts = contexts
    this.#prefix = prefix
  }

  /** ASCII. */
  header(types: readonly FieldType[]): string {
    let header = this.#prefix
    for (const { tag } of types) header += tag
    return header
  }

  /** undefined: what stands at `offset` is no header of these forms. */
  find(record: Buffer, offset: number): RowBuilder | undefined {
    // The records of a wave are nearly all alike, and comparing a dozen bytes here is cheaper than a native call.
    const header = this.#lastHeader
    let same = 0
    while (same < header.length && record[offset + same] === header[same]) same++
    return same === header.length && same > 0 ? this.#lastBuilder : this.#lookUp(record, offset)
  }

  #lookUp(record: Buffer, offset: number): RowBuilder | undefined {
    const header = record.toString('latin1', offset, offset + this.headerSize)
    if (header.length !== this.headerSize || !header.startsWith(this.#prefix)) return undefined
    const builder = this.#builders.get(header) ?? this.#make(header)
    if (builder === undefined) return undefined
    this.#lastHeader = Buffer.from(header, 'latin1')
    this.#lastBuilder = builder
    return builder
  }

  #make(header: string): RowBuilder | undefined {
    const types: FieldType[] = []
    for (const [i, context] of this.#contexts.entries()) {
      const type = fieldType(header.charAt(this.#prefix.length + i), context)
      if (type === undefined) return undefined
      types.push(type)
    }
    const columns = this.#contexts.map(({ column }) => column)
    if (this.#builders.size >= COMPILED_FORMS) return loopBuilder(columns, types)
    const builder = compileBuilder(columns, types)
    this.#builders.set(header, builder)
    return builder
  }
}

// One object literal gives all rows of a form the same hidden class. Nothing but the column names, which our own
// side declares, goes into the code.
function compileBuilder(columns: readonly string[], types: readonly FieldType[]): RowBuilder {
  const properties = columns.map((column, i) => `${propertyName(column)}: read${i}(reader)`)
  const code = `'use strict'
    return (reader) => {
      const row = { ${properties.join(', ')} }
      finishRow(reader)
      return row
    }`
  try {
    const make = new Function('finishRow', ...types.map((_, i) => `read${i}`), code)
    return make(finishRow, ...types.map(({ read }) => read))
  } catch (error) {
    if (error instanceof EvalError) return loopBuilder(columns, types) // node --disallow-code-generation-from-strings
    throw error
  }
}

// Not computed, this one name would set the prototype.
const propertyName = (column: string) => (column === '__proto__' ? '["__proto__"]' : JSON.stringify(column))

function loopBuilder(columns: readonly string[], types: readonly FieldType[]): RowBuilder {
  return (reader) => {
    const row = Object.fromEntries(columns.map((column, i) => [column, types[i]?.read(reader)]))
    finishRow(reader)
    return row
  }
}
