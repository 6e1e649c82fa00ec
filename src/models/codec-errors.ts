/** A value that would not come back from the store exactly as it is, so its row is not stored at all. */
export class UnstorableValueError extends Error {
  override readonly name = 'UnstorableValueError'
  /** The result column the value stands in. */
  readonly column: string
  /** What is wrong with the value; never the value itself, which may be private. */
  readonly reason: string

  constructor(column: string, reason: string, options?: ErrorOptions) {
    super(`Column ${JSON.stringify(column)} cannot be cached: ${reason}`, options)
    this.column = column
    this.reason = reason
  }
}

/** A row, or a list of columns, that is not of the form a codec needs. */
export class RowFormError extends Error {
  override readonly name = 'RowFormError'
  /** The column that is missing, unexpected or repeated; undefined when the row as a whole is at fault. */
  readonly column: string | undefined

  constructor(message: string, column?: string) {
    super(message)
    this.column = column
  }
}

/** A {@link Codec} of the application, or a compression, that could not encode what it was given. */
export class CodecFailedError extends Error {
  override readonly name = 'CodecFailedError'
}

/**
 * Thrown by the readers when bytes are not what the writers write; it never leaves the codec. One object for all:
 * damage is an ordinary miss, and many damaged records must not cost many stack traces.
 */
export const DAMAGED: Error = Object.freeze(new Error('Not bytes that this codec writes'))
