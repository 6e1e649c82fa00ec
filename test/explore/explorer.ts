import type { Property } from './properties.ts'
import type { Simulation } from './simulation.ts'
import type { State } from './transitions.ts'

export interface Violation {
  readonly property: Property
  /** What happened, step by step: one of the shortest ways there. */
  readonly trace: readonly string[]
}

export interface Exploration {
  readonly states: number
  readonly transitions: number
  /** False: there were more states than asked for. */
  readonly complete: boolean
  readonly violations: readonly Violation[]
}

export interface ExploreOptions {
  /** Default 5 million. */
  readonly maxStates?: number
  /** Stops as soon as one of these is broken. Default: goes on to the end. */
  readonly until?: readonly Property[]
}

interface Found {
  /** The state it was found in, or left from. */
  readonly at: number
  /** The step that broke it; undefined: it is the state itself. */
  readonly step: number | undefined
}

/** Goes through every state a simulation can get to, nearest first, so the first trace found is a shortest one. */
export function explore(
  simulation: Simulation,
  { maxStates = 5_000_000, until = [] }: ExploreOptions = {},
): Exploration {
  const visited = new Set<string>()
  const states: (State | undefined)[] = []
  const parents: number[] = []
  const steps: number[] = []
  const found = new Map<Property, Found>()
  let transitions = 0
  const note = (properties: readonly Property[], how: Found) => {
    for (const property of properties) if (!found.has(property)) found.set(property, how)
  }
  const visit = (state: State, parent: number, step: number) => {
    const text = simulation.textOf(state)
    if (visited.has(text)) return
    visited.add(text)
    note(simulation.problemsOf(state), { at: states.length, step: undefined })
    states.push(state)
    parents.push(parent)
    steps.push(step)
  }
  visit(simulation.initial, -1, 0)
  let at = 0
  for (; at < states.length && states.length < maxStates; at++) {
    const state = states[at] as State
    states[at] = undefined
    let step = 0
    let progress = 0
    simulation.successors(state, (next, broken, fault) => {
      if (broken.length > 0) note(broken, { at, step })
      visit(next, at, step)
      step++
      if (!fault) progress++
    })
    transitions += step
    if (progress === 0) note(simulation.problemsAtEnd(state), { at, step: undefined })
    if (until.some((property) => found.has(property))) break
  }

  const violations = [...found].map(([property, { at: last, step }]) => {
    const path = step === undefined ? [] : [step]
    for (let i = last; i > 0; i = parents[i] as number) path.push(steps[i] as number)
    return { property, trace: retrace(simulation, path.reverse()) }
  })
  return { states: visited.size, transitions, complete: at === states.length, violations }
}

/** Takes the steps with these numbers once more, and says what they are. */
function retrace(simulation: Simulation, path: readonly number[]): string[] {
  let state = simulation.initial
  const trace = path.map((wanted) => {
    let number = 0
    let said = ''
    let next = state
    simulation.successors(state, (after, _broken, _fault, label) => {
      if (number++ !== wanted) return
      said = label()
      next = after
    })
    state = next
    return said
  })
  return [...trace, `end: ${simulation.describe(state)}`]
}
