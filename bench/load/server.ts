/** The example's GraphQL server, in a process of its own: `node server.ts <contender>`. Talks to its parent by messages. */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Redis } from 'ioredis'
import { createModelCache } from 'loadstone'
import { createGraphqlServer } from '../../examples/graphql/server.ts'
import { openDatabase } from '../../examples/shop/connections.ts'
import { declareModels, type Models } from '../../examples/shop/models.ts'
import { plainModels } from '../../examples/shop/plain.ts'
import type { FromServer, ToServer } from './messages.ts'
import { dataLoaderModels } from './models.ts'

const { contender, databaseUrl, redisUrl } = JSON.parse(process.argv[2] as string)
const tell = (message: FromServer) => process.send?.(message)
let rejections = 0
process.on('unhandledRejection', () => rejections++)

const database = await openDatabase(databaseUrl)
const redis = new Redis(redisUrl, { lazyConnect: true })
const cache = createModelCache({ db: database.db, redis, namespace: 'load' })
let models: Models
if (contender === 'none') models = plainModels(database.db)
else if (contender === 'dataloader') models = dataLoaderModels(database.db)
else {
  models = declareModels(cache)
  await cache.install()
}

const yoga = createGraphqlServer(models)
const server = createServer(yoga).listen(0, '127.0.0.1', async () => {
  const slugs = (await database.db.selectFrom('events').select('slug').orderBy('id').execute()).map(
    ({ slug }) => slug,
  )
  tell({ kind: 'ready', url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/graphql`, slugs })
})

process.on('message', async (message: ToServer) => {
  if (message === 'report') {
    const { user, system } = process.cpuUsage()
    tell({
      kind: 'report',
      cpuMs: (user + system) / 1000,
      rssBytes: process.memoryUsage.rss(),
      heapBytes: process.memoryUsage().heapUsed,
      rejections,
    })
    return
  }
  // The load has left; what it had asked for last is still under way.
  const closed = new Promise((resolve) => server.close(resolve))
  const late = setTimeout(() => server.closeAllConnections(), 5000)
  await closed
  clearTimeout(late)
  await yoga.dispose()
  if (contender === 'loadstone') await cache.uninstall()
  await cache.close()
  redis.disconnect()
  await database.close()
  process.disconnect()
})
