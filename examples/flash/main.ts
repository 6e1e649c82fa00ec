import { openShop } from '../shop/open-shop.ts'
import { declareCaches } from './caches.ts'
import { createPages, declarePlan, EVENT_PAGE, ORDER_PAGE } from './page.ts'

const shop = await openShop()
const caches = declareCaches(shop.cache, shop.models)
await shop.cache.install() // again: what was declared since has to be recorded too

const plan = declarePlan(shop.cache, shop.models, caches)
console.log(`${plan.explain(['slug', 'userId'], EVENT_PAGE)}\n`)
console.log(`${plan.explain(['orderId'], ORDER_PAGE)}\n`)

const pages = createPages(plan)
let shown = 0
for (const slug of ['amber-harbour-nights', 'brass-cellar-sessions', 'nowhere']) {
  for (const userId of [null, 8, 15, 22]) {
    const page = await pages.event(slug, userId)
    if (page && userId === 8)
      console.log(
        `${page.title} by ${page.organiser}: ${page.sold} sold to ${page.guests} guests${page.isGuest ? ', one is you' : ''}`,
      )
    shown++
  }
}
for (const orderId of [1, 2, 3, 26, 27, 28]) {
  await pages.order(orderId)
  shown++
}

await shop.cache.idle() // fills are not waited for; their numbers belong to the sum
const { lookups, memoHits, waves, trips } = shop.cache.stats()
console.log(`\n${shown} pages, ${lookups + memoHits} lookups: as many SQL statements without a cache.`)
console.log(`With it ${trips.select + trips.load} statements, in ${waves} waves.`)
await shop.close()
