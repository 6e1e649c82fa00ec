import { inject, onTestFinished } from 'vitest'
import { openDatabase, type ShopDatabase } from '../../examples/shop/connections.ts'
import { type Models, openCache, type ShopCache } from '../../examples/shop/open-shop.ts'
import { plainModels } from '../../examples/shop/plain.ts'
import { createTestDatabase } from '../support/database.ts'

/** The examples' shop, for the tests of one stack. */
export interface TestShop {
  readonly database: ShopDatabase
  readonly plain: Models
  /** A cache with nothing in it; closed when the test has finished. */
  openCache(invalidation?: 'triggers' | 'manual'): ShopCache
  close(): Promise<void>
}

/** On what the examples run when nothing is installed, and on servers. */
export const STACKS = {
  embedded: async () => testShop(await openDatabase(''), ''),
  servers: async () => {
    const { url, drop } = await createTestDatabase()
    const shop = testShop(await openDatabase(url), inject('redisUrl'))
    return {
      ...shop,
      async close() {
        await shop.close()
        await drop()
      },
    }
  },
}

function testShop(database: ShopDatabase, redisUrl: string): TestShop {
  return {
    database,
    plain: plainModels(database.db),
    openCache(invalidation = 'manual') {
      const shopCache = openCache(database, { redisUrl, invalidation })
      onTestFinished(() => shopCache.close())
      return shopCache
    },
    close: () => database.close(),
  }
}
