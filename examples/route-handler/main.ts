import { openShop } from '../shop/open-shop.ts'
import { runUntilSignal } from '../shop/run-until-signal.ts'
import { createApp } from './app.ts'

const shop = await openShop()
const app = createApp(shop.models)
const url = await app.listen({ port: Number(process.env.PORT ?? 3000) })
console.log(`Try ${url}/events/amber-harbour-nights and ${url}/events/nowhere; Ctrl-C ends it.`)

await runUntilSignal(async () => {
  await app.close()
  await shop.close()
})
