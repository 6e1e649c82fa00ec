import { type Cache, insidesOf } from '../cache.ts'
import type { Trip } from '../loaders/driver.ts'

/** A step that a wave wants to take, held until the test says what becomes of it. */
export interface HeldStep {
  readonly op: Trip['op']
  /** What the wave asks for: keys, lease, statement. */
  readonly step: Trip
  /** Takes the step for real, once, and lets the wave go on with what it came to. Resolves when the step was taken. */
  take(): Promise<void>
  /** Lets the wave go on as if the step had failed. The step is not taken. */
  fail(error: Error): void
}

/** The step driver: every step of a cache's waves waits for the test. */
export interface Steps {
  /** The steps that are held now, oldest first. */
  readonly held: readonly HeldStep[]
  /** Resolves to the oldest held step, of this kind if one is named, as soon as there is one. */
  next(op?: Trip['op']): Promise<HeldStep>
  /** As `next`, and takes it. */
  take(op?: Trip['op']): Promise<void>
  /** Takes all held steps, and holds no more. */
  release(): void
}

/**
 * From now on, holds every step of the cache's waves: the store and the source are asked when the test says so, and
 * in the order it says. It drives the very code that runs in production, in which lookups of one tick are one wave,
 * whatever their scopes: begin in another tick what is to have a wave of its own.
 *
 * ```ts
 * const steps = holdSteps(cache)
 * const reading = User.cache.getAsync({ id: 1 })
 * await steps.take('getMany')
 * await steps.take('acquire')
 * const select = await steps.next('select')   // the reader holds a lease, and has not sent its SQL yet
 * ```
 */
export function holdSteps<DB>(cache: Cache<DB>): Steps {
  const { hook } = insidesOf(cache)
  const held: HeldStep[] = []
  const waiting: { op: Trip['op'] | undefined; found: (step: HeldStep) => void }[] = []
  hook.gate = (step, take) =>
    new Promise((resolve, reject) => {
      let left: Promise<void> | undefined
      const leave = (how: () => Promise<void>) => {
        if (!left) {
          held.splice(held.indexOf(heldStep), 1)
          left = how()
        }
        return left
      }
      const heldStep: HeldStep = {
        op: step.op,
        step,
        take: () => leave(() => take().then(resolve, reject)),
        fail: (error) => void leave(async () => reject(error)),
      }
      held.push(heldStep)
      const at = waiting.findIndex(({ op }) => op === undefined || op === step.op)
      if (at >= 0) waiting.splice(at, 1)[0]?.found(heldStep)
    })
  const find = (op?: Trip['op']) => held.find((step) => op === undefined || step.op === op)
  const coming = (op?: Trip['op']): Promise<HeldStep> =>
    new Promise((resolve) => waiting.push({ op, found: resolve }))
  return {
    get held() {
      return [...held]
    },
    next: async (op) => find(op) ?? coming(op),
    take: async (op) => {
      // Taken at once if it is there, so that two who ask for one take two.
      const step = find(op) ?? (await coming(op))
      await step.take()
    },
    release() {
      hook.gate = undefined
      for (const step of [...held]) void step.take()
    },
  }
}
