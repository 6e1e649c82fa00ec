import { Environment } from './environment.ts'
import { ProcessSteps } from './process-steps.ts'
import type { Process } from './processes.ts'
import type { Property } from './properties.ts'
import type { Scenario } from './scenario.ts'
import { type Emit, type State, Transitions } from './transitions.ts'
import { StateText } from './world.ts'

/**
 * A world to explore: its first state, and what can come after each.
 *
 * The generators of the library are the real ones (machine.ts); around them, step by step:
 * - the store: the real records, byte for byte (records.ts). A step on several keys is one message per key, in any
 *   order, as on a cluster; each message may get lost, lose its reply, or come after its sender gave it up.
 * - the database: transactions that commit in any order, their outbox rows in the form triggers give them, SQL that
 *   sees what is committed at that step; COMMIT may be refused, or break off and be applied at once, later or never.
 * - time: none. Whatever waits may go on at any moment: ttls, sleeps and deadlines are steps of their own.
 *
 * Not simulated: two transactions that write one row; values of other schema numbers and damaged ones; SQL
 * replicas; two masters at once; a store that fails for longer than a few messages.
 */
export class Simulation {
  readonly #transitions: Transitions
  readonly #steps: ProcessSteps
  readonly #environment: Environment
  readonly #text = new StateText()

  constructor(scenario: Scenario) {
    this.#transitions = new Transitions(scenario)
    this.#steps = new ProcessSteps(this.#transitions)
    this.#environment = new Environment(this.#transitions)
  }

  get processes(): readonly Process[] {
    return this.#transitions.processes
  }

  get initial(): State {
    return this.#transitions.initial
  }

  /** A text that two states share only if everything that can come after them is the same. */
  textOf({ world, places }: State): string {
    for (const { id } of places) this.#text.number(id + 1)
    world.write(this.#text)
    return this.#text.take()
  }

  /** Everything that can happen next. */
  successors(state: State, emit: Emit): void {
    this.#transitions.emit = emit
    state.places.forEach((place, p) => {
      for (const blocked of place.blocked) this.#steps.take({ state, p, blocked })
    })
    this.#environment.happens(state)
  }

  /** What is wrong with a state as such. */
  problemsOf({ world, places }: State): readonly Property[] {
    return this.#transitions.promises.cached(world, places)
  }

  /** What is wrong with a state from which nothing goes on. */
  problemsAtEnd({ world, places }: State): readonly Property[] {
    // The relay waits for ever.
    const ended = places.every((place, p) => place.done || (this.processes[p]?.isRelay && place.resting))
    return this.#transitions.promises.atEnd(world, places, ended)
  }

  describe({ world }: State): string {
    const { promises, words, scenario } = this.#transitions
    const keys = scenario.keys.map((key, k) => {
      const truth = words.answer(key, promises.truth(world, k))
      return `${key}: database ${truth}, store ${words.record(world.records[k] as number, k)}`
    })
    return keys.join('; ')
  }
}
