import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { openShop } from '../shop/open-shop.ts'
import { runUntilSignal } from '../shop/run-until-signal.ts'
import { createGraphqlServer } from './server.ts'

const shop = await openShop()
const yoga = createGraphqlServer(shop.models)
const server = createServer(yoga).listen(Number(process.env.PORT ?? 4000), '127.0.0.1', () => {
  const { port } = server.address() as AddressInfo
  console.log(`Open http://127.0.0.1:${port}/graphql; Ctrl-C ends it. Try:`)
  console.log('{ event(slug: "amber-harbour-nights") { title tickets { seat holder { name } } } }')
})

await runUntilSignal(async () => {
  server.close()
  server.closeAllConnections()
  await yoga.dispose()
  await shop.close()
})
