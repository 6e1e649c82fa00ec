import { CamelCasePlugin, sql } from 'kysely'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { InstallError, ModelError } from '../../src/errors.ts'
import { install, uninstall } from '../../src/invalidation/install.ts'
import { storedFormNumber } from '../../src/invalidation/stored-form.ts'
import type { Database } from '../../src/sources/database.ts'
import { ENGINES, type TestEngine } from './engines.ts'

describe.each(Object.entries(ENGINES))('storedFormNumber on %s', (_, openEngine) => {
  let engine: TestEngine
  let db: Database
  beforeAll(async () => {
    engine = await openEngine()
    db = engine.db
  })
  afterAll(() => engine.close())
  beforeEach(async () => {
    await engine.reset()
    await install(db, { namespace: 'shop', models: [], maxTouchedRows: 1 })
  })

  test('is the same for a form whenever it is asked for, and higher for a later form', async () => {
    expect(await storedFormNumber(db, 'shop', 'users', 'a', 0)).toBe(0)
    expect(await storedFormNumber(db, 'shop', 'users', 'b', 0)).toBe(1)
    expect(await storedFormNumber(db, 'shop', 'users', 'a', 5)).toBe(0)
    expect(await storedFormNumber(db.withPlugin(new CamelCasePlugin()), 'shop', 'users', 'c', 0)).toBe(2)
  })

  test('is counted for each namespace and model', async () => {
    expect(await storedFormNumber(db, 'shop', 'users', 'a', 3)).toBe(3)
    expect(await storedFormNumber(db, 'shop', 'orgs', 'a', 0)).toBe(0)
    expect(await storedFormNumber(db, 'blog', 'users', 'b', 1)).toBe(1)
  })

  test('is never below what is asked for', async () => {
    expect(await storedFormNumber(db, 'shop', 'users', 'a', 7)).toBe(7)
    expect(await storedFormNumber(db, 'shop', 'users', 'b', 7)).toBe(8)
    expect(await storedFormNumber(db, 'shop', 'users', 'c', 100)).toBe(100)
    expect(await storedFormNumber(db, 'shop', 'users', 'd', 0)).toBe(101)
  })

  test('a form may be of any length', async () => {
    const form = 'x'.repeat(100_000)
    expect(await storedFormNumber(db, 'shop', 'users', form, 0)).toBe(0)
    expect(await storedFormNumber(db, 'shop', 'users', `${form}y`, 0)).toBe(1)
  })

  test('processes that ask at once agree, and no two forms share a number', async () => {
    const forms = Array.from({ length: 60 }, (_each, i) => `form ${i % 20}`)
    const numbers = await Promise.all(forms.map((form) => storedFormNumber(db, 'shop', 'users', form, 10)))
    expect(new Set(numbers.slice(0, 20)).size).toBe(20)
    expect(numbers.slice(20, 40)).toEqual(numbers.slice(0, 20))
    expect(numbers.slice(40)).toEqual(numbers.slice(0, 20))
    expect(Math.max(...(numbers as number[]))).toBe(29)
  })

  test('ends at 65,000', async () => {
    expect(await storedFormNumber(db, 'shop', 'users', 'a', 65_000)).toBe(65_000)
    const error = await storedFormNumber(db, 'shop', 'users', 'b', 0).catch((reason: unknown) => reason)
    expect(error).toBeInstanceOf(ModelError)
    expect(error).toMatchObject({
      message: "model 'users': all numbers of stored forms up to 65000 are used up",
    })
    expect(await storedFormNumber(db, 'shop', 'users', 'a', 0)).toBe(65_000)
  })

  test('is undefined when nothing is installed', async () => {
    await uninstall(db, 'shop')
    expect(await storedFormNumber(db, 'shop', 'users', 'a', 0)).toBeUndefined()
  })

  test('says when the role may not ask', async () => {
    const role = `reader_${Math.random().toString(36).slice(2)}`
    await engine.run(`create role ${role}`)
    const asking = db.transaction().execute(async (trx) => {
      await sql.raw(`set local role ${role}`).execute(trx)
      return storedFormNumber(trx, 'shop', 'users', 'a', 0)
    })
    const error = await asking.catch((reason: unknown) => reason)
    await engine.run(`drop role ${role}`)
    expect(error).toBeInstanceOf(InstallError)
    expect(error).toMatchObject({
      message: expect.stringContaining('loadstone.stored_form cannot be used: permission denied'),
    })
  })
})
