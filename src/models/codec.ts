import { createHash } from 'node:crypto'
import { ByteSink, readVarint } from './codec-bytes.ts'
import { RowFormError, UnstorableValueError } from './codec-errors.ts'
import { RowReader, RowWriter } from './codec-fields.ts'
import { type FieldType, fieldType, RowForms } from './codec-forms.ts'
import { type ColumnContext, MAX_VALUE_TYPES, mergeTags, Tag, tagOf, type ValueType } from './codec-values.ts'

export { CodecFailedError, RowFormError, UnstorableValueError } from './codec-errors.ts'
export type { ValueType } from './codec-values.ts'

type Row = Readonly<Record<string, unknown>>

/**
 * Turns the result rows of one model into bytes and back: what comes back is deep-equal, with the same types and
 * prototypes, and shares nothing with what went in.
 *
 * Known by itself: string, number, boolean, bigint, null, undefined, Date, Buffer, Uint8Array, arrays, plain and
 * null-prototype objects (so all of json and jsonb), and pg's `PostgresInterval`, once this codec has encoded one in
 * that column. Anything else needs a {@link ValueType}. Identity within a row, frozenness and getters are not kept.
 */
export interface RowCodec {
  /** The keys of every row, in order. */
  readonly columns: readonly string[]
  /** Four ASCII characters: codec version, columns, value types and salt. The first bytes of every record. */
  readonly fingerprint: string
  /**
   * The row must be a plain object, its keys exactly {@link columns}, in any order.
   * @throws UnstorableValueError when a value would not come back as it is.
   * @throws RowFormError when the row is not of this form.
   */
  encodeRow(row: Row): Buffer
  /** Like {@link encodeRow}, for a list; the order is kept. */
  encodeRows(rows: readonly Row[]): Buffer
  /**
   * Reads a row from the bytes from `offset` to the end. Never throws.
   * @returns undefined when they are damaged, foreign, of another fingerprint, or of a class not met yet.
   */
  decodeRow(record: Buffer, offset: number): Record<string, unknown> | undefined
  /** Like {@link decodeRow}, for what {@link encodeRows} gave. */
  decodeRows(record: Buffer, offset: number): Record<string, unknown>[] | undefined
}

export interface RowCodecOptions {
  /** Anything else that changes what the bytes mean. Part of the fingerprint. Default ''. */
  readonly salt?: string
  /** Classes of the application, at most 26. Their names are part of the fingerprint, their order is not. Default none. */
  readonly valueTypes?: readonly ValueType[]
}

const FORMAT = 1
const ROW = 'r'
const ROWS = 'l'

/**
 * @throws RowFormError when there are no columns, or one is repeated.
 * @throws TypeError when value types are too many, or their names are not unique lower-case words.
 */
export function createRowCodec(columns: readonly string[], options: RowCodecOptions = {}): RowCodec {
  const { salt = '', valueTypes = [] } = options
  return new CompactRowCodec(checkColumns(columns), checkValueTypes(valueTypes), salt)
}

const quote = (text: string) => JSON.stringify(text)

function checkColumns(columns: readonly string[]): readonly string[] {
  if (columns.length === 0) throw new RowFormError('A row needs at least one column')
  const repeated = columns.find((column, i) => columns.indexOf(column) !== i)
  if (repeated !== undefined) throw new RowFormError(`Column ${quote(repeated)} is repeated`, repeated)
  return Object.freeze([...columns])
}

function checkValueTypes(valueTypes: readonly ValueType[]): readonly ValueType[] {
  const byName = new Map(valueTypes.map((type) => [type.name, type]))
  const odd = [...byName.keys()].find((name) => !/^[a-z][a-z0-9]*$/.test(name))
  if (odd !== undefined)
    throw new TypeError(`valueTypes: a name must be a lower-case word, got ${quote(odd)}`)
  if (byName.size !== valueTypes.length) throw new TypeError('valueTypes: names must be unique')
  if (byName.size > MAX_VALUE_TYPES) throw new TypeError(`valueTypes: want at most ${MAX_VALUE_TYPES}`)
  return [...byName.values()].sort((a, b) => (a.name < b.name ? -1 : 1))
}

function fingerprintOf(columns: readonly string[], valueTypes: readonly ValueType[], salt: string): string {
  const form = JSON.stringify([FORMAT, columns, valueTypes.map(({ name }) => name), salt])
  return createHash('sha256').update(form).digest('base64url').slice(0, 4)
}

interface Scratch {
  readonly sink: ByteSink
  readonly writer: RowWriter
}

/** A record is: fingerprint(4) kind(1) tags(one per column), then a row; or varint count, (varint size, row)*. */
class CompactRowCodec implements RowCodec {
  readonly columns: readonly string[]
  readonly fingerprint: string
  readonly #contexts: readonly ColumnContext[]
  readonly #row: RowForms
  readonly #rows: RowForms
  /** Each column's type so far. Null goes under it, lest every mix of nulls be a form of its own. */
  readonly #lastTypes: FieldType[]
  #scratch: Scratch | undefined

  constructor(columns: readonly string[], valueTypes: readonly ValueType[], salt: string) {
    this.columns = columns
    this.fingerprint = fingerprintOf(columns, valueTypes, salt)
    this.#contexts = columns.map((column) => ({ column, valueTypes, learned: new Map() }))
    this.#row = new RowForms(this.#contexts, this.fingerprint + ROW)
    this.#rows = new RowForms(this.#contexts, this.fingerprint + ROWS)
    this.#lastTypes = this.#contexts.map((context) => fieldType(Tag.string, context) as FieldType)
  }

  encodeRow(row: Row): Buffer {
    const values = this.#valuesOf(row)
    const types = this.#typesOf([values])
    return this.#write(this.#row.header(types), (scratch) => this.#writeRow(scratch, values, types, false))
  }

  encodeRows(rows: readonly Row[]): Buffer {
    const table = rows.map((row) => this.#valuesOf(row))
    const types = this.#typesOf(table)
    return this.#write(this.#rows.header(types), (scratch) => {
      scratch.sink.varint(table.length)
      for (const values of table) this.#writeRow(scratch, values, types, true)
    })
  }

  decodeRow(record: Buffer, offset: number): Record<string, unknown> | undefined {
    try {
      const build = this.#row.find(record, offset)
      return build?.(new RowReader(record, offset + this.#row.headerSize, record.length))
    } catch {
      return undefined
    }
  }

  decodeRows(record: Buffer, offset: number): Record<string, unknown>[] | undefined {
    try {
      const build = this.#rows.find(record, offset)
      if (build === undefined) return undefined
      const cursor = { bytes: record, at: offset + this.#rows.headerSize }
      const rows: Record<string, unknown>[] = []
      for (let left = readVarint(cursor); left > 0; left--) {
        const size = readVarint(cursor)
        const start = cursor.at
        cursor.at += size
        rows.push(build(new RowReader(record, start, cursor.at)))
      }
      return cursor.at === record.length ? rows : undefined
    } catch {
      return undefined
    }
  }

  // A row is a foreign object, so its columns are read once: what was looked at is what will be written.
  #valuesOf(row: Row): unknown[] {
    const { columns } = this
    if (Object.getPrototypeOf(row) !== Object.prototype)
      throw new RowFormError('A row must be a plain object')
    const keys = Reflect.ownKeys(row)
    const alike = keys.length === columns.length && keys.every((key, i) => key === columns[i])
    if (!alike) this.#checkKeys(row, keys)
    const values: unknown[] = []
    for (const column of columns) {
      try {
        values.push(row[column])
      } catch (error) {
        throw unstorable(column, error)
      }
    }
    return values
  }

  #checkKeys(row: Row, keys: readonly PropertyKey[]): void {
    const missing = this.columns.find((column) => !Object.hasOwn(row, column))
    if (missing !== undefined) throw new RowFormError(`Column ${quote(missing)} is missing`, missing)
    const known: ReadonlySet<PropertyKey> = new Set(this.columns)
    const extra = keys.find((key) => !known.has(key))
    if (extra === undefined) return
    const name = String(extra)
    throw new RowFormError(`Column ${quote(name)} is not one of the codec's`, name)
  }

  #typesOf(table: readonly (readonly unknown[])[]): readonly FieldType[] {
    return this.#contexts.map((context, i) => {
      const last = this.#lastTypes[i] as FieldType
      let tag: string | undefined
      try {
        for (const values of table) tag = mergeTags(tag, tagOf(values[i], context))
      } catch (error) {
        throw unstorable(context.column, error)
      }
      if (tag === undefined || tag === last.tag) return last
      // A json column holds strings too, and should not alternate between two forms because of that.
      if (last.tag === Tag.json && mergeTags(tag, Tag.json) === Tag.json) return last
      const type = fieldType(tag, context) as FieldType
      this.#lastTypes[i] = type
      return type
    })
  }

  #write(header: string, fill: (scratch: Scratch) => void): Buffer {
    // Nobody else's while it is in use: a value type may come here again.
    const scratch = this.#scratch ?? { sink: new ByteSink(), writer: new RowWriter() }
    this.#scratch = undefined
    scratch.sink.clear()
    scratch.sink.text(header, header.length, 'latin1')
    fill(scratch)
    this.#scratch = scratch
    return scratch.sink.finish()
  }

  #writeRow(
    { sink, writer }: Scratch,
    values: readonly unknown[],
    types: readonly FieldType[],
    sized: boolean,
  ): void {
    writer.begin()
    for (let i = 0; i < values.length; i++) {
      try {
        if (values[i] === null) writer.null()
        else (types[i] as FieldType).write(writer, values[i])
      } catch (error) {
        throw unstorable(this.columns[i] as string, error)
      }
    }
    writer.end(sink, sized)
  }
}

// Getters, proxies and value types run code of the application. What it throws must not look like a failed lookup.
function unstorable(column: string, cause: unknown): UnstorableValueError {
  if (cause instanceof UnstorableValueError) return cause
  return new UnstorableValueError(column, 'reading or encoding it threw', { cause })
}
