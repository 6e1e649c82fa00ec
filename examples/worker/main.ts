import { openShop } from '../shop/open-shop.ts'
import { queueOf, runWorker } from './worker.ts'

const shop = await openShop()
const take = queueOf(Array.from({ length: 60 }, (_, i) => i + 1))
const sent = await runWorker({
  models: shop.models,
  take,
  send: ({ to, subject }) => console.log(`${to.padEnd(32)} ${subject}`),
})

await shop.cache.idle() // fills are not waited for; their numbers belong to the sum
const { lookups, memoHits, waves, trips } = shop.cache.stats()
console.log(`${sent} mails, ${lookups + memoHits} lookups, ${waves} waves, ${trips.select} SQL statements`)
await shop.close()
