import { OptionError } from '../errors.ts'
import { checkOptionNames, integerOption } from '../options.ts'
import type { Unchecked } from './compare.ts'
import {
  type StaleEntry,
  type Suspect,
  type Target,
  Verification,
  type VerifyParts,
  type VerifyProgress,
  type VerifySettings,
} from './verification.ts'

export type { Unchecked } from './compare.ts'
export type { VerifyProgress } from './verification.ts'

export interface VerifyOptions {
  /**
   * How many entries are compared, drawn at random from all there are. Default 10,000. `Infinity`: all of them, which
   * takes about 200 bytes of memory for each.
   */
  readonly sample?: number | undefined
  /**
   * How long an entry that differs from the database is given until it counts as stale, ms. Default 1000. Shorter than
   * invalidations take where there are no triggers: entries that are about to be cleared count as stale.
   */
  readonly settleMs?: number | undefined
  /** Deletes stale entries. Default false. */
  readonly repair?: boolean | undefined
  /** Names of the models whose entries are compared. Default: all that the cache declares. */
  readonly models?: readonly string[] | undefined
  /** Called often. A promise it returns is waited for, and what it throws ends the verification. */
  readonly onProgress?: ((progress: VerifyProgress) => unknown) | undefined
  /** Ends the verification, which rejects the reason. */
  readonly signal?: AbortSignal | undefined
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
  for (const [target, keys] of sample.groups()) {
    for (const suspect of await run.check(target, keys)) suspects.push(suspect)
  }
  const stale = await run.settle(suspects)
  if (settings.repair) await run.repair(stale)
  const now = Date.now()
  const shapes = targets.flatMap((target) => {
    if (!target.shape) return []
    const found = stale.filter((each) => each.target === target)
    return {
      model: target.bound.definition.name,
      shape: target.shape.name,
      ...staleness(run.checked.get(target) ?? 0, found, now),
      examples: found.slice(0, MAX_EXAMPLES).map(({ key }) => key),
    }
  })
  const checked = shapes.reduce((sum, shape) => sum + shape.checked, 0)
  const unchecked = Object.values(run.unchecked).reduce((sum, count) => sum + count, 0)
  return {
    entries: sample.offered,
    sampled: checked + unchecked,
    ...staleness(checked, stale, now),
    inFlight: suspects.length - stale.length,
    overdue: stale.filter(({ overdue }) => overdue).length,
    repaired: settings.repair ? stale.length : 0,
    unchecked: run.unchecked,
    shapes,
    durationMs: Math.round(performance.now() - began),
  }
}

const MAX_EXAMPLES = 5

interface ResolvedVerify extends VerifySettings {
  readonly repair: boolean
  readonly models: readonly string[] | undefined
}

function resolveVerify(given: VerifyOptions): ResolvedVerify {
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

function staleness(checked: number, stale: readonly StaleEntry[], now: number): Staleness {
  const first = stale.reduce((least, entry) => Math.min(least, entry.filledAt), Number.POSITIVE_INFINITY)
  return {
    checked,
    stale: stale.length,
    rate: checked === 0 ? 0 : stale.length / checked,
    oldestStaleMs: stale.length === 0 ? null : Math.max(0, now - first),
  }
}
