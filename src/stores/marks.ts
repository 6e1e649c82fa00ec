import { createHash, randomBytes } from 'node:crypto'

/**
 * Which entries of a namespace are forgotten, whatever is stored: one string in the store, read with every MGET.
 *
 * `base(8)` and, for every prefix that was ever cleared, `mark(8)` length(4) prefix. Base and marks are random and
 * never the same again. What is filled carries a digest of the base, the marks that concern it, and the master, its
 * epoch; an entry of another epoch is not believed. So a new mark forgets all entries under a prefix at once, however
 * many there are, and a store that lost the string forgets everything.
 */
export class Marks {
  readonly record: Buffer
  readonly #base: Buffer
  readonly #marks: readonly { readonly prefix: string; readonly mark: Buffer }[]
  readonly #epochs = new Map<string, Buffer>()
  readonly #general: Buffer
  /** What {@link epochOf} found last: the keys of a wave mostly come one model after the other. */
  #lastPrefix: string | undefined
  #lastEpoch: Buffer

  /**
   * @param master stands for the server that has the record
   * @param record as the store has it; one that is no record of ours counts as a base
   */
  constructor(master: Buffer, record: Buffer) {
    this.record = record
    const { base, marks } = parse(record)
    this.#base = Buffer.concat([master, base])
    this.#marks = marks
    this.#general = this.#digest([])
    this.#lastEpoch = this.#general
  }

  /** The epoch of an entry that is filled now: 4 bytes. */
  epochOf(key: string): Buffer {
    if (this.#lastPrefix !== undefined && key.startsWith(this.#lastPrefix)) return this.#lastEpoch
    for (const { prefix } of this.#marks) if (key.startsWith(prefix)) return this.#markedEpochOf(key)
    return this.#general
  }

  #markedEpochOf(key: string): Buffer {
    const concerned = this.#marks.filter(({ prefix }) => key.startsWith(prefix))
    const name = concerned.map(({ prefix }) => prefix).join('\n')
    let epoch = this.#epochs.get(name)
    if (!epoch) {
      epoch = this.#digest(concerned.map(({ mark }) => mark))
      this.#epochs.set(name, epoch)
    }
    const prefix = concerned[0]?.prefix as string
    // Else another key under the prefix may concern a mark that this one does not.
    const alone = this.#marks.every((other) => other.prefix === prefix || !other.prefix.startsWith(prefix))
    if (alone && concerned.length === 1) {
      this.#lastPrefix = prefix
      this.#lastEpoch = epoch
    }
    return epoch
  }

  #digest(marks: readonly Buffer[]): Buffer {
    return createHash('sha256')
      .update(Buffer.concat([this.#base, ...marks]))
      .digest()
      .subarray(0, 4)
  }
}

const MARK_CHARS = 8
const LENGTH_CHARS = 4

function parse(record: Buffer) {
  const marks: { prefix: string; mark: Buffer }[] = []
  for (let at = MARK_CHARS; at < record.length; ) {
    const from = at + MARK_CHARS + LENGTH_CHARS
    const to = from + Number(record.toString('latin1', at + MARK_CHARS, from))
    if (!(to > from && to <= record.length)) return { base: record, marks: [] }
    marks.push({ mark: record.subarray(at, at + MARK_CHARS), prefix: record.toString('utf8', from, to) })
    at = to
  }
  return { base: record.subarray(0, MARK_CHARS), marks }
}

/** A mark, or a base. */
export function newMark(): string {
  return randomBytes(6).toString('base64url')
}
