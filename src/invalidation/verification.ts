import { createHash } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import { SourceError, StoreUnavailableError } from '../errors.ts'
import type { Binder } from '../loaders/binder.ts'
import { runLoad } from '../loaders/custom-load.ts'
import { escapeKeyPart, textsOf } from '../models/key.ts'
import type { BoundModel } from '../models/model.ts'
import type { Shape } from '../models/shape.ts'
import type { Answer, Target as LookedUp } from '../models/target.ts'
import { dependentPrefix, touchedKeys } from '../models/touched.ts'
import type { Database } from '../sources/database.ts'
import type { KeyTexts, ResultRow, Source } from '../sources/source.ts'
import { filledAt, stateOf, UNREACHABLE } from '../stores/entry.ts'
import type { CacheStore } from '../stores/store.ts'
import { customVerdictOf, type Unchecked, type Verdict, verdictOf } from './compare.ts'
import { outboxExists, waitingRows } from './outbox-rows.ts'
import { Sample } from './sample.ts'

export interface VerifyParts {
  readonly namespace: string
  readonly store: CacheStore
  /** Reads the primary. */
  readonly source: Source
  readonly binder: Binder
  /** Without plugins. */
  readonly db: Database
}

export interface VerifyProgress {
  /** `scan`: finding entries; `check`: comparing them; `settle`: waiting for invalidations in flight. */
  readonly phase: 'scan' | 'check' | 'settle'
  readonly done: number
  /** Undefined while nobody knows. */
  readonly total: number | undefined
}

export interface VerifySettings {
  readonly sample: number
  readonly settleMs: number
  readonly onProgress: ((progress: VerifyProgress) => unknown) | undefined
  readonly signal: AbortSignal | undefined
}

/** A shape of a model, and where its keys begin. Without a shape: what the model has of others. */
export interface Target {
  readonly bound: BoundModel
  readonly shape: Shape | undefined
  readonly prefix: string
}

/** An entry that differs from the database. */
export interface Suspect {
  readonly target: ShapeTarget
  readonly key: string
  /** Of the whole record, the time of the fill included. The record itself may be large. */
  readonly digest: string
  readonly filledAt: number
}

export interface ShapeTarget extends Target {
  readonly shape: Shape
}

export interface StaleEntry extends Suspect {
  readonly overdue: boolean
}

interface Looked {
  readonly key: string
  readonly verdict: Verdict
  /** Where the verdict is `right` or `wrong`. */
  readonly record: Buffer | null
}

/** Keys that are compared together. Lists can be long, so of them fewer. */
const KEY_BATCH = 500
const FILTER_BATCH = 50
const CLEAR_BATCH = 500
/** How many times `settleMs` an entry is given whose invalidation is seen in the outbox. */
const ROUNDS = 5
/** With more rows than this in the outbox, any entry may be about to be cleared. */
const MAX_WAITING_ROWS = 1000
/** A check has time where a request has none: what the store did not do in time is asked for again, ms later. */
const RETRIES_MS = [50, 250, 1000]

/** One run of `verify`. */
export class Verification {
  readonly checked = new Map<Target, number>()
  readonly unchecked: Unchecked = {
    gone: 0,
    otherSchema: 0,
    leased: 0,
    intended: 0,
    damaged: 0,
    unverifiable: 0,
    undeclared: 0,
  }
  readonly #parts: VerifyParts
  readonly #settings: VerifySettings
  #done = 0
  #total = 0

  constructor(parts: VerifyParts, settings: VerifySettings) {
    this.#parts = parts
    this.#settings = settings
  }

  async draw(targets: readonly Target[]): Promise<Sample<Target>> {
    const { store, namespace } = this.#parts
    const sample = new Sample<Target>(this.#settings.sample)
    const byPrefix = new Map(targets.map((target) => [target.prefix, target]))
    const models = [...new Set(targets.map(({ bound }) => bound.prefix))]
    if (models.length === 0) return sample
    // All models in one scan, as each scan goes through all keys of the server.
    const all = `${escapeKeyPart(namespace)}:`
    for await (const keys of store.scan(models.length === 1 ? (models[0] as string) : all)) {
      for (const key of keys) {
        const model = upToColon(key, all.length)
        const target = byPrefix.get(upToColon(key, model.length)) ?? byPrefix.get(model)
        if (target) sample.offer(target, key)
      }
      await this.#tell('scan', sample.offered, undefined)
    }
    for (const keys of sample.groups().values()) this.#total += keys.length
    return sample
  }

  /** Compares entries, and counts them. Returns those that differ. */
  async check(target: Target, keys: readonly string[]): Promise<Suspect[]> {
    const suspects: Suspect[] = []
    if (!hasShape(target)) {
      this.unchecked.undeclared += keys.length
      await this.#advance(keys.length)
      return suspects
    }
    for (const batch of batchesOf(target, keys)) {
      for (const { key, verdict, record } of await this.#look(target, batch)) {
        if (verdict !== 'right' && verdict !== 'wrong') {
          this.unchecked[verdict]++
          continue
        }
        this.checked.set(target, (this.checked.get(target) ?? 0) + 1)
        if (verdict === 'wrong' && record) {
          suspects.push({ target, key, digest: digestOf(record), filledAt: filledAt(record) })
        }
      }
      await this.#advance(batch.length)
    }
    return suspects
  }

  /** Tells which of the entries that differ are stale for good. */
  async settle(suspects: readonly Suspect[]): Promise<StaleEntry[]> {
    const stale: StaleEntry[] = []
    let open = suspects
    for (let round = 1; open.length > 0; round++) {
      await this.#tell('settle', suspects.length - open.length, suspects.length)
      await this.#pause(this.#settings.settleMs)
      const wrong = await this.#stillWrong(open)
      // Asked after the database: a commit that was seen there has its record here, or was applied.
      const isWaiting = await this.#waiting()
      // Looked at once more after the outbox: what was applied meanwhile is gone.
      const there = await this.#stillThere(wrong)
      const last = round === ROUNDS
      for (const suspect of there) {
        const overdue = isWaiting(suspect.key)
        if (last || !overdue) stale.push({ ...suspect, overdue })
      }
      open = last ? [] : there.filter(({ key }) => isWaiting(key))
    }
    if (suspects.length > 0) await this.#tell('settle', suspects.length, suspects.length)
    return stale
  }

  async repair(stale: readonly StaleEntry[]): Promise<void> {
    for (let from = 0; from < stale.length; from += CLEAR_BATCH) {
      const keys = stale.slice(from, from + CLEAR_BATCH).map(({ key }) => key)
      await this.#patiently(() => this.#parts.store.clear(keys, null, true))
    }
  }

  async #stillWrong(suspects: readonly Suspect[]): Promise<Suspect[]> {
    const wrong: Suspect[] = []
    for (const [target, group] of groupByTarget(suspects)) {
      const byKey = new Map(group.map((suspect) => [suspect.key, suspect]))
      for (const batch of batchesOf(target, [...byKey.keys()])) {
        for (const { key, verdict } of await this.#look(target, batch)) {
          const suspect = byKey.get(key)
          if (suspect && verdict === 'wrong') wrong.push(suspect)
        }
      }
    }
    return wrong
  }

  /** Those that are the very same entries as when they were first looked at. */
  async #stillThere(suspects: readonly Suspect[]): Promise<Suspect[]> {
    const there: Suspect[] = []
    for (const batch of batches(suspects, FILTER_BATCH)) {
      const records = await this.#read(batch.map(({ key }) => key))
      batch.forEach((suspect, i) => {
        const record = records[i]
        if (record && digestOf(record) === suspect.digest) there.push(suspect)
      })
    }
    return there
  }

  /** Tells whether the outbox has an invalidation for a key. */
  async #waiting(): Promise<(key: string) => boolean> {
    const { db, namespace } = this.#parts
    if (!(await outboxExists((query) => db.executeQuery(query)))) return () => false
    const rows = await waitingRows(db, namespace, MAX_WAITING_ROWS)
    if (rows.length === MAX_WAITING_ROWS) return () => true
    const { keys, prefixes, stale = new Map(), unresolved = [] } = touchedKeys(rows)
    const waiting = new Set([...keys, ...stale.keys()])
    const forgotten = [
      ...prefixes,
      ...unresolved.map(({ namespace: of, dependent }) => dependentPrefix(of, dependent)),
    ]
    return (key) => waiting.has(key) || forgotten.some((prefix) => key.startsWith(prefix))
  }

  /** Reads entries, then their rows, and compares. */
  async #look(target: ShapeTarget, keys: readonly string[]): Promise<Looked[]> {
    const records = await this.#read(keys)
    const texts = keys.map((key) => textsOf(target.prefix, key))
    const lookedUp = target.bound.targets.get(target.shape) as LookedUp
    const states = records.map((record) => stateOf(record, lookedUp.schema))
    const comparable = keys.flatMap((_, i) =>
      (states[i] === 'value' || states[i] === 'absent') && texts[i]?.length === target.shape.fields.length
        ? [i]
        : [],
    )
    const asked = comparable.map((i) => texts[i] as KeyTexts)
    if (target.shape.custom) {
      const answers = await this.#load(lookedUp, asked)
      const answerOf = new Map(comparable.map((i, at) => [i, answers?.[at] as Answer | undefined]))
      return keys.map((key, i) => {
        const record = records[i] ?? null
        return { key, record, verdict: customVerdictOf(lookedUp, record, answerOf.get(i)) }
      })
    }
    const lists = await this.#select(target, asked)
    const rowsOf = new Map(comparable.map((i, at) => [i, lists[at]]))
    return keys.map((key, i) => {
      const record = records[i] ?? null
      return { key, record, verdict: verdictOf(target.bound, target.shape, record, rowsOf.get(i)) }
    })
  }

  /** What a custom cache would be filled with now; undefined where the application loads, which takes more than a key's texts. */
  async #load(target: LookedUp, keys: readonly KeyTexts[]): Promise<readonly unknown[] | undefined> {
    this.#settings.signal?.throwIfAborted()
    if (keys.length === 0 || target.shape.custom?.load.kind === 'load') return undefined
    try {
      return await runLoad(this.#parts.source, target, keys, [])
    } catch (error) {
      throw new SourceError(target.name, target.shape.fields, error)
    }
  }

  async #read(keys: readonly string[]): Promise<(Buffer | null)[]> {
    return this.#patiently(async () => {
      const records = await this.#parts.store.getMany(keys)
      if (records.includes(UNREACHABLE)) throw new StoreUnavailableError('one of its servers does not answer')
      return records
    })
  }

  /** A list of rows per key; undefined for a key that is none for the database. */
  async #select(
    target: ShapeTarget,
    keys: readonly KeyTexts[],
  ): Promise<(readonly ResultRow[] | undefined)[]> {
    this.#settings.signal?.throwIfAborted()
    if (keys.length === 0) return []
    const { bound, shape } = target
    try {
      return await this.#parts.source.select(bound, shape, keys)
    } catch (error) {
      if (!isDataException(error)) throw new SourceError(bound.definition.name, shape.fields, error)
      // Somebody else's key among ours. The others are asked for without it.
      if (keys.length === 1) return [undefined]
      const half = keys.length >> 1
      return [
        ...(await this.#select(target, keys.slice(0, half))),
        ...(await this.#select(target, keys.slice(half))),
      ]
    }
  }

  async #patiently<T>(step: () => Promise<T>): Promise<T> {
    for (const ms of RETRIES_MS) {
      this.#settings.signal?.throwIfAborted()
      try {
        return await step()
      } catch (error) {
        if (!(error instanceof StoreUnavailableError)) throw error
        await this.#pause(ms)
      }
    }
    return step()
  }

  async #pause(ms: number): Promise<void> {
    const { signal } = this.#settings
    await pause(ms, undefined, signal && { signal }).catch(() => undefined)
    signal?.throwIfAborted()
  }

  async #advance(count: number): Promise<void> {
    this.#done += count
    await this.#tell('check', this.#done, this.#total)
  }

  async #tell(phase: VerifyProgress['phase'], done: number, total: number | undefined): Promise<void> {
    this.#settings.signal?.throwIfAborted()
    await this.#settings.onProgress?.({ phase, done, total })
  }
}

/** A key up to and with the first colon from `from` on: the separators are no part of any name. */
function upToColon(key: string, from: number): string {
  return key.slice(0, key.indexOf(':', from) + 1)
}

function hasShape(target: Target): target is ShapeTarget {
  return target.shape !== undefined
}

function groupByTarget(suspects: readonly Suspect[]): ReadonlyMap<ShapeTarget, readonly Suspect[]> {
  const groups = new Map<ShapeTarget, Suspect[]>()
  for (const suspect of suspects) {
    const group = groups.get(suspect.target)
    if (group) group.push(suspect)
    else groups.set(suspect.target, [suspect])
  }
  return groups
}

function batchesOf({ shape }: ShapeTarget, keys: readonly string[]): (readonly string[])[] {
  return batches(keys, shape.kind === 'key' ? KEY_BATCH : FILTER_BATCH)
}

function batches<T>(items: readonly T[], size: number): (readonly T[])[] {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) =>
    items.slice(i * size, (i + 1) * size),
  )
}

function digestOf(record: Buffer): string {
  return createHash('sha256').update(record).digest('base64url')
}

/** SQLSTATE class 22: a text is no value of the column's type. */
function isDataException(error: unknown): boolean {
  const { code } = (error ?? {}) as { code?: unknown }
  return typeof code === 'string' && code.startsWith('22')
}
