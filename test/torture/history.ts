import type { FaultWindow } from './faults.ts'
import type { Note, Outcome } from './journal.ts'
import { SEED, type Written } from './tables.ts'
import { keyNamesOf, type Thing, UNDONE } from './things.ts'

/** A call that wrote, as its process told of it. */
export interface Operation {
  readonly name: string
  /** `app`: through Loadstone; `psql`: past it; `seed`: there before anything ran. */
  readonly by: 'app' | 'psql' | 'seed'
  readonly what: string
  readonly began: number
  /** When COMMIT may have been sent, at the earliest. */
  committing: number
  /** Infinity: nobody was told, as its process was killed. */
  ended: number
  /** Undefined: likewise. */
  outcome: Outcome | undefined
  rows: number
  deferred: boolean
  error: string | undefined
}

/** A version of a row that others could see: the last one of a committed transaction. */
export interface Version {
  readonly model: string
  readonly id: number
  readonly version: number
  readonly operation: Operation
  readonly thing: Thing | null
  /** The keys that find the row as it is now. */
  readonly keys: ReadonlySet<string>
  /** The keys of this version and of the one before it: those that the write touched. */
  readonly touched: ReadonlySet<string>
}

export interface Read {
  readonly who: string
  readonly key: string
  readonly from: number
  readonly to: number
  readonly seen: Extract<Note, { t: 'read' }>['seen']
  readonly memo: boolean
}

export interface Unread {
  readonly who: string
  readonly key: string
  readonly from: number
  readonly to: number
  readonly error: string
}

export interface Problem {
  readonly who: string
  readonly at: number
  readonly promise: string
  readonly message: string
}

export interface ProcessNotes {
  readonly who: string
  readonly notes: readonly Note[]
}

/** Everything that happened in a run, as far as anybody wrote it down. */
export interface History {
  readonly start: number
  readonly operations: ReadonlyMap<string, Operation>
  /** Per model and id (`relaxed 3`), oldest first. */
  readonly versions: ReadonlyMap<string, readonly Version[]>
  /** Rows that are in the database's own record of a run, and whose operation nobody began. */
  readonly orphans: readonly Written[]
  readonly reads: readonly Read[]
  readonly unread: readonly Unread[]
  readonly problems: readonly Problem[]
  readonly faults: readonly FaultWindow[]
  /** The last counts of each process. */
  readonly stats: readonly Readonly<Record<string, number>>[]
}

export function tell(
  start: number,
  processes: readonly ProcessNotes[],
  written: readonly Written[],
  faults: readonly FaultWindow[],
): History {
  const operations = new Map<string, Operation>([[SEED, seedOperation()]])
  const reads: Read[] = []
  const unread: Unread[] = []
  const problems: Problem[] = []
  const stats: Readonly<Record<string, number>>[] = []
  for (const { who, notes } of processes) {
    let last: Readonly<Record<string, number>> | undefined
    for (const note of notes) {
      if (note.t === 'read') {
        reads.push({
          who,
          key: note.key,
          from: note.from,
          to: note.to,
          seen: note.seen,
          memo: note.memo ?? false,
        })
      } else if (note.t === 'unread') unread.push({ who, ...note })
      else if (note.t === 'problem') problems.push({ who, ...note })
      else if (note.t === 'stats') last = note.stats
      else record(operations, note)
    }
    if (last) stats.push(last)
  }
  const orphans = written.filter(({ op }) => !operations.has(op))
  const versions = visibleVersions(written, operations)
  return { start, operations, versions, orphans, reads, unread, problems, faults, stats }
}

function seedOperation(): Operation {
  const none = { rows: 0, deferred: false, error: undefined }
  return { name: SEED, by: 'seed', what: SEED, began: 0, committing: 0, ended: 0, outcome: 'ok', ...none }
}

function record(
  operations: Map<string, Operation>,
  note: Extract<Note, { t: 'begin' | 'commit' | 'end' }>,
): void {
  if (note.t === 'begin') {
    operations.set(note.op, {
      name: note.op,
      by: note.op.startsWith('w') ? 'app' : 'psql',
      what: note.what,
      began: note.at,
      committing: note.at,
      ended: Number.POSITIVE_INFINITY,
      outcome: undefined,
      rows: 0,
      deferred: false,
      error: undefined,
    })
    return
  }
  const operation = operations.get(note.op) as Operation
  if (note.t === 'commit') operation.committing = note.at
  else {
    operation.ended = note.at
    operation.outcome = note.outcome
    operation.rows = note.rows
    operation.deferred = note.deferred ?? false
    operation.error = note.error
  }
}

function visibleVersions(
  written: readonly Written[],
  operations: ReadonlyMap<string, Operation>,
): ReadonlyMap<string, readonly Version[]> {
  const versions = new Map<string, Version[]>()
  written.forEach((each, i) => {
    const { model, id, version, op, xid, thing } = each
    const operation = operations.get(op)
    if (!operation) return
    const next = written[i + 1]
    // Its own transaction wrote the row once more: nobody else has seen this version.
    if (next && next.xid === xid && next.model === model && next.id === id) return
    const row = `${model} ${id}`
    const before = versions.get(row) ?? [nothing(model, id)]
    const keys = new Set(thing ? keyNamesOf(model, thing) : [])
    const touched = new Set([...keys, ...(before.at(-1) as Version).keys])
    before.push({ model, id, version, operation, thing, keys, touched })
    versions.set(row, before)
  })
  return versions
}

/** Before anything was written, no row was there. */
function nothing(model: string, id: number): Version {
  return {
    model,
    id,
    version: 0,
    operation: seedOperation(),
    thing: null,
    keys: new Set(),
    touched: new Set(),
  }
}

/** The name of the operation that wrote a row with this tag. */
export function operationOf(tag: string): string {
  return tag.replace(UNDONE, '')
}
