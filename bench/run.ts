import { mkdir, writeFile } from 'node:fs/promises'
import { loadavg } from 'node:os'
import { join, resolve } from 'node:path'
import { Build } from './build.ts'
import { ContenderProcess } from './contender-process.ts'
import { CONTENDERS, type ContenderName } from './contenders/index.ts'
import { type Options, parseOptions, USAGE } from './options.ts'
import { plot } from './plot.ts'
import { conditions, markdownReport, type Report, textReport } from './report.ts'
import { type Cell, subtractCounts } from './results.ts'
import { Servers } from './servers.ts'
import type { Workload } from './workloads.ts'

/** Turns over which commands and statements are counted. */
const COUNTED_TURNS = 5

/** A busy machine gets fewer rounds, so that a run ends within three minutes. */
const LEAST_ROUNDS = 3
const LAST_ROUND_BEGINS_MS = 140_000

async function main(options: Options): Promise<void> {
  const began = performance.now()
  const [loadBefore] = loadavg() as [number]
  const build = new Build()
  const opened: (() => Promise<unknown>)[] = [() => build.remove()]
  try {
    const servers = await Servers.start()
    opened.push(() => servers.stop())
    const contenders: ContenderProcess[] = []
    const start = async (label: string, script: string, name: ContenderName) => {
      const environment = { databaseUrl: servers.databaseUrl, redisUrl: servers.redisUrl(contenders.length) }
      const contender = await ContenderProcess.start(label, script, name, environment)
      contenders.push(contender)
      opened.push(() => contender.close())
    }
    const script = await build.main()
    for (const name of Object.keys(CONTENDERS) as ContenderName[]) await start(name, script, name)
    if (options.compare !== undefined) {
      await start('other', await build.other(resolve(options.compare)), 'loadstone')
    }

    const results = new Map<Workload, Map<string, Cell>>()
    for (const workload of options.workloads)
      results.set(workload, await prepareCells(workload, contenders, servers))
    const storedBytes = options.workloads.some(({ name }) => name === 'warm-1000')
      ? await measureStored(contenders, servers)
      : new Map<string, number>()
    let rounds = 0
    await runRound(results, contenders, servers, 2 * options.sampleMs, true)
    while (
      rounds < options.rounds &&
      (rounds < LEAST_ROUNDS || performance.now() - began < LAST_ROUND_BEGINS_MS)
    ) {
      progress(`round ${++rounds} of ${options.rounds}`)
      await runRound(results, contenders, servers, options.sampleMs, false)
    }
    if (options.profile !== undefined) await writeProfiles(results, contenders, servers, options.profile)

    const report: Report = {
      results,
      contenders: contenders.map(({ label }) => label),
      rounds,
      sampleMs: options.sampleMs,
      conditions: conditions(servers.versions, loadBefore),
      storedBytes,
    }
    progress('')
    console.log(textReport(report))
    if (options.writeDocs) {
      const docs = new URL('../docs/', import.meta.url)
      await mkdir(docs, { recursive: true })
      await writeFile(new URL('benchmarks.md', docs), markdownReport(report))
      await writeFile(new URL('benchmarks.svg', docs), plot(report))
      console.log('\nWrote docs/benchmarks.md and docs/benchmarks.svg.')
    }
    console.log(`Took ${Math.round((performance.now() - began) / 1_000)} s.`)
  } finally {
    for (const close of opened.reverse()) await close().catch((error: unknown) => console.error(error))
  }
}

/** Checks the answers of every contender, and counts what they make the servers do. */
async function prepareCells(
  workload: Workload,
  contenders: readonly ContenderProcess[],
  servers: Servers,
): Promise<Map<string, Cell>> {
  const cells = new Map<string, Cell>()
  for (const [index, contender] of contenders.entries()) {
    progress(`checking ${workload.name}: ${contender.label}`)
    await servers.emptyRedis(index)
    if (!(await contender.check(workload.name))) continue
    if (workload.cold) await servers.emptyRedis(index)
    const before = await servers.counts()
    await contender.run(workload.name, COUNTED_TURNS)
    const counts = subtractCounts(await servers.counts(), before, COUNTED_TURNS)
    cells.set(contender.label, { samples: [], counts })
  }
  return cells
}

async function measureStored(
  contenders: readonly ContenderProcess[],
  servers: Servers,
): Promise<Map<string, number>> {
  const sizes = new Map<string, number>()
  for (const [index, contender] of contenders.entries()) {
    await servers.emptyRedis(index)
    await contender.run('warm-1000', 1)
    sizes.set(contender.label, (await servers.storedValues(index)).bytes)
  }
  return sizes
}

/** One sample of each workload and contender, the contenders in turn. */
async function runRound(
  results: Map<Workload, Map<string, Cell>>,
  contenders: readonly ContenderProcess[],
  servers: Servers,
  cpuMs: number,
  warmUp: boolean,
): Promise<void> {
  for (const [workload, cells] of results) {
    for (const [index, contender] of contenders.entries()) {
      const cell = cells.get(contender.label)
      if (!cell) continue
      if (workload.cold) await servers.emptyRedis(index)
      const sample = await contender.sample(workload.name, cpuMs)
      if (!warmUp) cell.samples.push(sample)
    }
  }
}

async function writeProfiles(
  results: Map<Workload, Map<string, Cell>>,
  contenders: readonly ContenderProcess[],
  servers: Servers,
  folder: string,
): Promise<void> {
  await mkdir(folder, { recursive: true })
  for (const [workload, cells] of results) {
    for (const [index, contender] of contenders.entries()) {
      if (!cells.has(contender.label)) continue
      if (workload.cold) await servers.emptyRedis(index)
      const file = join(resolve(folder), `${contender.label}.${workload.name}.cpuprofile`)
      await contender.sample(workload.name, 2_000, file)
    }
  }
}

/** On a terminal only, where the next line takes its place. */
function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r${text.padEnd(60)}${text === '' ? '\r' : ''}`)
}

let options: Options | undefined
try {
  options = parseOptions(process.argv.slice(2))
} catch (error) {
  console.error(`${error instanceof Error ? error.message : error}\n\n${USAGE}`)
  process.exitCode = 2
}
if (options) await main(options)
