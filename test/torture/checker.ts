import type { FaultWindow } from './faults.ts'
import { type History, type Operation, operationOf, type Read, type Version } from './history.ts'
import { CALM_MS } from './schedule.ts'

/** How long after the last fault everything has to be applied by the relay, and every lookup prompt, ms. */
export const SETTLES_WITHIN_MS = CALM_MS - 1000
/** Longest a lookup may take when nothing stands in its way, ms. */
export const LOOKUP_WITHIN_MS = 3000
/** How long after a fault its errors may still come up, ms. */
const ECHO_MS = 3000

export interface Violation {
  readonly promise: string
  readonly message: string
  readonly about: About | undefined
}

/** Where to look: what a read saw of a row under a key. */
export interface About {
  readonly key: string
  readonly row: string
  readonly read: Read
  /** The versions between what was seen and what should have been. */
  readonly least: { readonly from: number; readonly to: number }
}

export interface Verdict {
  readonly violations: readonly Violation[]
  /** Writes of which, as documented, less is promised, by reason. */
  readonly excused: Readonly<Record<string, number>>
  readonly slowestLookupMs: number
  /** Pairs of a read and a row that were compared with what was known. */
  readonly compared: number
}

/** After this, a transaction whose process was killed is over, whatever held its COMMIT. */
const RESOLVED_WITHIN_MS = 10_000

const PROMISES = {
  returned: 'a read that begins after a write returned sees it, or newer',
  linear: 'of a strict model, nobody sees the new and then the old',
  relayed: "what anybody has seen, all see within the relay's time",
  uncommitted: 'uncommitted data is never seen',
} as const

/** The highest version that was known, by time. */
class Track {
  readonly #times: number[] = []
  readonly #highest: number[] = []

  /** In the order of time. */
  push(time: number, version: number): void {
    this.#times.push(time)
    this.#highest.push(Math.max(version, this.#highest.at(-1) ?? 0))
  }

  /** What was known before `time`; 0 when nothing was. */
  before(time: number): number {
    let from = 0
    let to = this.#times.length
    while (from < to) {
      const middle = (from + to) >> 1
      if ((this.#times[middle] as number) < time) from = middle + 1
      else to = middle
    }
    return this.#highest[from - 1] ?? 0
  }
}

/** What is known of one row under one key. */
interface Knowledge {
  /** By writes that returned. */
  readonly returned: Track
  /** By reads that returned, where that binds others at once. */
  readonly linear: Track
  /** By anybody. */
  readonly any: Track
}

/**
 * Goes through all that came to an end, in that order, and compares each read with what was known when it began.
 *
 * A key selects rows; for each row that ever had the key, a read saw a version of it, or that the key does not select
 * it. Versions of one row are in the order of their commits.
 */
export function check(history: History): Verdict {
  return new Check(history).run()
}

class Check {
  readonly #history: History
  readonly #violations: Violation[] = []
  readonly #excused: Record<string, number> = {}
  readonly #knowledge = new Map<string, Map<number, Knowledge>>()
  readonly #flushes: readonly FaultWindow[]
  readonly #calms: readonly { readonly from: number; readonly to: number }[]
  #compared = 0

  constructor(history: History) {
    this.#history = history
    this.#flushes = history.faults.filter(({ kind }) => kind === 'redis-restart' || kind === 'redis-flush')
    this.#calms = calmsOf(history.faults)
  }

  run(): Verdict {
    const { reads, problems, orphans } = this.#history
    for (const { promise, message, who } of problems) this.#violate(promise, `${who}: ${message}`)
    for (const { model, id, version, op } of orphans) {
      this.#violate(
        PROMISES.uncommitted,
        `${model} ${id} v${version} was written by '${op}', which nobody began`,
      )
    }
    this.#outcomes()
    const slowestLookupMs = this.#promptness()

    const known: { readonly at: number; readonly version: Version }[] = []
    for (const versions of this.#history.versions.values()) {
      for (const version of versions) {
        for (const key of version.touched) this.#of(key, version.id)
        if (version.operation.outcome === 'ok') known.push({ at: version.operation.ended, version })
      }
    }
    known.sort((a, b) => a.at - b.at)
    let next = 0
    const learnUntil = (time: number) => {
      for (; next < known.length && (known[next] as (typeof known)[0]).at <= time; next++) {
        const { at, version } = known[next] as (typeof known)[0]
        this.#learn(at, version)
      }
    }
    for (const read of [...reads].sort((a, b) => a.to - b.to)) {
      learnUntil(read.to)
      this.#read(read)
    }
    return {
      violations: this.#violations,
      excused: this.#excused,
      slowestLookupMs,
      compared: this.#compared,
    }
  }

  /** What a call told of its write is true. */
  #outcomes(): void {
    const counts = new Map<string, number>()
    for (const versions of this.#history.versions.values()) {
      for (const { operation } of versions) counts.set(operation.name, (counts.get(operation.name) ?? 0) + 1)
    }
    for (const { name, what, outcome, rows, error, began, ended, by } of this.#history.operations.values()) {
      const found = counts.get(name) ?? 0
      const told = `${name} (${what}) ended '${outcome}'${error ? ` (${error})` : ''}`
      if ((outcome === 'failed' || outcome === 'undone') && found > 0) {
        this.#violate('a write that rejects was rolled back', `${told}, and is committed`)
      }
      if (outcome === 'ok' && rows > 0 && found === 0 && name !== 'seed') {
        this.#violate(
          'a write that resolves was committed',
          `${told} with ${rows} rows, and none is committed`,
        )
      }
      this.#excuseDeferred(name)
      if (
        outcome === 'failed' &&
        !this.#isExpected(error ?? '', by === 'app' ? slotOf(name) : '', began, ended)
      ) {
        this.#violate('a write fails only for a reason', told)
      }
    }
  }

  #excuseDeferred(name: string): void {
    const operation = this.#history.operations.get(name) as Operation
    if (!operation.deferred || operation.outcome !== 'ok') return
    const { began, ended } = operation
    this.#excuse(
      this.#met(slotOf(name), 'redis', began, ended)
        ? 'clears deferred in a fault'
        : 'clears deferred for slowness',
    )
  }

  #isExpected(error: string, slot: string, from: number, to: number): boolean {
    if (error.startsWith('StrictWriteError')) {
      this.#excuse(
        this.#met(slot, 'redis', from, to)
          ? 'strict writes refused in a fault'
          : 'strict writes refused for slowness',
      )
      return true
    }
    // A key that is taken, and transactions that met.
    if (/\b(?:23505|40P01|40001)\b/.test(error)) return true
    return isConnectionError(error) && this.#met(slot, 'postgres', from, to)
  }

  /** Whether a fault between this worker and the server was under way, or only just over. */
  #met(slot: string, server: 'redis' | 'postgres', from: number, to: number): boolean {
    return this.#history.faults.some(
      (fault) =>
        fault.kind.startsWith(server) &&
        (fault.worker === undefined || fault.worker === slot) &&
        fault.from <= to &&
        fault.to + ECHO_MS >= from,
    )
  }

  /** Lookups come to an end, soon, and well; nothing about Redis changes that. */
  #promptness(): number {
    for (const { who, key, from, to, error } of this.#history.unread) {
      if (isConnectionError(error) && this.#met(slotOf(who), 'postgres', from, to)) continue
      this.#violate('a lookup fails only when SQL does', `${who}: ${key}: ${error}`)
    }
    let slowest = 0
    for (const read of this.#history.reads) {
      if (read.memo) continue
      const took = read.to - Math.max(read.from, this.#lastHindrance(read))
      slowest = Math.max(slowest, took)
      if (took <= LOOKUP_WITHIN_MS) continue
      this.#violate('a lookup is prompt', `${read.who}: ${read.key} took ${Math.round(took)} ms`, read)
    }
    return slowest
  }

  /** When the last fault ended that keeps a lookup from its answer: only SQL does, and a process that stands still. */
  #lastHindrance({ who, from, to }: Read): number {
    if (to - from <= LOOKUP_WITHIN_MS) return from
    const slot = slotOf(who)
    return this.#history.faults
      .filter(
        ({ worker, kind }) => (worker ?? slot) === slot && (kind.startsWith('postgres') || kind === 'freeze'),
      )
      .filter((fault) => fault.from <= to)
      .reduce((last, fault) => Math.max(last, Math.min(fault.to, to)), from)
  }

  #learn(at: number, version: Version): void {
    const { operation, id, model, touched } = version
    for (const key of touched) {
      const { returned, any } = this.#of(key, id)
      any.push(at, version.version)
      if (operation.by === 'psql') continue
      if (operation.deferred && (model === 'relaxed' || this.#lostIntents(version))) continue
      returned.push(at, version.version)
    }
  }

  #read(read: Read): void {
    const [model] = read.key.split(' ') as [string]
    const seen = new Map(read.seen.map(([id, version, tag]) => [id, { version, tag }]))
    const rows = this.#knowledge.get(read.key) ?? new Map<number, Knowledge>()
    for (const id of new Set([...rows.keys(), ...seen.keys()])) {
      this.#compared++
      const row = `${model} ${id}`
      const versions = this.#history.versions.get(row) ?? []
      const saw = seen.get(id)
      const least = this.#least(read, this.#of(read.key, id))
      const version = saw
        ? versions.find((each) => each.version === saw.version)
        : earliestWithout(versions, least.version, read)
      if (saw && (!version || version.thing?.tag !== saw.tag || version.operation.committing > read.to)) {
        const early = version?.thing?.tag === saw.tag
        const why = early ? 'before its COMMIT was sent' : 'which was never committed'
        const message = `${read.who} saw v${saw.version} of ${row} by ${operationOf(saw.tag)} under ${read.key}, ${why}`
        const about = { key: read.key, row, read, least: { from: saw.version, to: saw.version } }
        this.#violations.push({ promise: PROMISES.uncommitted, message, about })
      } else if (!version || version.version < least.version) {
        const known = versions.find((each) => each.version === least.version)?.operation.name
        const what = saw ? `v${saw.version} of ${row}` : `no ${row}`
        const message = `${read.who} saw ${what} under ${read.key}, and v${least.version} by ${known} was known`
        const about = {
          key: read.key,
          row,
          read,
          least: { from: saw?.version ?? least.version, to: least.version },
        }
        this.#violations.push({ promise: least.promise, message, about })
      } else this.#saw(read, id, version)
    }
  }

  /** What a read has to see at least, and why. */
  #least({ from }: Read, { returned, linear, any }: Knowledge): { version: number; promise: string } {
    const all = [
      { version: returned.before(from), promise: PROMISES.returned },
      { version: linear.before(from), promise: PROMISES.linear },
      { version: any.before(this.#calmBefore(from)), promise: PROMISES.relayed },
    ]
    return all.reduce((least, each) => (each.version > least.version ? each : least))
  }

  #saw({ key, to }: Read, id: number, version: Version): void {
    const { linear, any } = this.#of(key, id)
    any.push(to, version.version)
    const { model, operation } = version
    // What psql writes is seen by one before it is seen by all.
    if (model !== 'strict' || operation.by === 'psql') return
    if (!this.#lostIntents(version)) linear.push(to, version.version)
  }

  /** Whether Redis may have forgotten the intents of a write while they were in force. */
  #lostIntents({ operation: { began, ended } }: Version): boolean {
    return this.#flushes.some(
      ({ from, to }) => from <= Math.min(ended, began + RESOLVED_WITHIN_MS) && to >= began,
    )
  }

  /** The latest moment from which on nothing hindered the relay until it had to be done, before `time`. */
  #calmBefore(time: number): number {
    let latest = Number.NEGATIVE_INFINITY
    for (const { from, to } of this.#calms) {
      const settled = Math.min(time, to) - SETTLES_WITHIN_MS
      if (settled >= from) latest = Math.max(latest, settled)
    }
    return latest
  }

  #of(key: string, id: number): Knowledge {
    let rows = this.#knowledge.get(key)
    if (!rows) {
      rows = new Map()
      this.#knowledge.set(key, rows)
    }
    let knowledge = rows.get(id)
    if (!knowledge) {
      knowledge = { returned: new Track(), linear: new Track(), any: new Track() }
      rows.set(id, knowledge)
    }
    return knowledge
  }

  #violate(promise: string, message: string, read?: Read): void {
    const about = read && { key: read.key, row: '', read, least: { from: 0, to: 0 } }
    this.#violations.push({ promise, message, about })
  }

  #excuse(reason: string): void {
    this.#excused[reason] = (this.#excused[reason] ?? 0) + 1
  }
}

/**
 * The earliest version, from `least` on, in which a row is not under a key: what a read at least knows that does not
 * find it there. Undefined: there is none that the read could have seen.
 */
function earliestWithout(
  versions: readonly Version[],
  least: number,
  { key, to }: Read,
): Version | undefined {
  return versions.find(
    (each) => each.version >= least && !each.keys.has(key) && each.operation.committing <= to,
  )
}

function calmsOf(faults: readonly FaultWindow[]): { from: number; to: number }[] {
  const calms: { from: number; to: number }[] = []
  let from = 0
  for (const fault of [...faults].sort((a, b) => a.from - b.from)) {
    if (fault.from > from) calms.push({ from, to: fault.from })
    from = Math.max(from, fault.to)
  }
  calms.push({ from, to: Number.POSITIVE_INFINITY })
  return calms
}

function slotOf(who: string): string {
  return who.replace(/\..*$/, '')
}

function isConnectionError(error: string): boolean {
  return /ECONN|EPIPE|57P0\d|[Cc]onnection (?:terminated|error)|not queryable|socket hang up|timeout/.test(
    error,
  )
}
