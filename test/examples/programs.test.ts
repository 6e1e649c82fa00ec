import { Redis } from 'ioredis'
import { afterAll, beforeAll, expect, inject, test } from 'vitest'
import { createTestDatabase, type TestDatabase } from '../support/database.ts'
import { startProgram } from './program.ts'

let database: TestDatabase
let redis: Redis
let env: Readonly<Record<string, string>>

beforeAll(async () => {
  database = await createTestDatabase()
  // A Redis database of their own, to see what they leave behind.
  const REDIS_URL = new URL('/9', inject('redisUrl')).href
  redis = new Redis(REDIS_URL)
  env = { REDIS_URL, DATABASE_URL: database.url, PORT: '0' }
})

afterAll(async () => {
  redis?.disconnect()
  await database?.drop()
})

async function expectNothingLeft() {
  const { rows } = await database.pool.query(
    "select nspname from pg_namespace where nspname like 'loadstone%'",
  )
  expect(rows).toEqual([])
  // What they cached is forgotten, and goes by itself.
  for (const key of await redis.keys('*')) expect(await redis.pttl(key)).toBeGreaterThan(0)
}

test('the worker works its queue off and ends', async () => {
  const { code, stdout, stderr } = await startProgram('examples/worker/main.ts', env).ended
  expect(stderr).toBe('')
  expect(stdout.trimEnd().split('\n').at(-1)).toBe('60 mails, 300 lookups, 9 waves, 15 SQL statements')
  expect(code).toBe(0)
  await expectNothingLeft()
})

test('the pages of flash are shown and counted, and it ends', async () => {
  const { code, stdout, stderr } = await startProgram('examples/flash/main.ts', env).ended
  expect(stderr).toBe('')
  expect(stdout).toContain(
    'event, organiser, latest, seats, guests, sold, isGuest from slug, userId: 2 waves, 7 lookups',
  )
  expect(stdout).toContain('event, organiser, sold, isGuest from orderId: 3 waves, 5 lookups')
  expect(stdout.trimEnd().split('\n').slice(-2)).toEqual([
    '18 pages, 88 lookups: as many SQL statements without a cache.',
    'With it 30 statements, in 38 waves.',
  ])
  expect(code).toBe(0)
})

test('the Fastify server serves until it is told to end', async () => {
  const program = startProgram('examples/route-handler/main.ts', env)
  const url = await program.printed(/http:\S+nights/)
  expect(await (await fetch(url)).json()).toMatchObject({ title: 'Amber Harbour Nights' })

  program.child.kill('SIGTERM')
  expect(await program.ended).toMatchObject({ code: 0, stderr: '' })
  await expectNothingLeft()
})

test('the GraphQL server serves until it is told to end', async () => {
  const program = startProgram('examples/graphql/main.ts', env)
  const url = (await program.printed(/http:\S+;/)).slice(0, -1)
  const query = (await program.printed(/\{ event.*\n/)).trim()
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ query }),
  })
  const { data } = (await response.json()) as { data: { event: { title: string } } }
  expect(data.event.title).toBe('Amber Harbour Nights')

  program.child.kill('SIGINT')
  expect(await program.ended).toMatchObject({ code: 0, stderr: '' })
  await expectNothingLeft()
})
