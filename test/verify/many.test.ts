import { setImmediate as nextTurn } from 'node:timers/promises'
import { afterAll, afterEach, expect, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { closeRedis } from '../support/redis.ts'
import { openEmbedded, openServers, range, type Town, type TownCache } from './town.ts'

let town: Town
afterEach(() => town.close())
afterAll(closeRedis)

/** How much is looked up at once: what one request asks for, and more. */
const WAVE = 5000

/** How many entries, and whether other programs can be on the database: PGlite has one connection. */
const STACKS = [
  ['10^5 entries on Redis and Postgres', openServers, 100_000, true],
  ['10^4 entries in the process and PGlite', openEmbedded, 10_000, false],
] as const

/** Resolves when the relay has applied what others wrote. */
async function relayed(cache: TownCache['cache']): Promise<void> {
  await expect.poll(() => insidesOf(cache).relay?.turn(0), { timeout: 20_000 }).toBe(0)
}

test.each(STACKS)(
  'finds nothing in %s while they are written, and then what is planted',
  async (_, open, count, others) => {
    town = await open()
    const { cache, Person } = town.open({ relay: { poll: 20, grace: 0 } })
    await cache.install()
    // One in ten has no row, so that absences are compared too.
    await town.unseen(`insert into people
      select i, i || '@town.test', 'name', 's' || i from generate_series(1, ${count}) i where i % 10 > 0`)
    for (let first = 1; first <= count; first += WAVE) {
      await Promise.all(range(WAVE, first).map((id) => Person.cache.getAsyncOrNone({ id })))
    }
    await cache.idle()
    expect(cache.stats()).toMatchObject({ uncached: 0, storeErrors: 0 })

    let writing = true
    let writes = 0
    const anyId = () => 1 + Math.floor(Math.random() * count)
    /** Changes, deletes and inserts rows, through `db` or as others do, and has what was cleared cached again. */
    const writer = async () => {
      while (writing) {
        const ids = range(20).map(anyId)
        // Nothing else of this loop does I/O where all is inside the process, and timers would never get their turn.
        await nextTurn()
        if (++writes % 5 === 0 && others)
          await town.elsewhere(`update people set name = 'else ${writes}' where id in (${ids})`)
        else if (writes % 5 === 1) await town.db.deleteFrom('people').where('id', 'in', ids).execute()
        else if (writes % 5 === 2) {
          await town.db
            .insertInto('people')
            .values(ids.map((id) => ({ id, email: `${id}@town.test`, name: 'new', street: null })))
            .onConflict((conflict) => conflict.doNothing())
            .execute()
        } else
          await town.db
            .updateTable('people')
            .set({ name: `name ${writes}` })
            .where('id', 'in', ids)
            .execute()
        await Promise.all(ids.map((id) => Person.cache.getAsyncOrNone({ id })))
      }
    }
    const writers = [writer(), writer(), writer()]
    await expect.poll(() => writes, { timeout: 60_000 }).toBeGreaterThan(5)
    const before = writes
    const sample = Number.POSITIVE_INFINITY
    const clean = await cache.verify({ sample, settleMs: 300 }).finally(() => {
      writing = false
    })
    await Promise.all(writers)
    expect(clean).toMatchObject({ stale: 0, overdue: 0, rate: 0 })
    expect(clean.checked).toBeGreaterThan(0.95 * count)
    if (others) expect(writes - before).toBeGreaterThan(5)

    await relayed(cache)
    const planted = [11, 12, 20, count]
    await Promise.all(planted.map((id) => Person.cache.getAsyncOrNone({ id })))
    await cache.idle()
    await town.unseen(`
      delete from people where id in (11, ${count});
      update people set name = name || '!' where id in (12, 20);
      insert into people select i, i || '@town.test', 'planted', null
        from unnest(array[11, 12, 20, ${count}]) i on conflict do nothing`)
    const report = await cache.verify({ sample, settleMs: 1, repair: true })
    expect(report).toMatchObject({ stale: planted.length, repaired: planted.length })
    const keys = planted.map((id) => `${town.namespace}:people:id:${id}`)
    expect(report.shapes[0]?.examples.toSorted()).toEqual(keys.toSorted())
  },
  120_000,
)
