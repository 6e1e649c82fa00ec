import { afterAll, describe, expect, test } from 'vitest'
import { CONFIGURATIONS, DEEP_CONFIGURATIONS, MUTATIONS, type Named } from './configurations.ts'
import { explore } from './explorer.ts'
import { Simulation } from './simulation.ts'

/**
 * The real waves, commits and relay turns, through every order in which their steps and the faults can come. See
 * simulation.ts for what is simulated around them. EXPLORE=deep also explores configurations that take minutes,
 * EXPLORE=traces prints how each mutation goes wrong.
 */
const { EXPLORE } = process.env

const report: string[] = []
afterAll(() => console.log(report.join('\n')))

function row(level: string, name: string, states: number, transitions: number, last: string): string {
  return `${level.padEnd(8)}${name.padEnd(34)}${String(states).padStart(9)}${String(transitions).padStart(11)}  ${last}`
}

function titled(
  configurations: readonly Named[],
): readonly (readonly [title: string, configuration: Named])[] {
  return configurations.map((each) => {
    const programs = each.programs.map(({ name }) => name).filter((name) => name !== 'relay')
    return [`${each.level}: ${each.name} (${programs.join(' ')})`, each]
  })
}

function keepsItsPromises(configuration: Named): void {
  const { level, name } = configuration
  const began = performance.now()
  const { states, transitions, complete, violations } = explore(new Simulation(configuration), {
    maxStates: 10_000_000,
  })
  const ms = Math.round(performance.now() - began)
  report.push(row(level, name, states, transitions, `${ms} ms`))
  for (const { property, trace } of violations) expect.soft(trace, `${property} is broken`).toEqual([])
  expect(complete).toBe(true)
}

describe('whatever happens in whatever order, the promises are kept', () => {
  report.push(
    row('level', 'configuration', Number.NaN, Number.NaN, '').replace(/NaN {8}NaN/, 'states transitions'),
  )
  test.each(titled(CONFIGURATIONS))('%s', (_, configuration) => keepsItsPromises(configuration))
})

if (EXPLORE === 'deep') {
  describe('and in larger configurations', () => {
    test.each(titled(DEEP_CONFIGURATIONS))('%s', { timeout: 1_800_000 }, (_, configuration) =>
      keepsItsPromises(configuration),
    )
  })
}

describe('with a guard taken out, a promise is broken', () => {
  test.each(MUTATIONS.map((each) => [each.breaks, each.name, each] as const))(
    '%s: %s',
    (property, name, mutated) => {
      const { states, transitions, violations } = explore(new Simulation(mutated), { until: [property] })
      const trace = violations.find((violation) => violation.property === property)?.trace ?? []
      report.push(row('mutant', name, states, transitions, `${property} in ${trace.length - 1} steps`))
      if (EXPLORE === 'traces') report.push(...trace.map((line) => `        ${line}`))
      expect(trace).not.toEqual([])
      expect(trace.length - 1, trace.join('\n')).toBeLessThanOrEqual(mutated.within)
    },
  )
})
