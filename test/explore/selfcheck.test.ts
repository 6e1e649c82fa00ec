import { describe, expect, test } from 'vitest'
import { CONFIGURATIONS, ONE_AND_ONE, ONE_READER, SMALL_PROCESS } from './configurations.ts'
import { explore } from './explorer.ts'
import type { Machine, Outcome } from './machine.ts'
import type { Place } from './processes.ts'
import type { Property } from './properties.ts'
import type { Scenario } from './scenario.ts'
import { Simulation } from './simulation.ts'
import type { State } from './transitions.ts'
import type { Faults } from './world.ts'

/** The explorer takes two liberties; here they are checked. */

describe('a state that is merged with another hides nothing', () => {
  const everything: readonly Property[] = ['P3', 'P3s']
  const faults: readonly Faults[] = [{ slow: true }, { unknown: 1 }, { loss: 1 }, { failover: 1 }]
  const cells = faults.flatMap((each) =>
    (['default', 'strict'] as const).map(
      (level) => [level, Object.keys(each).join() || 'none', each] as const,
    ),
  )

  test.each(cells)('%s, faults: %s', (level, _, each) => {
    const scenario: Scenario = { ...ONE_AND_ONE, level, faults: each, promises: everything }
    const merged = explore(new Simulation(scenario))
    const exact = explore(new Simulation({ ...scenario, mutation: { exact: true } }))
    expect(merged.complete && exact.complete).toBe(true)
    expect(merged.states).toBeLessThan(exact.states)
    const broken = ({ violations }: typeof merged) => violations.map(({ property }) => property).sort()
    expect(broken(merged)).toEqual(broken(exact))
    for (const { property, trace } of merged.violations) {
      const other = exact.violations.find((violation) => violation.property === property)
      expect(trace.length).toBeLessThanOrEqual(other?.trace.length ?? 0)
    }
  })
})

describe('a process that is remembered does what the generators do', () => {
  const scenarios: readonly Scenario[] = [
    { ...ONE_READER, level: 'strict', promises: [], faults: { slow: true, crash: 1, unknown: 1, loss: 1 } },
    { ...SMALL_PROCESS, level: 'default', promises: [], faults: { slow: true, loss: 1, failover: 1 } },
    ...CONFIGURATIONS.filter(({ name }) =>
      ['two keys, lost message', 'one scope', 'in a transaction'].includes(name),
    ),
  ]

  test.each(scenarios.map((each, i) => [i, each] as const))(
    'on random ways through scenario %i',
    (seed, scenario) => {
      const random = randomFrom(seed + 1)
      const simulation = new Simulation(scenario)
      const moves = watch(simulation)
      for (let way = 0; way < 150; way++) {
        let state = simulation.initial
        moves.length = 0
        const live = simulation.processes.map((process) => process.fresh())
        for (;;) {
          const nexts: { state: State; moves: Watched[] }[] = []
          simulation.successors(state, (next) => nexts.push({ state: next, moves: moves.splice(0) }))
          const chosen = nexts[Math.floor(random() * nexts.length)]
          if (!chosen) break
          for (const { p, thread, outcome } of chosen.moves) live[p]?.resume(thread, outcome)
          for (const [p, place] of chosen.state.places.entries()) {
            const process = simulation.processes[p]
            if (place === process?.dead) continue
            const moved = chosen.moves.some((move) => move.p === p)
            // The relay died, and another one began.
            if (!moved && place !== state.places[p]) live[p] = process?.fresh() as Machine
            expect(told(live[p] as Machine)).toEqual(told(place))
          }
          state = chosen.state
        }
      }
    },
  )
})

interface Watched {
  readonly p: number
  readonly thread: string
  readonly outcome: Outcome
}

/** Every outcome that a process is given from now on. */
function watch(simulation: Simulation): Watched[] {
  const moves: Watched[] = []
  simulation.processes.forEach((process, p) => {
    const move = process.move.bind(process)
    process.move = (place, thread, outcome) => {
      moves.push({ p, thread, outcome })
      return move(place, thread, outcome)
    }
  })
  return moves
}

/** What can be seen of a process from outside. */
function told({ signature, blocked, resting, done, readsLeft, waiting, leases }: Place | Machine) {
  const steps = blocked.map(({ thread, caller, first, leaseToken, step }) => [
    [thread, caller, first, leaseToken],
    JSON.stringify(step, (name, value) =>
      ['model', 'shape', 'tasks', 'party'].includes(name) ? undefined : value,
    ),
  ])
  return { signature, steps, resting, done, readsLeft, waiting, leases }
}

function randomFrom(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}
