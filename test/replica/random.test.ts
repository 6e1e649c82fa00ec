import { runInLoop } from 'loadstone'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { closeRedis, testRedis } from '../support/redis.ts'
import { Random } from '../torture/random.ts'
import { type Line, openCache, openLine, openPair, type Pair } from './pair.ts'

const PEOPLE = 8
const TURNS = 200
/** How often the replica, and the primary in its place, must have answered, or there was nothing to see. */
const LOADS = { answered: 40, behind: 8 }

let pair: Pair
let primary: Line
let replica: Line
beforeAll(async () => {
  pair = await openPair()
  primary = await openLine('primary', pair.primary)
  replica = await openLine('replica', pair.standby)
})
afterAll(async () => {
  await closeRedis()
  await primary.close()
  await replica.close()
  await pair.close()
})

test.each([1, 2, 3])(
  'whatever the replica does, nobody reads what is older than a write that has returned (seed %i)',
  async (seed) => {
    const random = new Random(seed)
    const { cache, Person } = openCache(
      { primary, replica },
      { maxWait: '50ms' },
      { ...testRedis(), storeTimeout: '5s', invalidation: 'triggers' },
    )
    const Names = cache.related({
      name: 'Names',
      model: Person,
      keyFields: ['id'],
      path: [{ model: Person, on: { best_friend: 'id' } }],
      single: true,
    })
    await cache.install()
    await pair.onPrimary("update people set name = '0'")
    await pair.resume()
    await pair.caughtUp()

    /** The versions that writers have been told are committed, by id. */
    const committed = new Map<number, number>()
    const writing = new Set<number>()
    const stale: string[] = []
    let version = 0

    /** The writer's own process, or psql and then an invalidation by hand. */
    async function write(): Promise<void> {
      const id = random.int(1, PEOPLE)
      if (writing.has(id)) return
      writing.add(id)
      const name = String(++version)
      if (random.chance(0.5))
        await primary.db.updateTable('people').set({ name }).where('id', '=', id).execute()
      else {
        await pair.onPrimary(`update people set name = '${name}' where id = ${id}`)
        await Person.cache.invalidateWhere((people) => people.where('id', '=', id))
        await Names.invalidate({ id: ((id + 18) % 20) + 1 })
      }
      committed.set(id, Number(name))
      writing.delete(id)
    }

    const read = runInLoop(async () => {
      const floors = new Map(committed)
      const check = (how: string, row: { id: number; name: string } | null) => {
        const floor = (row && floors.get(row.id)) ?? 0
        if (row && Number(row.name) < floor) stale.push(`${how}: ${row.id} is ${row.name}, not ${floor}`)
      }
      await Promise.all([
        Person.cache.getAsync({ id: random.int(1, PEOPLE) }).then((row) => check('by id', row)),
        Person.cache
          .filterAsync({ team_id: random.int(1, 4) })
          .then((rows) => rows.map((row) => check('by team', row))),
        Names({ id: random.int(1, PEOPLE) })
          .resolveAsync()
          .then((row) => check('by friend', row)),
      ])
    })

    let paused = false
    let toggled = Promise.resolve()
    function toggle(): Promise<void> {
      paused = !paused
      const next = paused ? pair.pause : pair.resume
      toggled = toggled.then(next)
      return toggled
    }

    // Turns overlap: one begins while some of those before are under way.
    const underWay = new Set<Promise<void>>()
    const begin = (work: Promise<void>) => {
      underWay.add(work)
      void work.finally(() => underWay.delete(work))
    }
    const seen = () => {
      const { answered, behind } = cache.stats().replica
      return answered >= LOADS.answered && behind >= LOADS.behind
    }
    for (let turn = 0; turn < TURNS || !seen(); turn++) {
      if (random.chance(0.3)) begin(write())
      for (let i = random.int(0, 2); i > 0; i--) begin(read())
      if (random.chance(0.05)) begin(toggle())
      while (underWay.size > random.int(0, 5)) await Promise.race(underWay)
    }
    await Promise.all(underWay)
    if (paused) await pair.resume()
    await cache.idle()
    expect(stale).toEqual([])

    const { stale: left, checked } = await cache.verify()
    expect(left).toBe(0)
    expect(checked).toBeGreaterThan(PEOPLE / 2)
    await cache.uninstall()
    await cache.close()
  },
  60_000,
)
