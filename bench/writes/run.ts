/**
 * What invalidation costs: `npm run bench:writes`. Trips and times of hits, misses and writes, by level, and the
 * throughput of writers that know nothing of the cache, with its triggers and without. Writes docs/write-cost.md.
 */
import { writeFile } from 'node:fs/promises'
import { cpus } from 'node:os'
import { startPostgres } from '../../test/servers/postgres.ts'
import { startRedis } from '../../test/servers/redis.ts'
import { measureLookupsAndWrites } from './levels.ts'
import { measureThroughput } from './throughput.ts'

const redis = await startRedis()
// As in production: what COMMIT costs is most of what a write costs.
const postgres = await startPostgres({
  settings: { fsync: 'on', full_page_writes: 'on', synchronous_commit: 'on' },
})
try {
  const levels = await measureLookupsAndWrites(postgres.url, redis.url)
  const throughput = await measureThroughput(postgres.url, redis.url)
  const report = `# What invalidation costs

Measured by \`npm run bench:writes\` on ${new Date().toISOString().slice(0, 10)}: Node ${process.versions.node}, ${cpus().length} cores, Redis and Postgres on the
same machine, \`fsync\` on. Absolute numbers mean little elsewhere; the ratios are of one run, its rounds interleaved.

## Lookups and writes through Kysely

Medians of single calls, one after the other. *SQL* counts the statements that were sent, \`BEGIN\` and \`COMMIT\` included, and
*Redis commands* the commands. What follows a *+* was sent when the caller had its answer.

${levels}

## Writers that know nothing of the cache

\`pgbench -M prepared\` against a table without triggers, with the triggers alone, and with a relay that clears what they
record, all on these ${cpus().length} cores: *with triggers* is what a writer pays, *and a relay* is what the machine pays if nothing else is there
to do it. Ratios to *without*, medians of rounds. *One \`UPDATE\`* is a transaction of one statement that changes one row by
primary key, under a model of two key fields and two lists: there is nothing cheaper to add a trigger to. *TPC-B* is
pgbench's own transaction of five statements, with models on its three updated tables.

${throughput}
`
  await writeFile(new URL('../../docs/write-cost.md', import.meta.url), report)
  console.log(report)
} finally {
  await redis.stop()
  await postgres.stop()
}
