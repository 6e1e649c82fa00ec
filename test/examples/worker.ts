import { expectTrips } from 'loadstone/testing'
import { describe, expect, test } from 'vitest'
import type { Models } from '../../examples/shop/open-shop.ts'
import { type Mail, queueOf, runWorker } from '../../examples/worker/worker.ts'
import type { TestShop } from './test-shop.ts'

const HUNDRED = Array.from({ length: 100 }, (_, i) => i + 1)

export function workerTests(shopOf: () => TestShop): void {
  describe('worker', () => {
    test('a turn of 25 jobs takes three waves', async () => {
      const { plain } = shopOf()
      const { cache, models } = shopOf().openCache()
      await cache.ready()

      const cold = await expectTrips(cache, { mget: 12, acquire: 12, select: 20, fill: 12 }, () =>
        mailsOf(models, HUNDRED),
      )
      const warm = await expectTrips(cache, { mget: 12 }, () => mailsOf(models, HUNDRED))

      expect(cold).toHaveLength(100)
      expect(cold[1]).toEqual({
        to: 'dora.diaz.15@example.com',
        subject: 'Your order 2 with Amber Harbour',
        text: 'Dear Dora, Amber Harbour Nights, seats A3, A4: 96.00 EUR.',
      })
      expect(cold).toEqual(await mailsOf(plain, HUNDRED))
      expect(warm).toEqual(cold)
      expect(cache.stats().outOfScope).toBe(0)
    })

    test('an order that is gone has no mail', async () => {
      const { models } = shopOf().openCache()
      const mails = await mailsOf(models, [1, 999_999, 3])
      expect(mails.map(({ subject }) => subject.split(' ')[2])).toEqual(['1', '3'])
    })

    test('a turn sees what was written before it', async () => {
      const { cache, models } = shopOf().openCache('triggers')
      await cache.install()
      const { db } = shopOf().database
      const texts: string[] = []

      // Orders 1499 and 1500 are for the last event.
      await runWorker({
        models,
        take: queueOf([1499, 1500]),
        jobsPerTurn: 1,
        async send({ text }) {
          texts.push(text)
          await db.updateTable('events').set({ title: 'Postponed' }).where('id', '=', 60).execute()
        },
      })

      expect(texts[0]).toContain('Floating Terrace Gala')
      expect(texts[1]).toContain('Postponed')
    })
  })
}

async function mailsOf(models: Models, orderIds: readonly number[]): Promise<Mail[]> {
  const mails: Mail[] = []
  await runWorker({ models, take: queueOf(orderIds), send: (mail) => void mails.push(mail) })
  return mails
}
