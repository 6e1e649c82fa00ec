import { CommitOutcomeUnknownError } from '../../src/errors.ts'
import {
  type Commit,
  type CommitParty,
  type CommitStep,
  commitTransaction,
} from '../../src/invalidation/commit.ts'
import { type RelayStep, relayTurn } from '../../src/invalidation/relay.ts'
import { type Flight, Flights } from '../../src/loaders/flight.ts'
import { Lookup } from '../../src/loaders/lookup.ts'
import { Memo } from '../../src/loaders/memo.ts'
import { NO_COUNTS, type Step, type Wave, type WaveEnvironment, wave } from '../../src/loaders/wave.ts'
import { isLeaseRecord, leaseToken } from '../../src/stores/entry.ts'
import type { Acquired } from '../../src/stores/store.ts'
import { addressOf, ITEMS, type KeyName, lookupOf, NAMESPACE, type Table, targetOf } from './rows.ts'

/** One call of the library. A caller makes its calls one after the other. */
export type Action =
  /** Lookups made together: one wave. With `inside`, in the transaction of that write, before its COMMIT. */
  | { readonly read: readonly KeyName[]; readonly inside?: number }
  | { readonly write: number }
  /** Turns of the relay, again and again. */
  | { readonly relay: true }

/** An operating system process: its callers share the loads in flight. */
export interface Program {
  readonly name: string
  readonly callers: readonly (readonly Action[])[]
  /** All callers are in one scope, and share its memo. */
  readonly scope?: true
}

export type StepOfAny = Step | CommitStep<CommitParty> | RelayStep
type Body = Generator<StepOfAny, unknown, never>

/** The code under test. Mutations put another in its place. */
export interface Code {
  wave(lookups: readonly Lookup[], env: WaveEnvironment): Wave
  commit(parties: readonly CommitParty[], token: () => string): Commit<CommitParty>
  relayTurn(): Generator<RelayStep, number, never>
  flights(): Flights
  /** Whether a lookup inside a transaction may use the store. */
  readonly insideUsesStore: boolean
}

export const REAL_CODE: Code = {
  wave,
  commit: commitTransaction,
  relayTurn,
  flights: () => new Flights(),
  insideUsesStore: false,
}

export interface MachineParts {
  readonly table: Table
  readonly level: CommitParty['strictness']
  readonly waitsMs: readonly number[]
  readonly code: Code
  /** Whether the store may have another session after a sleep. */
  readonly sleepsMatter: boolean
  /** Whether the leases of a process all have the same token. */
  readonly reusesLeaseTokens: boolean
}

/** What a step came to. Outcomes with the same text are the same to the process, now and later. */
export interface Outcome {
  readonly text: string
  readonly value?: unknown
  readonly error?: Error
}

/** What a process did that the rest of the world can notice. */
export type Event =
  /** A read has begun that finds answers, or loads under way, in the memo. */
  | { readonly type: 'begun'; readonly caller: number }
  /** `shown`: the writes that the answer shows; undefined: the table never looked like that. */
  | {
      readonly type: 'answered'
      readonly caller: number
      readonly key: KeyName
      readonly shown: number | undefined
      readonly inside: number | undefined
    }
  | { readonly type: 'failed'; readonly caller: number; readonly key: KeyName; readonly error: Error }
  | { readonly type: 'wrote'; readonly write: number; readonly told: 'committed' | 'aborted' | 'unknown' }
  | { readonly type: 'rolledBack'; readonly write: number }
  | { readonly type: 'deletes'; readonly write: number }
  | { readonly type: 'turnEnded' }
  /** An error that nothing in the library expects. */
  | { readonly type: 'fault'; readonly error: Error }

/** A step that waits for the world. */
export interface Blocked {
  readonly thread: string
  readonly caller: number
  readonly action: Action
  readonly step: StepOfAny
  /** Nothing of this call has happened yet. */
  readonly first: boolean
  /** What a lease taken by this step is to be called. */
  readonly leaseToken: string
}

/** A generator, and the tasks it has named. */
interface Thread {
  readonly id: string
  readonly tree: Tree
  body: Body
  readonly tasks: Map<Wave, Thread>
  readonly history: string[]
  step: StepOfAny | undefined
  /** How many tasks were done when it last went on without the others. */
  doneBefore: number
}

/** The threads of one call. */
interface Tree {
  readonly caller: Caller
  readonly threads: Thread[]
  /** The leases it was given. */
  readonly granted: Set<string>
  /** The leases it has seen in the store. */
  readonly seen: Set<string>
  acquires: number
  /** Whether anything of it has happened that others could notice. */
  begun: boolean
}

interface Caller {
  readonly number: number
  readonly actions: readonly Action[]
  at: number
  tree: Tree | undefined
  /** Of a read that is under way; told ones are undefined. */
  lookups: (WatchedLookup | undefined)[]
  /** Those of them that the memo did not have. */
  fresh: readonly Lookup[]
}

const SETTINGS = {
  leaseMs: 6000,
  fillPatienceMs: 5,
  maxValueBytes: 100_000,
  random: () => 0,
}

/** Nobody waits for a promise here. */
class WatchedLookup extends Lookup {
  failure: Error | undefined = undefined

  override fail(error: Error): void {
    this.failure = error
    super.fail(error)
  }
}

function newLookup(key: KeyName, memo: Memo | undefined): WatchedLookup {
  const { values } = lookupOf(key)
  return new WatchedLookup(targetOf(key), values, addressOf(key), 'null', memo)
}

/**
 * A process, driven by hand: the generators of the library are run until each waits for the store, the database or
 * another process; then one of those steps is given an outcome. Everything else, sleeping included, happens at once:
 * the next step may come as late as it likes, so a sleep in front of it changes nothing.
 */
export class Machine {
  readonly #parts: MachineParts
  readonly #callers: readonly Caller[]
  readonly #trees = new Set<Tree>()
  readonly #flights: Flights
  readonly #memo: Memo | undefined
  /** What is read here, and the cache keys of it. */
  readonly #reads: ReadonlySet<KeyName>
  readonly #keys: readonly string[]
  #events: Event[] = []
  /** What it did before its first step. */
  readonly begun: readonly Event[]

  /** @param firstCaller the number of the program's first caller among all there are */
  constructor({ callers, scope }: Program, firstCaller: number, parts: MachineParts) {
    this.#parts = parts
    this.#flights = parts.code.flights()
    this.#memo = scope && new Memo()
    this.#reads = new Set(callers.flat().flatMap((action) => ('read' in action ? action.read : [])))
    this.#keys = [...this.#reads].map((key) => addressOf(key).key)
    this.#callers = callers.map((actions, i) => ({
      number: firstCaller + i,
      actions,
      at: 0,
      tree: undefined,
      lookups: [],
      fresh: [],
    }))
    for (const caller of this.#callers) this.#begin(caller)
    this.#settle()
    this.begun = this.#events
  }

  /** Gives a blocked step its outcome, and runs on. */
  resume(threadId: string, outcome: Outcome): readonly Event[] {
    this.#events = []
    const thread = this.#threads().find(({ id }) => id === threadId)
    if (!thread?.step) throw new Error(`there is no step of ${threadId}`)
    const { tree, step } = thread
    if (step.op === 'acquire') tree.acquires++
    if (step.op === 'tasks') thread.doneBefore = tasksDone(thread)
    this.#learn(tree, step, outcome)
    if (!tree.begun && step.op === 'getMany') this.#beginAnew(thread)
    tree.begun = true
    this.#send(thread, outcome)
    // Going on without the others is nothing when there was nothing to be done.
    if (step.op === 'tasks' && thread.step?.op === 'tasks') thread.history.pop()
    this.#settle()
    return this.#events
  }

  get blocked(): readonly Blocked[] {
    return this.#threads()
      .filter(({ step }) => step)
      .flatMap((thread): Blocked[] => {
        const { tree, step } = thread
        const { caller } = tree
        if (step?.op === 'join') return []
        // With some of its tasks done, it may go on without the others.
        if (step?.op === 'tasks' && (step.patienceMs === Number.POSITIVE_INFINITY || !isImpatient(thread)))
          return []
        return [
          {
            thread: thread.id,
            caller: caller.number,
            action: actionOf(tree),
            step: step as StepOfAny,
            first: !tree.begun,
            leaseToken: this.#leaseToken(tree).padEnd(16, '-'),
          },
        ]
      })
  }

  /** Whether no call is under way, loads that nobody waits for included. */
  get resting(): boolean {
    return [...this.#trees].every(({ begun }) => !begun)
  }

  get done(): boolean {
    return this.#trees.size === 0 && this.#callers.every(({ at, actions }) => at === actions.length)
  }

  /** The reads that have not begun yet. */
  get readsLeft(): number {
    const left = ({ at, actions }: Caller) => actions.slice(at).filter((action) => 'read' in action).length
    const begun = ({ tree, lookups }: Caller) => lookups.length > 0 && (tree?.begun ?? true)
    return this.#callers.reduce((sum, caller) => sum + left(caller) - (begun(caller) ? 1 : 0), 0)
  }

  /** The callers that wait for answers. */
  get waiting(): readonly number[] {
    return this.#callers.filter(({ lookups }) => lookups.some((lookup) => lookup)).map(({ number }) => number)
  }

  /** The leases that matter to it: those that its calls were given, and those of loads that its callers may join. */
  get leases(): readonly string[] {
    const joinable = (token: string) => this.#keys.some((key) => this.#flightOf(key, token))
    return [...this.#trees].flatMap(({ granted, seen }) => [...granted, ...[...seen].filter(joinable)])
  }

  /**
   * All that decides what the process does from now on, as a text: where its callers are, what the calls that are
   * under way were told, and what those calls share. What a finished call was told is in it no more.
   */
  get signature(): string {
    const callers = this.#callers.map(
      ({ at, lookups }) => `${at}${lookups.map((each) => (each ? '?' : '.')).join('')}`,
    )
    const trees = [...this.#trees].map(({ threads }) =>
      threads
        .map(({ id, step, history }) => `${id}${nameOf(step)}=${history.map((text) => `${text};`).join('')}`)
        .sort()
        .join(' '),
    )
    const flights = this.leases.flatMap((token) =>
      this.#keys.map((key) => {
        const flight = this.#flightOf(key, token)
        return flight ? `${key}/${token}/${textOf(flight.settled)}` : ''
      }),
    )
    const memo = [...this.#reads].map((key) => {
      const slot = this.#memo?.twinOf(newLookup(key, undefined))
      const waiting = this.#callers.filter(({ lookups }) =>
        lookups.some((lookup) => lookup && lookup === slot),
      )
      return slot ? `${key} ${textOf(slot.answered)} ${waiting.map(({ number }) => number)}` : ''
    })
    return [callers.join(), trees.sort().join('|'), flights.join(), memo.join()].join('\n')
  }

  #leaseToken({ threads, acquires }: Tree): string {
    return this.#parts.reusesLeaseTokens ? `${this.#callers[0]?.number}` : `${threads[0]?.id}.${acquires}`
  }

  /** As it is, whatever a mutation makes of who may join. */
  #flightOf(key: string, token: string): Flight | undefined {
    return Flights.prototype.get.call(this.#flights, key, token)
  }

  /** Takes down the leases that a step was given, or has shown. */
  #learn({ granted, seen }: Tree, { op }: StepOfAny, { value, error }: Outcome): void {
    if (error || (op !== 'getMany' && op !== 'acquire')) return
    const { lease, records } = (op === 'acquire' ? value : { records: value }) as Partial<Acquired>
    if (lease) granted.add(lease.token)
    for (const record of records ?? []) if (record && isLeaseRecord(record)) seen.add(leaseToken(record))
  }

  /** A read begins with its first step, and not when it could have: what it sees of the store at once is of then. */
  #beginAnew(thread: Thread): void {
    thread.body = this.#waveOf(thread.tree.caller.fresh, actionOf(thread.tree))
    thread.step = thread.body.next().value as StepOfAny
  }

  #threads(): Thread[] {
    return [...this.#trees].flatMap(({ threads }) => threads)
  }

  #begin(caller: Caller): void {
    const action = caller.actions[caller.at]
    if (!action) return
    if ('read' in action) this.#beginRead(caller, action)
    else this.#plant(caller, this.#bodyOf(caller, action))
  }

  /** As ModelCache looks things up: the memo first, and what is not there becomes the lookups of a wave. */
  #beginRead(caller: Caller, action: Extract<Action, { read: unknown }>): void {
    const { read } = action
    const fresh: WatchedLookup[] = []
    caller.lookups = read.map((key) => {
      const lookup = newLookup(key, this.#memo)
      const known = this.#memo?.twinOf(lookup)
      if (known) return known as WatchedLookup
      this.#memo?.add(lookup)
      fresh.push(lookup)
      return lookup
    })
    if (fresh.length < read.length) this.#events.push({ type: 'begun', caller: caller.number })
    if (fresh.length === 0) return
    caller.fresh = fresh
    this.#plant(caller, this.#waveOf(fresh, action))
  }

  #waveOf(lookups: readonly Lookup[], action: Action): Body {
    const { code, waitsMs } = this.#parts
    return code.wave(lookups, {
      useStore: !('inside' in action) || code.insideUsesStore,
      isAway: false,
      queued: undefined,
      twins: true,
      settings: { ...SETTINGS, waitsMs },
      flights: this.#flights,
      counts: { ...NO_COUNTS },
      tableChanged: () => undefined,
    })
  }

  #bodyOf(caller: Caller, action: Exclude<Action, { read: unknown }>): Body {
    const { code, level } = this.#parts
    if ('relay' in action) return code.relayTurn()
    const party = {
      namespace: NAMESPACE,
      hasStrict: level(ITEMS.definition.name) !== undefined,
      strictness: level,
    }
    let tokens = 0
    return code.commit([party], () => `${caller.number}.${caller.at}.${tokens++}`.padEnd(16, '-'))
  }

  #plant(caller: Caller, body: Body): void {
    const tree: Tree = { caller, threads: [], granted: new Set(), seen: new Set(), acquires: 0, begun: false }
    caller.tree = tree
    this.#trees.add(tree)
    this.#start(`${caller.number}.${caller.at}`, tree, body)
  }

  #start(id: string, tree: Tree, body: Body): Thread {
    const thread: Thread = { id, tree, body, tasks: new Map(), history: [], step: undefined, doneBefore: 0 }
    tree.threads.push(thread)
    this.#send(thread, undefined)
    return thread
  }

  #send(thread: Thread, outcome: Outcome | undefined): void {
    const { body, tree } = thread
    if (outcome) thread.history.push(outcome.text)
    try {
      const { done, value } = outcome?.error ? body.throw(outcome.error) : body.next(outcome?.value as never)
      thread.step = done ? undefined : value
      if (done && thread === tree.threads[0]) this.#ended(tree, undefined)
    } catch (error) {
      thread.step = undefined
      this.#ended(tree, error instanceof Error ? error : new Error(String(error)))
    }
  }

  /** A call is through with all it had to do; a read may have been answered before. */
  #ended(tree: Tree, error: Error | undefined): void {
    const action = actionOf(tree)
    this.#trees.delete(tree)
    if ('write' in action) {
      const told = !error ? 'committed' : error instanceof CommitOutcomeUnknownError ? 'unknown' : 'aborted'
      this.#events.push({ type: 'wrote', write: action.write, told })
    } else if ('relay' in action) {
      this.#events.push({ type: 'turnEnded' })
    } else if (error) {
      this.#events.push({ type: 'fault', error })
    }
    if (tree.caller.tree === tree) tree.caller.tree = undefined
  }

  #settle(): void {
    let moved = true
    while (moved) {
      moved = false
      for (const thread of this.#threads()) if (thread.step && this.#moves(thread, thread.step)) moved = true
      for (const caller of this.#callers) if (this.#goesOn(caller)) moved = true
    }
  }

  /** Takes a step that needs nobody else. False: it does. */
  #moves(thread: Thread, step: StepOfAny): boolean {
    const { action } = { action: actionOf(thread.tree) }
    const local = (text: string, value: unknown) => {
      this.#send(thread, { text, value })
      return true
    }
    switch (step.op) {
      case 'sleep':
        if (this.#parts.sleepsMatter) return false
        return local('', undefined)
      case 'forget':
        this.#memo?.forget(step.touched)
        return local('', undefined)
      case 'ownRows':
        if (!('write' in action)) return false
        return local('', { xid: String(action.write), rows: [this.#parts.table.outboxRow(action.write)] })
      case 'rollback':
        if (!('write' in action)) return false
        this.#events.push({ type: 'rolledBack', write: action.write })
        return local('', undefined)
      case 'delete':
        if (!('write' in action)) return false
        this.#events.push({ type: 'deletes', write: action.write })
        return local('', undefined)
      case 'join':
        return step.flight.settled !== undefined && local(textOf(step.flight.settled), step.flight.settled)
      case 'tasks': {
        const fresh = step.tasks.filter((task) => !thread.tasks.has(task))
        for (const task of fresh) {
          const id = `${thread.id}/${thread.tasks.size}`
          thread.tasks.set(task, this.#start(id, thread.tree, task))
        }
        if (tasksDone(thread) === thread.tasks.size) return local('all', true)
        return fresh.length > 0
      }
      default:
        return false
    }
  }

  /** Tells answers as they come, and makes the next call when this one has returned. */
  #goesOn(caller: Caller): boolean {
    const action = caller.actions[caller.at]
    if (!action) return false
    if ('read' in action) {
      caller.lookups = caller.lookups.map((lookup, i) => {
        if (!lookup || lookup.pending) return lookup
        this.#events.push(this.#told(caller, action, action.read[i] as KeyName, lookup))
        return undefined
      })
      if (caller.lookups.some((lookup) => lookup)) return false
    } else if (caller.tree) {
      return false
    }
    caller.lookups = []
    if (!('relay' in action)) caller.at++
    this.#begin(caller)
    return true
  }

  #told(
    caller: Caller,
    { inside }: Extract<Action, { read: unknown }>,
    key: KeyName,
    lookup: WatchedLookup,
  ): Event {
    const { answered, failure } = lookup
    if (answered === undefined) return { type: 'failed', caller: caller.number, key, error: failure as Error }
    const shown = this.#parts.table.shownBy(key, answered)
    return { type: 'answered', caller: caller.number, key, shown, inside }
  }
}

function actionOf({ caller, threads }: Tree): Action {
  const at = Number((threads[0] as Thread).id.split('.')[1])
  return caller.actions[at] as Action
}

function tasksDone(thread: Thread): number {
  return [...thread.tasks.values()].filter(({ step }) => !step).length
}

/** Who joins whose load, and who waits, is a matter of who came first. The rest of a step follows from the history. */
function nameOf(step: StepOfAny | undefined): string {
  if (step?.op !== 'join') return step?.op ?? '!'
  const { token, settled } = step.flight
  return `join ${token} ${textOf(settled)}`
}

/** Whether a task has ended since it last went on: going on twice for one would only repeat what it did. */
function isImpatient(thread: Thread): boolean {
  return tasksDone(thread) > thread.doneBefore
}

function textOf(value: unknown): string {
  if (value === undefined) return '?'
  if (Buffer.isBuffer(value)) return value.toString('latin1')
  return value instanceof Error ? value.name : JSON.stringify(value)
}
