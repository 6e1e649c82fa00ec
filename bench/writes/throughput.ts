import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { Redis } from 'ioredis'
import { Kysely, PostgresDialect } from 'kysely'
import { createModelCache, withInvalidation } from 'loadstone'
import { Pool } from 'pg'
import { findPostgres } from '../../test/servers/find-binary.ts'
import { createTable, type WriteTables } from './table.ts'

const run = promisify(execFile)

const SECONDS = 4
const ROUNDS = 5
const CLIENTS = [1, 16]

/** Transactions per second with the triggers and without, in Markdown. */
export async function measureThroughput(databaseUrl: string, redisUrl: string): Promise<string> {
  await createTable(databaseUrl, 'with_triggers')
  await createTable(databaseUrl, 'without_triggers')
  const redis = new Redis(redisUrl)
  const db = new Kysely<{ with_triggers: WriteTables['items'] }>({
    dialect: withInvalidation(new PostgresDialect({ pool: new Pool({ connectionString: databaseUrl }) })),
  })
  const cache = createModelCache({ db, redis, namespace: 'throughput' })
  cache.model('with_triggers', {
    keyFields: [['id'], ['code']],
    filterFields: [['group_id'], ['group_id', 'state']],
  })
  await cache.install()
  const directory = await mkdtemp(join(tmpdir(), 'loadstone-writes-'))
  try {
    const lines: string[] = []
    for (const clients of CLIENTS) {
      const ratios: number[] = []
      const rates = { with_triggers: [] as number[], without_triggers: [] as number[] }
      for (let round = 0; round < ROUNDS; round++) {
        for (const table of ['without_triggers', 'with_triggers'] as const) {
          rates[table].push(await pgbench(databaseUrl, directory, table, clients))
        }
        ratios.push((rates.with_triggers.at(-1) as number) / (rates.without_triggers.at(-1) as number))
      }
      const middle = (numbers: number[]) =>
        [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)] as number
      lines.push(
        `| ${clients} | ${middle(rates.without_triggers).toFixed(0)} | ${middle(rates.with_triggers).toFixed(0)} | ${middle(ratios).toFixed(2)} |`,
      )
    }
    const { relayed } = cache.stats()
    return `${['| clients | transactions/s without | with | ratio |', '|--:|--:|--:|--:|', ...lines].join('\n')}

Medians of ${ROUNDS} rounds of ${SECONDS} s; the relay applied ${relayed.toLocaleString('en')} outbox rows meanwhile.`
  } finally {
    await cache.close()
    await db.destroy()
    redis.disconnect()
    await rm(directory, { recursive: true })
  }
}

async function pgbench(
  databaseUrl: string,
  directory: string,
  table: string,
  clients: number,
): Promise<number> {
  const script = join(directory, `${table}.sql`)
  await writeFile(
    script,
    `\\set id random(1, 100000)\nupdate ${table} set amount = amount + 1 where id = :id;\n`,
  )
  const program = join(dirname(findPostgres()?.postgres ?? ''), 'pgbench')
  const threads = String(Math.min(clients, 2))
  const { stdout } = await run(program, [
    ...['-n', '-f', script, '-c', String(clients), '-j', threads, '-T', String(SECONDS), '-M', 'prepared'],
    databaseUrl,
  ])
  return Number(/tps = ([\d.]+)/.exec(stdout)?.[1])
}
