import { beforeEach, expect, test } from 'vitest'
import { Rest } from '../../src/sources/rest.ts'

let now = 0
let rest: Rest
beforeEach(() => {
  now = 0
  rest = new Rest(20, () => now)
})

/** When, from now on, an attempt may be made; it fails. */
function nextAttempt(): number {
  const began = now
  while (!rest.mayTry()) now++
  rest.failed()
  return now - began
}

test('while all goes well, anything may be tried', () => {
  for (let i = 0; i < 3; i++) {
    expect(rest.mayTry()).toBe(true)
    rest.succeeded()
  }
})

test('each failure is followed by a rest, twice as long as the one before, up to a second', () => {
  expect([1, 2, 3, 4, 5, 6, 7, 8, 9].map(nextAttempt)).toEqual([0, 20, 40, 80, 160, 320, 640, 1000, 1000])
})

test('attempts that fail together are followed by one rest', () => {
  for (let i = 0; i < 5; i++) expect(rest.mayTry()).toBe(true)
  for (let i = 0; i < 5; i++) rest.failed()
  expect(nextAttempt()).toBe(20)
})

test('after a rest one attempt is made, and the others wait for what comes of it', () => {
  rest.failed()
  now = 20
  expect([rest.mayTry(), rest.mayTry()]).toEqual([true, false])
  now = 5000
  expect(rest.mayTry()).toBe(false)
  rest.succeeded()
  expect([rest.mayTry(), rest.mayTry()]).toEqual([true, true])
  rest.failed()
  expect(nextAttempt()).toBe(20)
})
