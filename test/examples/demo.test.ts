import { stripVTControlCharacters } from 'node:util'
import { expect, inject, test } from 'vitest'
import { createTestDatabase } from '../support/database.ts'
import { type Ended, startProgram } from './program.ts'

const TIMEOUT = 120_000

test('the demo runs on nothing but Node, and ends by itself', { timeout: TIMEOUT }, async () => {
  const { code, stdout, stderr } = await demo({})
  expect(stdout).toContain('6,090 rows in PGlite')
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  expectNarrow(stdout)
  expect(stripVTControlCharacters(stdout)).toBe(stdout) // nobody looks at a pipe, so there are no colours
  expect(stdout).toMatch(/Kysely alone +500 +– +– +500 +[\d.]+ ms/)
  expect(stdout).toMatch(/Loadstone, cold +500 +12 +36 +20 +[\d.]+ ms/)
  expect(stdout).toMatch(/Loadstone, warm +500 +12 +12 +0 +[\d.]+ ms/)
})

test('the demo runs on servers, in colours when they are asked for', { timeout: TIMEOUT }, async () => {
  const database = await createTestDatabase()
  const { code, stdout, stderr } = await demo({
    REDIS_URL: inject('redisUrl'),
    DATABASE_URL: database.url,
    FORCE_COLOR: '1',
  })
  await database.drop()
  const text = stripVTControlCharacters(stdout)
  expect(text).toContain('6,090 rows in Postgres, cached in Redis')
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  expect(text).not.toBe(stdout)
  expectNarrow(text)
})

test('a demo whose counts are not right says so, and fails', { timeout: TIMEOUT }, async () => {
  const database = await createTestDatabase()
  const { code, stdout } = await demo({ REDIS_URL: 'redis://127.0.0.1:1', DATABASE_URL: database.url })
  await database.drop()
  expect(code).toBe(1)
  expect(stdout).toContain('✗ This is not what it must be:')
  expect(stdout).toContain('warm: statements must be 0, but is 5')
  expect(stdout).not.toContain('the answer is not')
  expectNarrow(stdout)
})

function demo(env: Readonly<Record<string, string>>): Promise<Ended> {
  return startProgram('examples/demo.ts', env).ended
}

function expectNarrow(text: string): void {
  expect(text.split('\n').filter((line) => [...line].length > 80)).toEqual([])
}
