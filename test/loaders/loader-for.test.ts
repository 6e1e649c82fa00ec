import { currentScope, runInLoop } from 'loadstone'
import { expect, test } from 'vitest'

/** As application code has it: a loader for what no model looks up. */
function weatherIn(city: string, asked: string[][]): Promise<string> {
  const loader = currentScope()?.loaderFor<string, string>('weather', async (cities) => {
    asked.push([...cities])
    return cities.map((each) => `rain in ${each}`)
  })
  if (!loader) throw new Error('outside of any scope')
  return loader.load(city)
}

test('a scope keeps a DataLoader of the application: batched, memoised, and gone with the scope', async () => {
  const asked: string[][] = []
  const request = runInLoop(async () => {
    await Promise.all(['Rome', 'Oslo', 'Rome'].map((city) => weatherIn(city, asked)))
    return weatherIn('Oslo', asked)
  })
  expect(await request()).toBe('rain in Oslo')
  expect(asked).toEqual([['Rome', 'Oslo']])
  await request()
  expect(asked).toEqual([
    ['Rome', 'Oslo'],
    ['Rome', 'Oslo'],
  ])
})

test('there is no scope outside of any', () => {
  expect(currentScope()).toBeUndefined()
})
