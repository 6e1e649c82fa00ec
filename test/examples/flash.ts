import { expectTrips } from 'loadstone/testing'
import { describe, expect, test } from 'vitest'
import { declareCaches } from '../../examples/flash/caches.ts'
import { createPages, declarePlan } from '../../examples/flash/page.ts'
import type { TestShop } from './test-shop.ts'

const SLUG = 'amber-harbour-nights'

export function flashTests(shopOf: () => TestShop): void {
  describe('flash', () => {
    /** Pages over a cache that is told of writes. */
    async function open() {
      const { cache, models } = shopOf().openCache('triggers')
      const pages = createPages(declarePlan(cache, models, declareCaches(cache, models)))
      await cache.install()
      return { cache, pages, db: shopOf().database.db }
    }

    test('the page of an event takes two waves, and one MGET for each when warm', async () => {
      const { cache, pages } = await open()
      const read = () => pages.event(SLUG, 8)
      // The event and its organiser are rows; what is left is made by one `load` each.
      const cold = await expectTrips(cache, { mget: 2, acquire: 2, select: 2, load: 5, fill: 2 }, read)
      const warm = await expectTrips(cache, { mget: 2 }, read)
      for (const page of [cold, warm]) {
        expect(page).toMatchObject({
          title: 'Amber Harbour Nights',
          organiser: 'Amber Harbour',
          sold: 50,
          isGuest: true,
          next: 'Amber Harbour Festival',
        })
        expect([page?.isTaken('A1'), page?.isTaken('Z9')]).toEqual([true, false])
      }
      expect(cache.stats().outOfScope).toBe(0)
    })

    test('the page of an order gets there by other ways, and finds what the event page cached', async () => {
      const { cache, pages } = await open()
      expect(await pages.event(SLUG, 8)).not.toBeNull()
      const read = () => pages.order(1)
      // New are the order, and the event by its id; organiser, tickets and guest are there.
      const page = await expectTrips(cache, { mget: 3, acquire: 2, select: 2, fill: 2 }, read)
      expect(page).toEqual({
        title: 'Amber Harbour Nights',
        organiser: 'Amber Harbour',
        sold: 50,
        isGuest: true,
      })
    })

    test('who has not signed in is no guest, at no cost; no such event ends after one wave', async () => {
      const { cache, pages } = await open()
      expect(await pages.event(SLUG, null)).toMatchObject({ isGuest: false })
      await expectTrips(cache, { mget: 2 }, () => pages.event(SLUG, null))
      expect(
        await expectTrips(cache, { mget: 1, acquire: 1, select: 1, fill: 1 }, () => pages.event('x', 8)),
      ).toBe(null)
    })

    test('a page sees what was written before it', async () => {
      const { pages, db } = await open()
      const before = await pages.event(SLUG, 2)
      expect(before).toMatchObject({ sold: 50, isGuest: false })
      const order = { id: 9001, user_id: 2, event_id: 1, placed_at: new Date() }
      await db.insertInto('orders').values(order).execute()
      await db
        .insertInto('tickets')
        .values({ id: 9001, order_id: 9001, event_id: 1, holder_id: 2, seat: 'Z9', price: '48.00' })
        .execute()
      const page = await pages.event(SLUG, 2)
      expect(page).toMatchObject({ sold: 51, guests: (before?.guests ?? 0) + 1, isGuest: true })
      expect(page?.isTaken('Z9')).toBe(true)
      await db.deleteFrom('tickets').where('id', '=', 9001).execute()
      await db.deleteFrom('orders').where('id', '=', 9001).execute()
      expect(await pages.event(SLUG, 2)).toEqual({ ...before, isTaken: expect.any(Function) })
    })
  })
}
