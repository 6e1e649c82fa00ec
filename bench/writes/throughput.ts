import { execFile } from 'node:child_process'
import { realpathSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { Redis } from 'ioredis'
import { Kysely, PostgresDialect } from 'kysely'
import { createModelCache } from 'loadstone'
import { Client, Pool } from 'pg'
import { findPostgres } from '../../test/servers/find-binary.ts'
import { createTable } from './table.ts'

const run = promisify(execFile)

const SECONDS = 3
const ROUNDS = 5
const CLIENTS = [1, 16]
const PGBENCH_SCALE = 20

/** Each adds to the one before. */
const SETTINGS = ['bare', 'triggers', 'relay'] as const

interface Work {
  readonly name: string
  /** Arguments for pgbench. */
  readonly args: readonly string[]
  readonly models: Readonly<Record<string, { keyFields: string[][]; filterFields?: string[][] }>>
}

/** Postgres waits so long before it flushes, as a slower disk would let it: a disk next to the processor is a rare thing. */
const DISKS = [
  { name: 'as it is', options: '' },
  { name: '1 ms more per commit', options: '-c commit_delay=1000 -c commit_siblings=0' },
]

/** Transactions per second with the triggers and without, in Markdown. */
export async function measureThroughput(databaseUrl: string, redisUrl: string): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'loadstone-writes-'))
  const script = join(directory, 'update.sql')
  await writeFile(
    script,
    '\\set id random(1, 100000)\nupdate written set amount = amount + 1 where id = :id;\n',
  )
  await createTable(databaseUrl, 'written')
  await pgbench(databaseUrl, ['-i', '-s', String(PGBENCH_SCALE)])
  const works: Work[] = [
    {
      name: 'one `UPDATE`',
      args: ['-f', script],
      models: {
        written: { keyFields: [['id'], ['code']], filterFields: [['group_id'], ['group_id', 'state']] },
      },
    },
    {
      name: 'TPC-B',
      args: ['-b', 'tpcb-like'],
      models: {
        pgbench_accounts: { keyFields: [['aid']], filterFields: [['bid']] },
        pgbench_tellers: { keyFields: [['tid']], filterFields: [['bid']] },
        pgbench_branches: { keyFields: [['bid']] },
      },
    },
  ]
  const redis = new Redis(redisUrl)
  const postgres = new Client({ connectionString: databaseUrl })
  await postgres.connect()
  try {
    const lines: string[] = []
    for (const work of works) {
      for (const disk of DISKS) {
        for (const clients of CLIENTS) {
          const args = ['-n', '-M', 'prepared', '-T', String(SECONDS), '-c', String(clients)]
          const rates = { bare: [] as number[], triggers: [] as number[], relay: [] as number[] }
          for (let round = 0; round < ROUNDS; round++) {
            for (const setting of SETTINGS) {
              await withSetting(setting, work, databaseUrl, redis, async () => {
                const text = await pgbench(
                  databaseUrl,
                  [...args, '-j', String(Math.min(clients, 2)), ...work.args],
                  disk.options,
                )
                rates[setting].push(Number(/tps = ([\d.]+)/.exec(text)?.[1]))
              })
              await postgres.query('vacuum')
            }
          }
          const ratio = (setting: 'triggers' | 'relay') =>
            median(rates[setting].map((rate, i) => rate / (rates.bare[i] as number))).toFixed(2)
          lines.push(
            `| ${work.name} | ${disk.name} | ${clients} | ${median(rates.bare).toFixed(0)} | **${ratio('triggers')}** | **${ratio('relay')}** |`,
          )
        }
      }
    }
    return [
      '| transaction | disk | writers | transactions/s without | with triggers | and a relay |',
      '|---|---|--:|--:|--:|--:|',
      ...lines,
    ].join('\n')
  } finally {
    redis.disconnect()
    await postgres.end()
    await rm(directory, { recursive: true })
  }
}

/** Runs `measure` while the writers meet this setting. */
async function withSetting(
  setting: (typeof SETTINGS)[number],
  { models }: Work,
  databaseUrl: string,
  redis: Redis,
  measure: () => Promise<void>,
): Promise<void> {
  const db = new Kysely<Record<string, Record<string, unknown>>>({
    dialect: new PostgresDialect({ pool: new Pool({ connectionString: databaseUrl }) }),
  })
  const cache = createModelCache({
    db,
    redis,
    namespace: 'throughput',
    ...(setting !== 'relay' && { relay: false }),
  })
  for (const [table, meta] of Object.entries(models)) cache.model(table, meta)
  if (setting !== 'bare') await cache.install()
  try {
    await measure()
  } finally {
    await cache.close()
    if (setting !== 'bare') await cache.uninstall()
    await db.destroy()
  }
}

async function pgbench(databaseUrl: string, args: readonly string[], options = ''): Promise<string> {
  // A link on the PATH may stand for the server alone, but pgbench is installed beside the server.
  const program = join(dirname(realpathSync(findPostgres()?.postgres as string)), 'pgbench')
  const { stdout } = await run(program, [...args, databaseUrl], {
    env: { ...process.env, PGOPTIONS: options },
  })
  return stdout
}

function median(numbers: readonly number[]): number {
  return [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)] as number
}
