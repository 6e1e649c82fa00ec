import { expect, test } from 'vitest'
import { torture } from './coordinator.ts'
import { kindOf } from './faults.ts'
import { planFaults } from './schedule.ts'

// Longer, and with other seeds: npm run torture -- --minutes 30
const SEED = 20_251
const SECONDS = 25

test('nothing that is promised is broken, whatever breaks around it', { timeout: 180_000 }, async () => {
  const { histories, summary } = await torture({ seed: SEED, seconds: SECONDS })
  console.log(summary)
  expect(histories, [summary, ...histories].join('\n\n')).toEqual([])
})

test('that run has every kind of fault', () => {
  const kinds = planFaults(SEED, SECONDS * 1000, 3)
    .flat()
    .map(kindOf)
  const network = ['cut', 'delay', 'hole'].flatMap((kind) => [`redis-${kind}`, `postgres-${kind}`])
  const server = ['redis-restart', 'redis-flush', 'redis-pause', 'postgres-restart']
  const process = ['kill', 'kill-at', 'freeze', 'postgres-cut-at-commit']
  expect(new Set(kinds)).toEqual(new Set([...network, ...server, ...process]))
})

test('a cache that clears nothing is found out, with its history', { timeout: 90_000 }, async () => {
  const { violations, histories } = await torture({
    seed: SEED,
    seconds: 4,
    faults: false,
    sabotage: 'no-clear',
  })
  expect(violations).toHaveProperty(['a read that begins after a write returned sees it, or newer'])
  expect(violations).toHaveProperty(['at quiet, the cache is the database'])
  const story = histories.find((each) => /sees it, or newer/.test(each)) ?? ''
  expect(story).toMatch(/^VIOLATED: .*\n {2}w\d\.1 saw .* and v\d+ by w\d\.1#\d+ was known\n/)
  expect(story).toMatch(/w\d\.1#\d+ begins: .*returned 'ok'.*: v\d+.* {3}<<<<$/s)
  expect(story.split('\n').length).toBeLessThan(45)
})
