import { expectTrips } from 'loadstone/testing'
import { describe, expect, onTestFinished, test } from 'vitest'
import { createApp } from '../../examples/route-handler/app.ts'
import type { Models } from '../../examples/shop/open-shop.ts'
import type { TestShop } from './test-shop.ts'

const PAGE = '/events/amber-harbour-nights'

export function routeHandlerTests(shopOf: () => TestShop): void {
  describe('route-handler', () => {
    test('the page takes three waves, and five statements when cold', async () => {
      const { database, plain } = shopOf()
      const { cache, models } = shopOf().openCache()
      await cache.ready()
      const app = appOver(models)

      const cold = await expectTrips(cache, { mget: 3, acquire: 3, select: 5, fill: 3 }, () =>
        app.inject(PAGE),
      )
      const before = database.statementCount()
      const warm = await expectTrips(cache, { mget: 3 }, () => app.inject(PAGE))

      expect(database.statementCount()).toBe(before)
      expect(cold.statusCode).toBe(200)
      expect(cold.json()).toMatchObject({
        title: 'Amber Harbour Nights',
        startsAt: '2026-02-06T19:30:00.000Z',
        organiser: 'Amber Harbour',
        admins: ['ada.abel.1@example.com', 'ines.ito.31@example.com'],
        invited: 3,
      })
      expect(cold.json().guests).toHaveLength(50)
      expect(cold.json()).toEqual((await appOver(plain).inject(PAGE)).json())
      expect(warm.json()).toEqual(cold.json())
      expect(cache.stats()).toMatchObject({ lookups: 100, memoHits: 10, outOfScope: 0 })
    })

    test('a request sees what was written before it', async () => {
      const { cache, models } = shopOf().openCache('triggers')
      await cache.install()
      const { db } = shopOf().database
      const app = appOver(models)
      expect((await app.inject('/users/8')).json().name).toBe('Hugo Haas')

      await db.updateTable('users').set({ first_name: 'Hilda' }).where('id', '=', 8).execute()

      expect((await app.inject('/users/8')).json()).toEqual({ name: 'Hilda Haas', org: 'Brass Orchard' })
      expect(cache.stats().outOfScope).toBe(0)
    })

    test('Fastify answers 404 by itself when there is no such row, which is cached too', async () => {
      const { cache, models } = shopOf().openCache()
      await cache.ready()
      const app = appOver(models)
      const get = () => app.inject('/events/nowhere')

      const cold = await expectTrips(cache, { mget: 1, acquire: 1, select: 1, fill: 1 }, get)
      const warm = await expectTrips(cache, { mget: 1 }, get)

      for (const response of [cold, warm]) {
        expect(response.statusCode).toBe(404)
        expect(response.json()).toMatchObject({ statusCode: 404, error: 'Not Found' })
      }
      expect((await app.inject('/users/4000000000')).statusCode).toBe(404) // too large for the column, so for any row
      expect((await app.inject('/users/me')).statusCode).toBe(400)
    })

    test('a request with a body has its scope too', async () => {
      const { cache, models } = shopOf().openCache()
      await cache.ready()
      const app = appOver(models)
      const emails = ['ada.abel.1@example.com', 'nobody@example.com', 'ADA.Abel.1@example.com']

      const response = await expectTrips(cache, { mget: 1, acquire: 1, select: 1, fill: 1 }, () =>
        app.inject({ method: 'POST', url: '/guest-list', payload: { emails } }),
      )

      expect(response.json()).toEqual(['Ada Abel', null, 'Ada Abel'])
      expect(cache.stats()).toMatchObject({ lookups: 2, memoHits: 1, outOfScope: 0 })
    })
  })
}

function appOver(models: Models) {
  const app = createApp(models)
  onTestFinished(() => app.close())
  return app
}
