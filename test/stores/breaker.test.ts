import { beforeEach, describe, expect, test } from 'vitest'
import { Breaker, type BreakerState } from '../../src/stores/breaker.ts'

let now: number
let breaker: Breaker
let states: BreakerState[]

beforeEach(() => {
  now = 1000
  breaker = new Breaker({ failures: 3, pauseMs: 100 }, () => now)
  states = []
  breaker.onChange = () => void states.push(breaker.state)
})

/** A step that begins and ends now. */
function fail(times = 1): void {
  for (let i = 0; i < times; i++) breaker.failed(breaker.opened, new Error('no answer'))
}

function succeed(): void {
  breaker.succeeded(breaker.opened)
}

function open(): void {
  fail(3)
  expect(breaker.state).toBe('open')
}

function probe(error?: unknown): void {
  now += 100
  expect(breaker.tryProbe()).toBe(true)
  breaker.probed(error)
}

describe('closed', () => {
  test('it stays so while steps are answered', () => {
    fail(2)
    succeed()
    fail(2)
    expect(breaker).toMatchObject({ state: 'closed', opened: 0, probeInMs: undefined })
    expect(breaker.tryProbe()).toBe(false)
  })

  test('it opens when so many have failed in a row, and says what failed last', () => {
    fail(2)
    breaker.failed(0, new Error('the last straw'))
    expect(breaker).toMatchObject({ state: 'open', opened: 1, lastError: new Error('the last straw') })
    expect(states).toEqual(['open'])
  })
})

describe('open', () => {
  beforeEach(open)

  test('what is told of steps changes nothing: only a probe closes it', () => {
    succeed()
    fail(10)
    expect(breaker).toMatchObject({ state: 'open', opened: 1, probeInMs: 100 })
  })

  test('a probe is due after the pause, and one at a time', () => {
    expect([breaker.probeInMs, breaker.tryProbe()]).toEqual([100, false])
    now += 99
    expect([breaker.probeInMs, breaker.tryProbe()]).toEqual([1, false])
    now += 1
    expect([breaker.probeInMs, breaker.tryProbe()]).toEqual([0, true])
    expect(breaker).toMatchObject({ state: 'half-open', probeInMs: undefined })
    expect(breaker.tryProbe()).toBe(false)
  })

  test('a probe that fails leaves it open for another pause, and does not count as an opening', () => {
    probe(new Error('still no answer'))
    expect(breaker).toMatchObject({
      state: 'open',
      opened: 1,
      probeInMs: 100,
      lastError: new Error('still no answer'),
    })
    expect(states).toEqual(['open', 'half-open', 'open'])
  })

  test('a probe that is answered closes it', () => {
    probe(new Error('still no answer'))
    probe()
    expect(states).toEqual(['open', 'half-open', 'open', 'half-open', 'closed'])
  })

  test('what a probe comes to that nobody waits for is ignored', () => {
    breaker.probed()
    expect(breaker.state).toBe('open')
  })
})

describe('half-open', () => {
  test('steps change nothing: they began before it opened', () => {
    open()
    now += 100
    breaker.tryProbe()
    succeed()
    fail(10)
    expect(breaker.state).toBe('half-open')
  })
})

describe('closed again', () => {
  beforeEach(() => {
    open()
    probe()
  })

  test('the first step that fails opens it: one probe is not the load', () => {
    fail()
    expect(breaker).toMatchObject({ state: 'open', opened: 2 })
  })

  test('after a step that was answered, it takes as many as ever', () => {
    succeed()
    fail(2)
    expect(breaker.state).toBe('closed')
    fail()
    expect(breaker).toMatchObject({ state: 'open', opened: 2 })
  })

  test('steps that began before it opened tell nothing of now', () => {
    const beforeItOpened = 0
    breaker.failed(beforeItOpened, new Error('of then'))
    expect(breaker.state).toBe('closed')
    breaker.succeeded(beforeItOpened)
    fail()
    expect(breaker.state).toBe('open')
  })
})
