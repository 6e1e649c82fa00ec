import {
  type Blocked,
  type Event,
  Machine,
  type MachineParts,
  type Outcome,
  type Program,
} from './machine.ts'

/** Where a process stands. What led there is forgotten, but for what decides how it goes on. */
export interface Place {
  readonly id: number
  /** See Machine. */
  readonly signature: string
  readonly blocked: readonly Blocked[]
  readonly resting: boolean
  readonly done: boolean
  readonly readsLeft: number
  /** See Machine. */
  readonly waiting: readonly number[]
  readonly leases: readonly string[]
}

export interface Move {
  readonly to: Place
  readonly events: readonly Event[]
}

interface Past {
  readonly thread: string
  readonly outcome: Outcome
}

interface Known extends Place {
  readonly history: readonly Past[]
  readonly moves: Map<string, Move>
  /** A machine that stands here and has not been used to go on yet. */
  machine: Machine | undefined
}

/**
 * All the places a program can get to. Generators cannot be copied, so a place is reached by running the real ones
 * from the start with the outcomes that lead there, once; after that it is known, whatever the rest of the world
 * does meanwhile. That is sound because the generators see nothing but those outcomes.
 */
export class Process {
  readonly program: Program
  readonly isRelay: boolean
  /** The writes it makes, as a mask. */
  readonly writes: number
  readonly start: Move
  /** Where a process is that was killed. */
  readonly dead: Place
  readonly #firstCaller: number
  readonly #parts: MachineParts
  readonly #bySignature = new Map<string, Known>()

  constructor(program: Program, firstCaller: number, parts: MachineParts) {
    this.program = program
    const actions = program.callers.flat()
    this.isRelay = actions.some((action) => 'relay' in action)
    this.writes = actions.reduce((mask, action) => ('write' in action ? mask | (1 << action.write) : mask), 0)
    this.#firstCaller = firstCaller
    this.#parts = parts
    this.dead = {
      id: -1,
      signature: '',
      blocked: [],
      resting: true,
      done: true,
      readsLeft: 0,
      waiting: [],
      leases: [],
    }
    const machine = this.#machine()
    this.start = { to: this.#placeOf(machine, []), events: machine.begun }
  }

  /** How many places are known so far. */
  get size(): number {
    return this.#bySignature.size
  }

  move(place: Place, thread: string, outcome: Outcome): Move {
    const from = place as Known
    const name = `${thread} ${outcome.text}`
    const known = from.moves.get(name)
    if (known) return known
    const machine = from.machine ?? this.#replay(from)
    from.machine = undefined
    const events = machine.resume(thread, outcome)
    const move = { to: this.#placeOf(machine, [...from.history, { thread, outcome }]), events }
    from.moves.set(name, move)
    return move
  }

  /** A machine at the very beginning, to be driven without any of this. */
  fresh(): Machine {
    return this.#machine()
  }

  #machine(): Machine {
    return new Machine(this.program, this.#firstCaller, this.#parts)
  }

  #replay({ history }: Known): Machine {
    const machine = this.#machine()
    for (const { thread, outcome } of history) machine.resume(thread, outcome)
    return machine
  }

  #placeOf(machine: Machine, history: Known['history']): Known {
    const { signature } = machine
    const found = this.#bySignature.get(signature)
    if (found) return found
    const { blocked, resting, done, readsLeft, waiting, leases } = machine
    const place: Known = {
      id: this.#bySignature.size,
      signature,
      blocked,
      resting,
      done,
      readsLeft,
      waiting,
      leases,
      history,
      moves: new Map(),
      machine,
    }
    this.#bySignature.set(signature, place)
    return place
  }
}
