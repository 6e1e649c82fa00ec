import { createHash } from 'node:crypto'
import { setTimeout as pause } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { OptionError, SourceError, StoreUnavailableError } from '../errors.ts'
import type { Binder } from '../loaders/binder.ts'
import { RowFormError, UnstorableValueError } from '../models/codec.ts'
import { escapeKeyPart, textsOf } from '../models/key.ts'
import type { BoundModel } from '../models/model.ts'
import type { Shape } from '../models/shape.ts'
import { touchedKeys } from '../models/touched.ts'
import { checkOptionNames, integerOption } from '../options.ts'
import type { Database } from '../sources/database.ts'
import type { KeyTexts, ResultRow, Source } from '../sources/source.ts'
import { filledAt, HEADER_BYTES, stateOf } from '../stores/entry.ts'
import type { CacheStore } from '../stores/store.ts'
import { outboxExists, waitingRows } from './outbox-rows.ts'
import { Sample } from './sample.ts'

export interface VerifyOptions {
  /**
   * How many entries are compared, drawn at random from all there are. Default 10,000. `Infinity`: all of them, which
   * takes about 200 bytes of memory for each.
   */
  readonly sample?: number
  /**
   * How long an entry that differs from the database is given until it counts as stale, ms. Default 1000. Shorter than
   * invalidations take where there are no triggers: entries that are about to be cleared count as stale.
   */
  readonly settleMs?: number
  /** Deletes stale entries. Default false. */
  readonly repair?: boolean
  /** Names of the models whose entries are compared. Default: all that the cache declares. */
  readonly models?: readonly string[]
  /** Called often; what it throws ends the verification. */
  readonly onProgress?: (progress: VerifyProgress) => void
  /** Ends the verification, which rejects the reason. */
  readonly signal?: AbortSignal
}

export interface VerifyProgress {
  /** `scan`: finding entries; `check`: comparing them; `settle`: waiting for invalidations in flight. */
  readonly phase: 'scan' | 'check' | 'settle'
  readonly done: number
  /** Undefined while nobody knows. */
  readonly total: number | undefined
}

/** What was measured, of all shapes or of one. */
export interface Staleness {
  /** Entries compared with the database. */
  readonly checked: number
  readonly stale: number
  /** `stale / checked`; 0 when nothing was checked. */
  readonly rate: number
  /** How long ago the oldest stale entry was filled, ms; null when none is stale. */
  readonly oldestStaleMs: number | null
}

export interface ShapeStaleness extends Staleness {
  readonly model: string
  /** As it stands in cache keys: the fields, and `[]` behind those of a filter. */
  readonly shape: string
  /** Keys of stale entries, 5 at most. */
  readonly examples: readonly string[]
}

export interface VerifyReport extends Staleness {
  /** Entries that the models have in the store; about, as they come and go. */
  readonly entries: number
  /** Entries that were drawn: those `checked`, and those `unchecked`. */
  readonly sampled: number
  /** Entries that differed from the database, and were gone or right when looked at again. */
  readonly inFlight: number
  /** Stale entries whose invalidation is in the outbox, and was not applied in several times `settleMs`. */
  readonly overdue: number
  /** Stale entries that were deleted. */
  readonly repaired: number
  /** Why drawn entries were not compared. */
  readonly unchecked: Readonly<Unchecked>
  /** One for every declared shape of the models. */
  readonly shapes: readonly ShapeStaleness[]
  readonly durationMs: number
}

export interface Unchecked {
  /** Gone by the time they were read, or filled under another Redis master: nobody reads them. */
  gone: number
  /** Stored by older or newer code. */
  otherSchema: number
  /** Being loaded. */
  leased: number
  /** About to be written. */
  intended: number
  /** No record of ours, or one that cannot be decoded: a lookup takes it for a miss. */
  damaged: number
  /** The key tells its values only as a hash, or not as this version writes them. */
  unverifiable: number
  /** Of shapes that this cache does not declare. */
  undeclared: number
}

export interface VerifyParts {
  readonly namespace: string
  readonly store: CacheStore
  /** Reads the primary. */
  readonly source: Source
  readonly binder: Binder
  /** Without plugins. */
  readonly db: Database
}

/**
 * Compares a sample of the cached entries with what the database has now.
 *
 * An entry that differs is either stale for good, or about to be cleared. It counts as stale when it is the very same
 * entry `settleMs` later, the database differs from it still, and the outbox has no invalidation for it: a record in the
 * outbox is deleted after the clear, so with the record gone the clear was, and has missed this entry.
 *
 * Rejects OptionError, StoreUnavailableError, SourceError, ModelError, or the reason of `signal`.
 */
export async function verify(parts: VerifyParts, options: VerifyOptions = {}): Promise<VerifyReport> {
  const began = performance.now()
  const settings = resolveVerify(options)
  const targets = await bindTargets(parts, settings.models)
  const run = new Verification(parts, settings)
  const sample = await run.draw(targets)
  const suspects: Suspect[] = []
  for (const [target, keys] of sample.groups()) suspects.push(...(await run.check(target, keys)))
  const stale = await run.settle(suspects)
  if (settings.repair) await run.repair(stale)
  const shapes = targets.flatMap((target) => {
    if (!target.shape) return []
    const found = stale.filter((each) => each.target === target)
    return {
      model: target.bound.definition.name,
      shape: target.shape.name,
      ...staleness(run.checked.get(target) ?? 0, found),
      examples: found.slice(0, MAX_EXAMPLES).map(({ key }) => key),
    }
  })
  const checked = shapes.reduce((sum, shape) => sum + shape.checked, 0)
  const unchecked = Object.values(run.unchecked).reduce((sum, count) => sum + count, 0)
  return {
    entries: sample.offered,
    sampled: checked + unchecked,
    ...staleness(checked, stale),
    inFlight: suspects.length - stale.length,
    overdue: stale.filter(({ overdue }) => overdue).length,
    repaired: settings.repair ? stale.length : 0,
    unchecked: run.unchecked,
    shapes,
    durationMs: Math.round(performance.now() - began),
  }
}

const MAX_EXAMPLES = 5
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

interface VerifySettings {
  readonly sample: number
  readonly settleMs: number
  readonly repair: boolean
  readonly models: readonly string[] | undefined
  readonly onProgress: ((progress: VerifyProgress) => void) | undefined
  readonly signal: AbortSignal | undefined
}

function resolveVerify(given: VerifyOptions): VerifySettings {
  checkOptionNames('verify', given, ['sample', 'settleMs', 'repair', 'models', 'onProgress', 'signal'])
  const { sample = 10_000, settleMs = 1000, repair = false, models, onProgress, signal } = given
  if (typeof repair !== 'boolean') throw new OptionError('verify.repair', 'true or false', repair)
  if (models !== undefined && !Array.isArray(models)) {
    throw new OptionError('verify.models', 'a list of names of models', models)
  }
  return {
    sample: sample === Number.POSITIVE_INFINITY ? sample : integerOption('verify.sample', sample, 1),
    settleMs: integerOption('verify.settleMs', settleMs, 0),
    repair,
    models,
    onProgress,
    signal,
  }
}

/** A shape of a model, and where its keys begin. Without a shape: what the model has of others. */
interface Target {
  readonly bound: BoundModel
  readonly shape: Shape | undefined
  readonly prefix: string
}

async function bindTargets({ binder }: VerifyParts, models?: readonly string[]): Promise<Target[]> {
  const declared = binder.bindings.map(({ definition }) => definition.name)
  const unknown = models?.find((model) => !declared.includes(model))
  if (unknown !== undefined) {
    throw new OptionError('verify.models', `made of declared models (${declared.join(', ')})`, unknown)
  }
  const targets: Target[] = []
  for (const binding of binder.bindings) {
    if (models && !models.includes(binding.definition.name)) continue
    const bound = await binder.bind(binding)
    for (const shape of bound.definition.shapes) {
      targets.push({ bound, shape, prefix: `${bound.prefix}${shape.name}:` })
    }
    targets.push({ bound, shape: undefined, prefix: bound.prefix })
  }
  return targets
}

/** An entry that differs from the database. */
interface Suspect {
  readonly target: ShapeTarget
  readonly key: string
  /** Of the whole record, the time of the fill included. The record itself may be large. */
  readonly digest: string
  readonly filledAt: number
}

interface ShapeTarget extends Target {
  readonly shape: Shape
}

interface StaleEntry extends Suspect {
  readonly overdue: boolean
}

/** What became of a key that was looked at. */
type Verdict = 'right' | 'wrong' | keyof Unchecked

interface Looked {
  readonly key: string
  readonly verdict: Verdict
  /** Where the verdict is `right` or `wrong`. */
  readonly record: Buffer | null
}

class Verification {
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
      this.#tell('scan', sample.offered, undefined)
    }
    for (const keys of sample.groups().values()) this.#total += keys.length
    return sample
  }

  /** Compares entries, and counts them. Returns those that differ. */
  async check(target: Target, keys: readonly string[]): Promise<Suspect[]> {
    const suspects: Suspect[] = []
    if (!hasShape(target)) {
      this.unchecked.undeclared += keys.length
      this.#advance(keys.length)
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
      this.#advance(batch.length)
    }
    return suspects
  }

  /** Tells which of the entries that differ are stale for good. */
  async settle(suspects: readonly Suspect[]): Promise<StaleEntry[]> {
    const stale: StaleEntry[] = []
    let open = suspects
    for (let round = 1; open.length > 0; round++) {
      this.#tell('settle', suspects.length - open.length, suspects.length)
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
    if (suspects.length > 0) this.#tell('settle', suspects.length, suspects.length)
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
        for (const { key, verdict, record } of await this.#look(target, batch)) {
          const suspect = byKey.get(key)
          if (suspect && verdict === 'wrong' && record && digestOf(record) === suspect.digest)
            wrong.push(suspect)
        }
      }
    }
    return wrong
  }

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
    const { keys, prefixes } = touchedKeys(rows)
    const waiting = new Set(keys)
    return (key) => waiting.has(key) || prefixes.some((prefix) => key.startsWith(prefix))
  }

  /** Reads entries, then their rows, and compares. */
  async #look(target: ShapeTarget, keys: readonly string[]): Promise<Looked[]> {
    const records = await this.#read(keys)
    const texts = keys.map((key) => textsOf(target.prefix, key))
    const states = records.map((record) => stateOf(record, target.bound.schema))
    const comparable = keys.flatMap((_, i) =>
      (states[i] === 'value' || states[i] === 'absent') && texts[i]?.length === target.shape.fields.length
        ? [i]
        : [],
    )
    const lists = await this.#select(
      target,
      comparable.map((i) => texts[i] as KeyTexts),
    )
    const rowsOf = new Map(comparable.map((i, at) => [i, lists[at]]))
    return keys.map((key, i) => {
      const record = records[i] ?? null
      return { key, record, verdict: verdictOf(target, record, rowsOf.get(i)) }
    })
  }

  async #read(keys: readonly string[]): Promise<(Buffer | null)[]> {
    return this.#patiently(() => this.#parts.store.getMany(keys))
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

  #advance(count: number): void {
    this.#done += count
    this.#tell('check', this.#done, this.#total)
  }

  #tell(phase: VerifyProgress['phase'], done: number, total: number | undefined): void {
    this.#settings.signal?.throwIfAborted()
    this.#settings.onProgress?.({ phase, done, total })
  }
}

function verdictOf(
  { bound, shape }: ShapeTarget,
  record: Buffer | null,
  rows: readonly ResultRow[] | undefined,
): Verdict {
  const state = stateOf(record, bound.schema)
  switch (state) {
    case 'none':
      return record ? 'otherSchema' : 'gone'
    case 'newer':
      return 'otherSchema'
    case 'value':
    case 'absent':
      if (!rows) return 'unverifiable'
      if (state === 'absent') return rows.length === 0 ? 'right' : 'wrong'
      return compare(bound, shape, record as Buffer, rows)
    default:
      return state
  }
}

/** Compares what a lookup would return with what it would return after a fresh fill. */
function compare(
  { codec }: BoundModel,
  { kind }: Shape,
  record: Buffer,
  rows: readonly ResultRow[],
): Verdict {
  const decode = (bytes: Buffer, offset: number) =>
    kind === 'key' ? codec.decodeRow(bytes, offset) : codec.decodeRows(bytes, offset)
  let fresh: unknown = kind === 'key' ? undefined : []
  try {
    // Before the stored one is decoded: of some classes a codec must have met a value before it can make one.
    if (rows.length > 0) {
      fresh = decode(kind === 'key' ? codec.encodeRow(rows[0] as ResultRow) : codec.encodeRows(rows), 0)
    }
  } catch (error) {
    // The table has other columns than when the model was bound to it.
    if (error instanceof RowFormError) return 'unverifiable'
    if (!(error instanceof UnstorableValueError)) throw error
  }
  const stored = decode(record, HEADER_BYTES)
  if (stored === undefined) return 'damaged'
  if (kind === 'key' && rows.length !== 1) return 'wrong'
  return isDeepStrictEqual(stored, fresh) ? 'right' : 'wrong'
}

function staleness(checked: number, stale: readonly StaleEntry[]): Staleness {
  const first = stale.reduce((least, entry) => Math.min(least, entry.filledAt), Number.POSITIVE_INFINITY)
  return {
    checked,
    stale: stale.length,
    rate: checked === 0 ? 0 : stale.length / checked,
    oldestStaleMs: stale.length === 0 ? null : Math.max(0, Date.now() - first),
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
