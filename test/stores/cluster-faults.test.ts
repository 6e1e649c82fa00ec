import { Cluster, type Redis } from 'ioredis'
import { Cluster as Cluster5 } from 'ioredis-5'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { OptionError, StoreUnavailableError } from '../../src/errors.ts'
import { staleKeyOf } from '../../src/models/key.ts'
import { ClusterStore } from '../../src/stores/cluster.ts'
import { HEADER_BYTES, stateOf, UNREACHABLE } from '../../src/stores/entry.ts'
import type { RedisStoreOptions } from '../../src/stores/redis.ts'
import { slotOf } from '../../src/stores/slots.ts'
import type { CacheStore, Lease } from '../../src/stores/store.ts'
import type { ClusterClient } from '../../src/stores/topology.ts'
import { slotsOf, startCluster, startClusterNode, type TestCluster } from '../servers/cluster.ts'
import type { Server } from '../servers/server.ts'
import { ClusterView, keysIn, newNamespace } from '../support/cluster.ts'

// An unhandled rejection anywhere in this file fails the run: Vitest sees to that.

const MINUTE = 60_000
const TOKEN = 'somebodys-intent'
const KEEPS_EVERYTHING = ['--appendonly', 'yes', '--appendfsync', 'always']
/** The rest goes on while one master is away. */
const PARTIAL = ['--cluster-require-full-coverage', 'no']

const CLIENTS: Record<string, (cluster: TestCluster, options?: object) => ClusterClient> = {
  'ioredis 6': (cluster, options) => new Cluster([...cluster.nodes], { lazyConnect: true, ...options }),
  'ioredis 5': (cluster) => new Cluster5([...cluster.nodes], { lazyConnect: true }),
}
const client = CLIENTS['ioredis 6'] as (typeof CLIENTS)[string]

let cluster: TestCluster
let view: ClusterView
let prefix: string

beforeAll(async () => {
  cluster = await startCluster({ args: [...PARTIAL, ...KEEPS_EVERYTHING] })
})
afterAll(() => cluster?.stop())
beforeEach(() => {
  view = new ClusterView(cluster)
  prefix = `${newNamespace()}:`
  return () => view.close()
})

/** Opens a store that is patient, as the machine is shared: what fails here fails by itself. */
function openStore(options: RedisStoreOptions = {}, of = client(cluster)): ClusterStore {
  const store = new ClusterStore(of, {
    timeout: '5s',
    epochCheck: '1h',
    marksKey: `${prefix}~marks`,
    ...options,
  })
  onTestFinished(() => store.close())
  return store
}

/** Keys of each master, as many of each. */
function keysOfAll(count: number): [string[], string[], string[]] {
  return [0, 1, 2].map((i) => {
    const slots = slotsOf(i)
    return keysIn(prefix, [slots[0] as number, (slots.at(-1) as number) + 1], count)
  }) as [string[], string[], string[]]
}

async function acquire(store: CacheStore, ...keys: string[]): Promise<Lease> {
  const { lease, records } = await store.acquire(
    keys,
    keys.map(() => 0),
    MINUTE,
  )
  expect(records).toEqual(keys.map(() => null))
  return lease
}

function fill(store: CacheStore, lease: Lease, ...keys: string[]): Promise<number> {
  return store.fill(
    lease,
    keys.map((key) => ({ key, schema: 0, payload: Buffer.from(key), ttlMs: MINUTE })),
  )
}

async function put(store: CacheStore, ...keys: string[]): Promise<void> {
  expect(await fill(store, await acquire(store, ...keys), ...keys)).toBe(keys.length)
}

/** Per key: `value` with what was put there, or the state of what is there. */
async function states(store: CacheStore, ...keys: string[]): Promise<string[]> {
  return (await store.getMany(keys)).map((record, i) => {
    const state = stateOf(record, 0)
    if (state === 'value') expect(record?.toString('utf8', HEADER_BYTES)).toBe(keys[i])
    return state
  })
}

/** Each master is connected to, and has its marks. */
async function untilOpen(store: CacheStore): Promise<void> {
  const keys = keysOfAll(1).flat()
  await vi.waitFor(async () => expect(await store.getMany(keys)).not.toContain(UNREACHABLE), {
    timeout: 10_000,
    interval: 20,
  })
}

async function milliseconds(step: Promise<unknown>): Promise<number> {
  const began = performance.now()
  await step.catch(() => undefined)
  return performance.now() - began
}

test('slots are as the servers count them', async () => {
  const keys = ['', 'a', 'foo{bar}baz', '{}x', 'ключ', '{{a}}b', 'a{b', '🔑', '{user}1', 'x'.repeat(1000)]
  const told = await Promise.all(keys.map((key) => view.masters[0]?.call('CLUSTER', 'KEYSLOT', key)))
  expect(keys.map(slotOf)).toEqual(told)
})

describe('what is sent', () => {
  test.each([
    ['getMany', (store: CacheStore, keys: string[]) => store.getMany(keys)],
    ['acquire', (store: CacheStore, keys: string[]) => acquire(store, ...keys)],
    ['intend', (store: CacheStore, keys: string[]) => store.intend(keys, TOKEN, MINUTE)],
    ['clear', (store: CacheStore, keys: string[]) => store.clear(keys, null, true)],
    [
      'markStale',
      (store: CacheStore, keys: string[]) => store.markStale(new Map(keys.map((key) => [key, MINUTE]))),
    ],
  ])('%s: one write to each master that has keys of it, and none to others', async (_, step) => {
    const store = openStore()
    await untilOpen(store)
    const [first, , third] = keysOfAll(20)
    expect(await view.grown(() => step(store, [...first, ...third]))).toEqual([1, 0, 1])
  })

  test('a fill: one write to each master that granted', async () => {
    const store = openStore()
    await untilOpen(store)
    const keys = keysOfAll(20).flat()
    const lease = await acquire(store, ...keys)
    expect(await view.grown(() => fill(store, lease, ...keys))).toEqual([1, 1, 1])
  })

  test('clearPrefix: one write to each master, however many keys there are', async () => {
    const store = openStore()
    const keys = keysOfAll(1000).flat()
    await put(store, ...keys)
    expect(await view.grown(() => store.clearPrefix(prefix))).toEqual([1, 1, 1])
    expect((await store.getMany(keys)).every((record) => record === null)).toBe(true)
  })

  test('scripts that a server has forgotten are sent again with their text', async () => {
    const store = openStore()
    await untilOpen(store)
    const keys = keysOfAll(2).flat()
    const forget = () => Promise.all(view.masters.map((redis) => redis.script('FLUSH')))
    await forget()
    const lease = await acquire(store, ...keys)
    await forget()
    expect(await fill(store, lease, ...keys)).toBe(6)
    await forget()
    await store.clear(keys, null, true)
    expect(await states(store, ...keys)).toEqual(keys.map(() => 'none'))
  })
})

describe('options', () => {
  test('a keyPrefix with half a hash tag is refused: no stale copy could be next to its key', () => {
    for (const keyPrefix of ['a{', 'a}:', '{}:']) {
      expect(() => openStore({}, client(cluster, { keyPrefix }))).toThrow(OptionError)
    }
  })
})

describe.each(Object.entries(CLIENTS))('a master that is away, over %s', (_, newClient) => {
  const openOver = (options: RedisStoreOptions = {}) => openStore(options, newClient(cluster))
  let lost: Server

  beforeEach(() => {
    lost = cluster.masters[1] as Server
    return async () => {
      lost.resume()
      await lost.restart()
      await vi.waitFor(
        async () => {
          for (const redis of view.masters) {
            expect(String(await redis.call('CLUSTER', 'INFO'))).toMatch(/cluster_state:ok/)
          }
        },
        { timeout: 15_000, interval: 50 },
      )
    }
  })

  test('killed: its keys are unreachable, the others hit, and all is well when it is back', async () => {
    const store = openOver()
    await untilOpen(store)
    const [[a, d], [b], [c]] = keysOfAll(2) as [[string, string], [string], [string]]
    await put(store, a, b, c)
    await lost.kill()
    await vi.waitFor(async () =>
      expect(await states(store, a, b, c)).toEqual(['value', 'unreachable', 'value']),
    )
    const { records, lease } = await store.acquire([b, d], [0, 0], MINUTE)
    expect(records).toEqual([UNREACHABLE, null])
    expect(await fill(store, lease, b, d)).toBe(1)
    await expect(store.getMany([b])).rejects.toThrow(StoreUnavailableError)
    await expect(store.clear([a, b, c], null, true)).rejects.toThrow(StoreUnavailableError)
    // What could be reached was cleared all the same.
    expect(await states(store, a, b, c)).toEqual(['none', 'unreachable', 'none'])

    await lost.restart()
    await untilOpen(store)
    // It read its value back from disk, which is not believed.
    expect(await view.client.getBuffer(b)).not.toBeNull()
    expect(await states(store, a, b, c)).toEqual(['none', 'none', 'none'])
    await put(store, a, b, c)
  })

  test('frozen: only the first step waits for it, and no longer than the timeout', async () => {
    const store = openOver({ timeout: 100 })
    const [[a], [b]] = keysOfAll(1) as [[string], [string], [string]]
    await untilOpen(store)
    await put(store, a)
    lost.pause()
    const waited = await milliseconds(expect(states(store, a, b)).resolves.toEqual(['value', 'unreachable']))
    expect(waited).toBeGreaterThan(95)
    expect(waited).toBeLessThan(2000)
    // Refused before anything is sent: by the words, as a time would say it only on an idle machine.
    await expect(store.getMany([b])).rejects.toThrow(/does not answer|no connection/)
    lost.resume()
    await untilOpen(store)
  })

  test('a model cannot be cleared while one master cannot be told; those that can are', async () => {
    const store = openOver()
    await untilOpen(store)
    const [[a], [b]] = keysOfAll(1) as [[string], [string], [string]]
    await put(store, a, b)
    await lost.kill()
    await vi.waitFor(async () => expect(await states(store, a, b)).toEqual(['value', 'unreachable']))
    await expect(store.clearPrefix(prefix)).rejects.toThrow(StoreUnavailableError)
    expect(await states(store, a, b)).toEqual(['none', 'unreachable'])
  })

  test('another elects in its place, so that the relay goes on', async () => {
    const store = openOver()
    const other = openOver()
    const name = keysOfAll(1)[1]?.[0] as string
    await Promise.all([untilOpen(store), untilOpen(other)])
    await lost.kill()
    await vi.waitFor(async () => expect(await store.lead(name, 'one', MINUTE)).toBe(true))
    expect(await other.lead(name, 'two', MINUTE)).toBe(false)
    expect(await store.lead(name, 'one', MINUTE)).toBe(true)
  })
})

describe('a slot that moves', () => {
  let store: ClusterStore
  let key: string
  /** Of which the slots go home after the test. */
  let displaced: string[]
  let home: number
  let away: number

  beforeEach(async () => {
    store = openStore()
    await untilOpen(store)
    key = `${prefix}key`
    home = await view.ownerOf(key)
    away = (home + 1) % 3
    displaced = [key]
    return async () => {
      for (const each of displaced) {
        if ((await view.ownerOf(each)) !== home) await (await view.move(each, home)).finish()
      }
    }
  })

  test('a key that has not moved yet is answered where it is', async () => {
    await put(store, key)
    const move = await view.move(key, away)
    expect(await states(store, key)).toEqual(['value'])
    await move.finish()
  })

  test('a key that has moved is not believed, and is loaded anew where it is now', async () => {
    await put(store, key)
    const move = await view.move(key, away)
    await move.keys()
    expect(await view.masters[home]?.call('CLUSTER', 'COUNTKEYSINSLOT', slotOf(key))).toBe(0)
    // By ASK: the slot is still its old master's.
    expect(await states(store, key)).toEqual(['none'])
    await put(store, key)
    expect(await states(store, key)).toEqual(['value'])
    await move.finish()
    expect(await states(store, key)).toEqual(['value'])
    expect(await view.ownerOf(key)).toBe(away)
  })

  test('an entry that moved with its slot is not believed: it was filled under another master', async () => {
    await put(store, key)
    await (await view.move(key, away)).finish()
    expect(await view.client.getBuffer(key)).not.toBeNull()
    expect(await states(store, key)).toEqual(['none'])
    // Until it has learned where all slots are now, it may refuse the fill of a lease that it was given meanwhile.
    await vi.waitFor(async () => {
      await store.clear([key], null, true)
      await put(store, key)
    })
    expect(await states(store, key)).toEqual(['value'])
  })

  test('a lease that moved is nobody\u2019s: its load fills nothing, and another may load', async () => {
    const lease = await acquire(store, key)
    await (await view.move(key, away)).finish()
    await expect(fill(store, lease, key)).rejects.toThrow(/MOVED/)
    const next = await acquire(store, key)
    expect(await fill(store, next, key)).toBe(1)
    await expect(fill(store, lease, key)).rejects.toThrow(StoreUnavailableError)
  })

  test('intents move with it and stand, until their writer takes them away', async () => {
    await put(store, key)
    await store.intend([key], TOKEN, MINUTE)
    const move = await view.move(key, away)
    await move.keys()
    expect(await states(store, key)).toEqual(['intended'])
    await store.intend([key], 'others---intent-', MINUTE)
    await move.finish()
    expect(await states(store, key)).toEqual(['intended'])
    await store.clear([key], TOKEN, true)
    await store.clear([key], 'others---intent-', true)
    expect(await states(store, key)).toEqual(['none'])
  })

  test.each(['before', 'while', 'after'])('a clear %s its keys are moved reaches them', async (when) => {
    await put(store, key)
    const move = await view.move(key, away)
    if (when !== 'before') await move.keys()
    if (when === 'after') await move.finish()
    await store.clear([key], null, true)
    expect(await view.keys(key)).toEqual([])
    await move.finish()
  })

  test('marking stale clears, where a key and its copy could be on two masters', async () => {
    await put(store, key)
    const move = await view.move(key, away)
    await store.markStale(new Map([[key, MINUTE]]))
    expect(await states(store, key, staleKeyOf(key))).toEqual(['none', 'none'])
    await move.finish()
    await put(store, key)
    await store.markStale(new Map([[key, MINUTE]]))
    expect((await store.getMany([staleKeyOf(key)]))[0]?.toString('utf8', HEADER_BYTES)).toBe(key)
  })

  test.each([
    ['was not cleared meanwhile is as right as before', 'value', async () => undefined],
    ['was cleared meanwhile is gone', 'none', () => store.clear([key], null, true)],
    ['was cleared with its model meanwhile is not believed', 'none', () => store.clearPrefix(prefix)],
  ])('there and back: what %s', async (_, expected, meanwhile) => {
    await put(store, key)
    await (await view.move(key, away)).finish()
    await meanwhile()
    await (await view.move(key, home)).finish()
    expect(await states(store, key)).toEqual([expected])
  })

  test('marks that were away are told of what was cleared meanwhile, as they may be of use again', async () => {
    await put(store, key)
    const place = (await view.masters[home]?.keys(`${prefix}~marks*`))?.[0] as string
    displaced.push(place)
    await (await view.move(place, away)).finish()
    await vi.waitFor(async () => expect(await states(store, key)).toEqual(['none']))
    await store.clearPrefix(prefix)
    expect(await view.client.get(place)).toContain(prefix)
    await (await view.move(place, home)).finish()
    const next = openStore()
    await untilOpen(next)
    // Nobody has filled it since, so it was filled under these marks.
    expect(await view.client.getBuffer(key)).not.toBeNull()
    expect(await states(next, key)).toEqual(['none'])
  })

  test('marks that move with a slot are taken from another one, and every process takes the same', async () => {
    const other = openStore()
    await put(store, key)
    await states(other, key)
    const marks = (await view.masters[home]?.keys(`${prefix}~marks*`)) as string[]
    expect(marks).toHaveLength(1)
    const place = marks[0] as string
    displaced.push(place)
    const move = await view.move(place, away)
    await move.keys()
    for (const each of [store, other]) {
      await vi.waitFor(async () => expect(await states(each, key)).toEqual(['none']))
    }
    await put(store, key)
    expect(await states(other, key)).toEqual(['value'])
    await other.clearPrefix(prefix)
    expect(await states(store, key)).toEqual(['none'])
    await move.finish()
    await vi.waitFor(() => put(store, key))
    await vi.waitFor(async () => expect(await states(other, key)).toEqual(['value']))
  })
})

test('a master that joins: writes follow the first slots that it gets, and reads once marks are among them', async () => {
  const grown = await startCluster()
  onTestFinished(grown.stop)
  const joined = await startClusterNode()
  onTestFinished(joined.stop)
  const store = openStore({}, client(grown))
  const all = new ClusterView({ ...grown, masters: [...grown.masters, joined] })
  onTestFinished(() => all.close())
  await all.masters[3]?.call('CLUSTER', 'MEET', '127.0.0.1', grown.masters[0]?.port as number)
  const known = async (redis: Redis) =>
    /cluster_state:ok[\s\S]*cluster_known_nodes:4/.test(String(await redis.call('CLUSTER', 'INFO')))
  await vi.waitFor(async () => expect(await Promise.all(all.masters.map(known))).not.toContain(false), 10_000)

  const key = `${prefix}key`
  await vi.waitFor(() => put(store, key), 10_000)
  const move = await all.move(key, 3)
  await move.keys()
  // Nobody has told the store of this master, except for the one that had the key.
  await expect(states(store, key)).rejects.toThrow(/no marks/)
  await store.intend([key], TOKEN, MINUTE)
  await store.clear([key], TOKEN, true)
  expect(await all.keys(key)).toEqual([])
  await move.finish()
  await expect(states(store, key)).rejects.toThrow(/no marks/)

  await store.clearPrefix(prefix)
  const place = (await all.masters[0]?.keys(`${prefix}~marks*`))?.[0] as string
  await (await all.move(place, 3)).finish()
  await store.clearPrefix(prefix) // finds out whose it is
  await vi.waitFor(() => put(store, key), 10_000)
  expect(await states(store, key)).toEqual(['value'])
})

test('facts: of each master, and what is wrong with one that cannot be asked', async () => {
  const store = openStore()
  await untilOpen(store)
  const facts = await store.facts()
  expect(facts.map(({ node }) => node).sort()).toEqual(
    cluster.masters.map(({ port }) => `127.0.0.1:${port}`).sort(),
  )
  for (const each of facts) expect(each.facts).toMatchObject({ role: 'master', timeoutMs: 5000 })
})
