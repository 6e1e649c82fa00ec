/**
 * The GraphQL example under load: `npm run load`. Requests per second, latencies, Redis commands, SQL statements and CPU
 * per request, with Loadstone, with DataLoader alone and with neither; then with Loadstone while Redis fails.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { type Backends, startBackends } from './backends.ts'
import { FAULTS } from './faults.ts'
import { CONTENDERS } from './messages.ts'
import { type Measured, markdown, plot, type Sample } from './report.ts'
import { ServerProcess } from './server-process.ts'
import { shoot } from './shots.ts'

const USAGE = `npm run load -- [options]
  --seconds <n>      how long each contender and each fault is measured; default 10
  --connections <n>  requests at a time; default 32
  --soak <minutes>   only Loadstone, for so long, its memory measured every half minute
  --no-docs          prints the report, and leaves docs/load.md as it is`

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '10' },
    connections: { type: 'string', default: '32' },
    soak: { type: 'string' },
    'no-docs': { type: 'boolean', default: false },
    help: { type: 'boolean', short: 'h', default: false },
  },
})
const [seconds, connections, soak] = [values.seconds, values.connections, values.soak ?? '0'].map(Number) as [
  number,
  number,
  number,
]
if (values.help || !(seconds >= 1) || !(connections >= 1) || !(soak >= 0)) {
  console.log(USAGE)
  process.exit(values.help ? 0 : 2)
}

const backends = await startBackends()
try {
  if (soak > 0) await runSoak(backends)
  else await runAll(backends)
} finally {
  await backends.stop()
}

async function measured(server: ServerProcess, name: string): Promise<Measured> {
  const [countsBefore, before] = [await backends.counts(), await server.report()]
  const shots = await shoot({ url: server.url, slugs: server.slugs, connections, seconds })
  const [counts, after] = [await backends.counts(), await server.report()]
  const requests = Math.max(shots.requests, 1)
  return {
    name,
    ...shots,
    // A server that was restarted counts anew.
    commandsPerRequest: Math.max(0, counts.commands - countsBefore.commands) / requests,
    statementsPerRequest: (counts.statements - countsBefore.statements) / requests,
    cpuMsPerRequest: (after.cpuMs - before.cpuMs) / requests,
    rejections: after.rejections - before.rejections,
  }
}

async function runAll(all: Backends): Promise<void> {
  const calm: Measured[] = []
  const faults: Measured[] = []
  for (const contender of CONTENDERS) {
    const server = await ServerProcess.start(contender, all)
    try {
      await shoot({ url: server.url, slugs: server.slugs, connections, seconds: Math.min(seconds, 2) })
      calm.push(await measured(server, contender))
      if (contender !== 'loadstone') continue
      for (const fault of FAULTS) {
        await fault.begin(all)
        faults.push(await measured(server, fault.name))
        await fault.end(all)
        faults.push(await measured(server, 'and after it'))
      }
    } finally {
      await server.stop()
    }
  }
  const text = markdown({ calm, faults, seconds, connections })
  console.log(text)
  if (!values['no-docs']) {
    await mkdir(new URL('../../docs/', import.meta.url), { recursive: true })
    await writeFile(new URL('../../docs/load.md', import.meta.url), text)
    await writeFile(new URL('../../docs/load.svg', import.meta.url), plot([...calm, ...faults]))
  }
  const failed = [...calm, ...faults].filter(({ errors, rejections }) => errors + rejections > 0)
  if (failed.length > 0) {
    console.error(`requests failed: ${failed.map(({ name, errors }) => `${name}: ${errors}`).join(', ')}`)
    process.exitCode = 1
  }
}

/** Memory that grows shows in the slope of its samples, the first quarter of which is left out: caches fill. */
async function runSoak(all: Backends): Promise<void> {
  const server = await ServerProcess.start('loadstone', all)
  const samples: Sample[] = []
  try {
    const until = Date.now() + soak * 60_000
    for (let minutes = 0; Date.now() < until; minutes += 0.5) {
      const { errors, perSecond } = await shoot({
        url: server.url,
        slugs: server.slugs,
        connections,
        seconds: Math.min(30, soak * 60),
      })
      const { rssBytes, heapBytes } = await server.report()
      samples.push({ minutes, rssBytes, heapBytes })
      const [rss, heap] = [rssBytes, heapBytes].map((bytes) => (bytes / 2 ** 20).toFixed(1))
      console.log(
        `${minutes} min: ${perSecond.toFixed(0)} requests/s, rss ${rss} MiB, heap ${heap} MiB, ${errors} failed`,
      )
      if (errors > 0) process.exitCode = 1
    }
  } finally {
    await server.stop()
  }
  const settled = samples.slice(Math.ceil(samples.length / 4))
  const [first, last] = [settled[0], settled.at(-1)]
  if (first && last && first !== last) {
    const growth = (last.rssBytes - first.rssBytes) / 2 ** 20 / ((last.minutes - first.minutes) / 60)
    console.log(`rss grew by ${growth.toFixed(1)} MiB an hour`)
  }
}
