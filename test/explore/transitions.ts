import { StoreUnavailableError } from '../../src/errors.ts'
import type { OutboxRow } from '../../src/models/touched.ts'
import { type Blocked, type Event, type Outcome, REAL_CODE } from './machine.ts'
import { merge } from './merging.ts'
import { type Place, Process } from './processes.ts'
import { Promises } from './promises.ts'
import type { Property } from './properties.ts'
import { Table } from './rows.ts'
import { callersOf, type Scenario } from './scenario.ts'
import { Store } from './store.ts'
import { Words } from './words.ts'
import { type Budget, World } from './world.ts'

export interface State {
  readonly world: World
  /** Where each process stands. */
  readonly places: readonly Place[]
}

/** @param label says what happened */
export type Emit = (next: State, broken: readonly Property[], fault: boolean, label: () => string) => void

/** The next state while it is being made. */
export interface Draft {
  readonly world: World
  readonly places: Place[]
  readonly broken: Property[]
  readonly events: Event[]
  /** What happens, for traces. */
  what: string | (() => string)
}

/** A process that waits with a step, in a state. */
export interface At {
  readonly state: State
  readonly p: number
  readonly blocked: Blocked
}

/** How a state becomes the next one: what all steps have in common. */
export class Transitions {
  readonly scenario: Scenario
  readonly table: Table
  readonly store: Store
  readonly promises: Promises
  readonly words: Words
  readonly processes: readonly Process[]
  /** Takes the successors that are being made. */
  emit: Emit = () => undefined
  readonly #callers: readonly (readonly number[])[]
  readonly #merges: boolean

  constructor(scenario: Scenario) {
    const { keys, initial, writes, programs, level, faults, looks = 1, mutation = {} } = scenario
    this.scenario = scenario
    this.table = new Table(initial, writes)
    this.store = new Store(this.table, keys, mutation)
    this.promises = new Promises(scenario, this.table, this.store)
    this.words = new Words(scenario, this.table, this.store)
    this.#callers = callersOf(scenario)
    this.#merges = !mutation.exact
    const strictness = { default: undefined, strict: 'abort', proceed: 'proceed' } as const
    const parts = {
      table: this.table,
      level: () => strictness[level],
      waitsMs: new Array(looks).fill(2),
      code: { ...REAL_CODE, ...mutation.code },
      sleepsMatter: (faults.restart ?? 0) + (faults.failover ?? 0) > 0,
      reusesLeaseTokens: mutation.reusesLeaseTokens === true,
    }
    this.processes = programs.map((program, p) => new Process(program, this.#callers[p]?.[0] ?? 0, parts))
  }

  get initial(): State {
    const { keys, writes, programs, faults } = this.scenario
    const world = new World(keys.length, writes.length, programs.length, this.words.names.length, faults)
    const draft = newDraft(
      world,
      this.processes.map(({ start }) => start.to),
    )
    this.processes.forEach(({ start }, p) => {
      this.#apply(draft, p, start.events)
    })
    return this.#finish(draft)
  }

  /** Something happens. @param fault whether it need not happen for things to go on */
  happens(state: State, fault: boolean, change: (draft: Draft) => void): void {
    const draft = newDraft(state.world.copy(), [...state.places])
    change(draft)
    const next = this.#finish(draft)
    this.emit(next, draft.broken, fault, () => this.#tell(draft))
  }

  /** A process takes a step. */
  step({ state, p, blocked }: At, change: (draft: Draft) => void): void {
    const { thread, caller, action, first } = blocked
    this.happens(state, false, (draft) => {
      // A read begins with its first step: beginning earlier would only promise it less.
      if (first && 'read' in action && !state.world.repliesTo(p, thread)) {
        this.promises.begins(draft.world, p, caller)
      }
      change(draft)
      const { what } = draft
      draft.what = () => `${this.words.names[caller]}: ${typeof what === 'string' ? what : what()}`
    })
  }

  /** A process takes a step, and that goes wrong, as often as it may. */
  fails(at: At, fault: keyof Budget, change: (draft: Draft) => void): void {
    if (at.state.world.budget[fault] === 0) return
    this.step(at, (draft) => {
      draft.world.spend(fault)
      change(draft)
    })
  }

  /** Gives a step what it came to. */
  resume(draft: Draft, { p, blocked: { thread } }: At, outcome: Outcome): void {
    this.#resume(draft, p, thread, outcome)
  }

  #resume(draft: Draft, p: number, thread: string, outcome: Outcome): void {
    const process = this.processes[p] as Process
    draft.world.forgetReplies(p, thread)
    const { to, events } = process.move(draft.places[p] as Place, thread, outcome)
    draft.places[p] = to
    this.#apply(draft, p, events)
  }

  #tell({ what, events }: Draft): string {
    return [typeof what === 'string' ? what : what(), ...this.words.events(events)].join(', ')
  }

  #apply({ world, broken, events: told }: Draft, p: number, events: readonly Event[]): void {
    for (const event of events) {
      told.push(event)
      switch (event.type) {
        case 'begun':
          this.promises.begins(world, p, event.caller)
          break
        case 'answered':
          broken.push(...this.promises.answered(world, event))
          break
        case 'failed':
          broken.push(...this.promises.failed())
          break
        case 'wrote':
          broken.push(...this.promises.wrote(world, p, event))
          world.intendedIn = world.intendedIn.with(event.write, -1)
          world.lapsed &= ~(1 << event.write)
          break
        case 'rolledBack':
          world.abort(1 << event.write)
          break
        case 'deletes':
          world.deleting |= 1 << event.write
          break
        case 'turnEnded':
          world.taken = 0
          break
        case 'fault':
          broken.push('ends')
          break
      }
    }
  }

  /** Takes what is nobody's choice, and forgets what nobody can notice any more. */
  #finish(draft: Draft): State {
    const { world, places } = draft
    while (places.some((place, p) => this.#takesInevitable(draft, place, p)));
    if (!this.scenario.deletesLater) {
      world.outbox &= ~(world.deleting & ~world.taken)
      world.deleting = 0
    }
    if (this.#merges) merge(world, places, this.store, this.#callers)
    return { world, places }
  }

  #takesInevitable(draft: Draft, { blocked }: Place, p: number): boolean {
    for (const each of blocked) {
      const outcome = this.#inevitable(draft.world, p, each)
      if (!outcome) continue
      this.#resume(draft, p, each.thread, outcome)
      return true
    }
    return false
  }

  /** The outcome of a step that can come to one thing only, and that nobody else notices. */
  #inevitable(world: World, p: number, blocked: Blocked): Outcome | undefined {
    const { step, action, thread } = blocked
    const { session } = world
    switch (step.op) {
      case 'inForce': {
        const write = 'write' in action ? action.write : 0
        const value = world.intendedIn[write] === session && !(world.lapsed & (1 << write))
        return { text: String(value), value }
      }
      case 'outcome': {
        if (!('write' in action) || world.flying & (1 << action.write)) return undefined
        const value = world.committed & (1 << action.write) ? 'committed' : 'aborted'
        return { text: value, value }
      }
      case 'delete':
        // Nobody but a relay that dies before it could tell when.
        if (!this.#merges || world.budget.relayCrash > 0) return undefined
        world.release(maskOf(step.rows))
        return { text: '' }
      case 'fill': {
        if (!this.#merges) return undefined
        if (!this.store.canFill(step.lease, session)) return UNAVAILABLE
        const replies = world.repliesTo(p, thread)?.byKey
        const hopeless = this.store
          .messagesOf(blocked)
          .every(
            ({ key }, i) =>
              replies?.[i] !== undefined || !this.store.holds(world.records, key, step.lease.token),
          )
        return hopeless ? { text: '', value: 0 } : undefined
      }
      case 'getMany':
      case 'acquire':
      case 'intend':
      case 'clear': {
        const replies = world.repliesTo(p, thread)
        if (replies && replies.session !== session) return UNAVAILABLE
        return this.store.messagesOf(blocked).length === 0 ? { text: '', value: session } : undefined
      }
      default:
        return undefined
    }
  }
}

function newDraft(world: World, places: Place[]): Draft {
  return { world, places, broken: [], events: [], what: '' }
}

/** What comes of a step that the store did not answer. */
export const UNAVAILABLE: Outcome = { text: 'unavailable', error: new StoreUnavailableError('lost') }

/** The writes that outbox rows are of. */
export function maskOf(rows: readonly OutboxRow[]): number {
  return rows.reduce((mask, { xid }) => mask | (1 << Number(xid)), 0)
}
