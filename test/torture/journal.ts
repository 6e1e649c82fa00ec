import { openSync, readFileSync, writeSync } from 'node:fs'

/** What a read saw of a row. */
export type Seen = readonly [id: number, version: number, tag: string]

/**
 * `ok`: the call resolved. `failed`: it rejected, which says that nothing was written. `undone`: the writer itself
 * rolled it back. `unknown`: CommitOutcomeUnknownError.
 */
export type Outcome = 'ok' | 'failed' | 'undone' | 'unknown'

/** What a process writes down, with times of {@link now}. */
export type Note =
  /** `memo`: the scope had looked the key up before, at `from`. */
  | { t: 'read'; key: string; from: number; to: number; seen: readonly Seen[]; memo?: true }
  | { t: 'unread'; key: string; from: number; to: number; error: string }
  /** Before anything of the write is sent. */
  | { t: 'begin'; op: string; at: number; what: string }
  /** A transaction has sent its last statement, and is about to be committed. */
  | { t: 'commit'; op: string; at: number }
  /** `deferred`: the cache says that it could not clear at once. `rows`: how many rows the write says it wrote. */
  | { t: 'end'; op: string; at: number; outcome: Outcome; rows: number; deferred?: true; error?: string }
  /** Something that must not be, and needs no history to tell. */
  | { t: 'problem'; at: number; promise: string; message: string }
  | { t: 'stats'; at: number; stats: Readonly<Record<string, number>> }

const FLUSH_BYTES = 16_384

/** The notes of one process, in a file that outlives it. */
export class Journal {
  readonly #file: number
  #lines = ''

  constructor(path: string) {
    this.#file = openSync(path, 'a')
  }

  /** A note that may be lost when the process is killed. */
  note(note: Note): void {
    this.#lines += `${JSON.stringify(note)}\n`
    if (this.#lines.length > FLUSH_BYTES) this.flush()
  }

  /** A note that is kept, whatever happens to the process from now on. */
  noteForSure(note: Note): void {
    this.note(note)
    this.flush()
  }

  flush(): void {
    if (this.#lines !== '') writeSync(this.#file, this.#lines)
    this.#lines = ''
  }
}

export function readJournal(path: string): Note[] {
  const lines = readFileSync(path, 'utf8').split('\n')
  // A process that is killed may leave half a line.
  lines.pop()
  return lines.map((line) => JSON.parse(line) as Note)
}
