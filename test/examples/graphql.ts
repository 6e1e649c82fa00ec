import { expectTrips } from 'loadstone/testing'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { createGraphqlServer } from '../../examples/graphql/server.ts'
import type { Models } from '../../examples/shop/open-shop.ts'
import type { TestShop } from './test-shop.ts'

const EVENT = `{
  event(slug: "brass-cellar-sessions") {
    title
    organiser { name plan }
    tickets { seat price order { placedAt } holder { name org { name } } }
  }
}`

export function graphqlTests(shopOf: () => TestShop): void {
  describe('graphql', () => {
    test('each level of the query is one wave', async () => {
      const { plain } = shopOf()
      const { cache, models } = shopOf().openCache()
      await cache.ready()
      const ask = queryOver(models)

      const cold = await expectTrips(cache, { mget: 4, acquire: 4, select: 6, fill: 4 }, () => ask(EVENT))
      const warm = await expectTrips(cache, { mget: 4 }, () => ask(EVENT))

      expect(cold.errors).toBeUndefined()
      expect(cold.data?.event).toMatchObject({
        title: 'Brass Cellar Sessions',
        organiser: { name: 'Brass Cellar' },
      })
      expect(cold).toEqual(await queryOver(plain)(EVENT))
      expect(warm).toEqual(cold)
      expect(cache.stats().outOfScope).toBe(0)
    })

    test('a row that is not there is a NOT_FOUND of its field, and the others are answered', async () => {
      const { cache, models } = shopOf().openCache()
      const ask = queryOver(models)

      const { data, errors } = await ask(`{
        gone: event(slug: "nowhere") { title }
        event(slug: "brass-cellar-sessions") { title }
      }`)

      expect(data).toEqual({ gone: null, event: { title: 'Brass Cellar Sessions' } })
      expect(errors).toHaveLength(1)
      expect(errors?.[0]).toMatchObject({ path: ['gone'], extensions: { code: 'NOT_FOUND' } })
      expect(errors?.[0]?.message).not.toBe('Unexpected error.')
      expect(cache.stats().outOfScope).toBe(0)
    })

    test('all other errors stay masked', async () => {
      vi.spyOn(console, 'error').mockImplementation(() => {}) // Yoga logs what it masks
      onTestFinished(() => void vi.restoreAllMocks())
      const { models } = shopOf().openCache()
      const broken = {
        cache: { getAsync: fail, getAsyncOrNone: fail, getAsyncOr404: fail, filterAsync: fail },
      }
      const ask = queryOver({ ...models, Event: broken })

      const { data, errors } = await ask(EVENT)

      expect(data).toEqual({ event: null })
      expect(errors).toMatchObject([{ message: 'Unexpected error.' }])
      expect(JSON.stringify(errors)).not.toContain('secret')
    })
  })
}

function fail(): Promise<never> {
  return Promise.reject(new Error('a secret'))
}

interface Answer {
  readonly data?: Readonly<Record<string, unknown>> | null
  readonly errors?: readonly { message: string; path: unknown; extensions: unknown }[]
}

function queryOver(models: Models) {
  const yoga = createGraphqlServer(models)
  onTestFinished(() => void yoga.dispose())
  return async (query: string): Promise<Answer> => {
    const response = await yoga.fetch('http://localhost/graphql', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ query }),
    })
    return (await response.json()) as Answer
  }
}
