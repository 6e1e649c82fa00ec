import { afterAll, beforeAll, describe } from 'vitest'
import { flashTests } from './flash.ts'
import { graphqlTests } from './graphql.ts'
import { routeHandlerTests } from './route-handler.ts'
import { STACKS, type TestShop } from './test-shop.ts'
import { workerTests } from './worker.ts'

// PGlite takes seconds to start, so all examples share one, and one file.
describe.each(Object.entries(STACKS))('examples: %s', (_name, open) => {
  let shop: TestShop | undefined
  beforeAll(async () => {
    shop = await open()
  }, 120_000)
  afterAll(() => shop?.close())

  const shopOf = (): TestShop => {
    if (!shop) throw new Error('the shop is not open')
    return shop
  }
  routeHandlerTests(shopOf)
  graphqlTests(shopOf)
  workerTests(shopOf)
  flashTests(shopOf)
})
