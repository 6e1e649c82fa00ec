import { afterAll, describe, expect, test } from 'vitest'
import { CONFIGURATIONS, DEEP_CONFIGURATIONS, type Named } from './configurations.ts'
import { explore } from './explorer.ts'
import { MUTANTS } from './mutants.ts'
import { ALWAYS, PROPERTIES } from './properties.ts'
import { Simulation } from './simulation.ts'

/**
 * The real waves, commits and relay turns, through every order in which their steps and the faults can come. See
 * simulation.ts for what is simulated around them, and what is not. EXPLORE=deep also explores configurations that take minutes,
 * EXPLORE=traces prints how each mutation goes wrong.
 */
const { EXPLORE } = process.env

const report: string[] = []
afterAll(() => console.log(report.join('\n')))

function row(level: string, name: string, states: unknown, transitions: unknown, last: string): string {
  return `${level.padEnd(8)}${name.padEnd(34)}${String(states).padStart(9)}${String(transitions).padStart(12)}  ${last}`
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
  const { level, name, promises } = configuration
  const began = performance.now()
  const { states, transitions, complete, violations } = explore(new Simulation(configuration), {
    maxStates: 10_000_000,
  })
  const ms = Math.round(performance.now() - began)
  report.push(row(level, name, states, transitions, `${[...ALWAYS, ...promises].join(' ')}, ${ms} ms`))
  for (const { property, trace } of violations) {
    expect.soft(trace, `broken: ${PROPERTIES[property]}`).toEqual([])
  }
  expect(complete).toBe(true)
}

describe('whatever happens in whatever order, the promises are kept', () => {
  report.push(row('level', 'configuration', 'states', 'transitions', 'keeps'))
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
  test.each(MUTANTS.map((each) => [each.breaks, each.name, each] as const))(
    '%s: %s',
    (property, name, mutant) => {
      const { states, transitions, violations } = explore(new Simulation(mutant), { until: [property] })
      const trace = violations.find((violation) => violation.property === property)?.trace ?? []
      report.push(row('mutant', name, states, transitions, `${property} in ${trace.length - 1} steps`))
      if (EXPLORE === 'traces') report.push(...trace.map((line) => `        ${line}`))
      expect(trace).not.toEqual([])
      if (mutant.trace) expect(trace).toEqual(mutant.trace)
      expect(trace.length - 1, trace.join('\n')).toBeLessThanOrEqual(mutant.within)
    },
  )
})
