import { AsyncLocalStorage } from 'node:async_hooks'
import { OverloadedError } from 'loadstone'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { Bulkhead, Fallback } from '../../src/loaders/bulkhead.ts'

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }))
afterEach(() => void vi.useRealTimers())

const endOfTurn = () => new Promise(setImmediate)

/** Tasks that run until they are told to end. */
function tasks(bulkhead: { run<T>(task: () => Promise<T>): Promise<T> }) {
  const begun: string[] = []
  const ends = new Map<string, { resolve: (value: string) => void; reject: (error: Error) => void }>()
  return {
    begun,
    /** Rejects where the bulkhead does. */
    add: (name: string) =>
      bulkhead.run(() => {
        begun.push(name)
        return new Promise<string>((resolve, reject) => ends.set(name, { resolve, reject }))
      }),
    async end(name: string) {
      ends.get(name)?.resolve(`${name} is done`)
      await endOfTurn()
    },
    async fail(name: string) {
      ends.get(name)?.reject(new Error(`${name} failed`))
      await endOfTurn()
    },
  }
}

describe('a bulkhead', () => {
  test('runs so many at once, and the rest in order as they end, however they end', async () => {
    const { begun, add, end, fail } = tasks(new Bulkhead({ concurrency: 2, queue: 10, timeoutMs: 1000 }))
    const all = ['a', 'b', 'c', 'd'].map(add)
    const settled = Promise.allSettled(all)
    expect(begun).toEqual([])
    await endOfTurn()
    expect(begun).toEqual(['a', 'b'])
    await fail('b')
    expect(begun).toEqual(['a', 'b', 'c'])
    await end('a')
    expect(begun).toEqual(['a', 'b', 'c', 'd'])
    await end('c')
    await end('d')
    expect(await settled).toEqual([
      { status: 'fulfilled', value: 'a is done' },
      { status: 'rejected', reason: new Error('b failed') },
      { status: 'fulfilled', value: 'c is done' },
      { status: 'fulfilled', value: 'd is done' },
    ])
    expect(vi.getTimerCount()).toBe(0)
  })

  test('refuses at once what is beyond its queue, and takes more when there is room again', async () => {
    const { begun, add, end } = tasks(new Bulkhead({ concurrency: 1, queue: 1, timeoutMs: 1000 }))
    const [a, b] = [add('a'), add('b')]
    const refused = add('c')
    await expect(refused).rejects.toThrow(OverloadedError)
    await expect(refused).rejects.toMatchObject({
      code: 'ERR_OVERLOADED',
      transient: true,
      message: expect.stringContaining('1 loads are running and 1 are waiting'),
    })
    await endOfTurn()
    await end('a')
    const d = add('d')
    await end('b')
    await end('d')
    expect(await Promise.all([a, b, d])).toEqual(['a is done', 'b is done', 'd is done'])
    expect(begun).toEqual(['a', 'b', 'd'])
  })

  test('refuses what has waited for too long, and never runs it; what runs may take its time', async () => {
    const { begun, add, end } = tasks(new Bulkhead({ concurrency: 1, queue: 10, timeoutMs: 1000 }))
    const a = add('a')
    await endOfTurn()
    const b = add('b')
    vi.advanceTimersByTime(600)
    const c = add('c')
    vi.advanceTimersByTime(400)
    await expect(b).rejects.toThrow(/a load has waited for 1000 ms/)
    await end('a')
    expect(await a).toBe('a is done')
    expect(begun).toEqual(['a', 'c'])
    vi.advanceTimersByTime(10_000)
    await end('c')
    expect(await c).toBe('c is done')
  })

  test('without a queue still runs as many at once as it may', async () => {
    const { begun, add, end } = tasks(new Bulkhead({ concurrency: 2, queue: 0, timeoutMs: 1000 }))
    const all = [add('a'), add('b')]
    await expect(add('c')).rejects.toThrow(OverloadedError)
    await endOfTurn()
    await end('a')
    await end('b')
    await Promise.all(all)
    expect(begun).toEqual(['a', 'b'])
  })

  test('runs a task in the async context of who brought it, not of who made room for it', async () => {
    const context = new AsyncLocalStorage<string>()
    const bulkhead = new Bulkhead({ concurrency: 1, queue: 10, timeoutMs: 1000 })
    const seen = ['a', 'b', 'c'].map((name) =>
      context.run(name, () => bulkhead.run(async () => context.getStore())),
    )
    expect(await Promise.all(seen)).toEqual(['a', 'b', 'c'])
  })
})

describe('the bulkhead of a database', () => {
  const settings = { concurrency: 1, queue: 10, timeoutMs: 1000 }

  test('has places for statements, and as many for functions of the application', async () => {
    const fallback = new Fallback(settings)
    const statements = tasks({ run: (task) => fallback.statement(task) })
    const loads = tasks({ run: (task) => fallback.load(task) })
    const all = [statements.add('a'), statements.add('b'), loads.add('c'), loads.add('d')]
    await endOfTurn()
    expect([...statements.begun, ...loads.begun]).toEqual(['a', 'c'])
    await loads.end('c')
    await loads.end('d')
    await statements.end('a')
    await statements.end('b')
    await Promise.all(all)
  })

  test('a function that another one waits for needs no place of its own, nor do statements wait for it', async () => {
    const fallback = new Fallback(settings)
    const inner = () => fallback.load(async () => fallback.statement(async () => 'done'))
    expect(await fallback.load(inner)).toBe('done')
  })
})
