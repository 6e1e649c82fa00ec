import { parseArgs } from 'node:util'
import { torture } from './coordinator.ts'
import { isSabotage, SABOTAGES } from './sabotage.ts'

/**
 * `npm run torture -- --minutes 30 --seed 7`: rounds of a minute, each with a seed of its own and on new servers, until
 * the time is over or a promise was broken. `TORTURE_BREAK=no-lease` breaks the protocol, to see that it is noticed.
 */

const USAGE = `usage: npm run torture -- [--minutes N] [--seed N] [--workers N] [--keep-going] [--no-faults]
TORTURE_BREAK=${SABOTAGES.join('|')} breaks the protocol on purpose`

const ROUND_SECONDS = 50

function wholeNumber(name: string, given: string): number {
  const number = Number(given)
  if (Number.isFinite(number) && number > 0) return number
  throw new Error(`--${name} must be a positive number\n${USAGE}`)
}

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '1' },
    seed: { type: 'string', default: String(1 + Math.floor(Math.random() * 1_000_000)) },
    workers: { type: 'string', default: '3' },
    'keep-going': { type: 'boolean', default: false },
    'no-faults': { type: 'boolean', default: false },
  },
})
const sabotage = process.env.TORTURE_BREAK || undefined
if (sabotage !== undefined && !isSabotage(sabotage))
  throw new Error(`TORTURE_BREAK=${sabotage} is not known\n${USAGE}`)

const seconds = wholeNumber('minutes', values.minutes) * 60
const workers = wholeNumber('workers', values.workers)
const until = Date.now() + seconds * 1000
let broken = 0
for (let seed = wholeNumber('seed', values.seed); ; seed++) {
  const left = (until - Date.now()) / 1000
  const round = await torture({
    seed,
    seconds: Math.max(5, Math.min(ROUND_SECONDS, left)),
    workers,
    faults: !values['no-faults'],
    sabotage,
  })
  console.log(`${round.summary}\n`)
  for (const history of round.histories) console.log(`${history}\n`)
  if (round.histories.length > 0) broken++
  if (Date.now() >= until - 5000 || (broken > 0 && !values['keep-going'])) break
}
process.exitCode = broken > 0 ? 1 : 0
