import { measure } from './demo/measure.ts'
import { printLegend, printMeasured, printTitle, printVerdict } from './demo/print.ts'
import { WORKLOADS } from './demo/workloads.ts'
import { openDatabase } from './shop/connections.ts'

/** `npm run demo`: runs the examples for real, says what they cost, and fails if it is not exactly what it must be. */
const ROUNDS = 5

let interrupted = false
process.once('SIGINT', () => {
  interrupted = true // leave no tables behind; a second Ctrl-C does not wait
})

const database = await openDatabase()
try {
  const store = process.env.REDIS_URL ? 'Redis' : 'a store inside this process'
  printTitle('Loadstone: the same handlers, on Kysely alone and on a cache', [
    `${database.rowCount.toLocaleString('en')} rows in ${database.kind}, cached in ${store}`,
    ...(process.env.REDIS_URL && process.env.DATABASE_URL
      ? []
      : ['On servers: REDIS_URL=redis://... DATABASE_URL=postgres://... npm run demo']),
  ])
  const problems: string[] = []
  for (const workload of WORKLOADS) {
    if (interrupted) break
    const measured = await measure(workload, database, ROUNDS)
    printMeasured(workload, measured)
    problems.push(...measured.problems)
  }
  if (interrupted) {
    process.exitCode = 130
  } else {
    printLegend(ROUNDS)
    printVerdict(problems)
    if (problems.length > 0) process.exitCode = 1
  }
} finally {
  await database.close()
}
