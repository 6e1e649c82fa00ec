import { Cluster, Redis } from 'ioredis'
import { Cluster as Cluster5, Redis as Redis5 } from 'ioredis-5'
import type { Kysely } from 'kysely'
import { createModelCache } from 'loadstone'
import { test } from 'vitest'
import type { Database } from './fixture.ts'

/* Checked by `npm run typecheck`, never run. */

declare const db: Kysely<Database>
const namespace = 'shop'

test('redis is a client of one server, of Sentinels or of a cluster, of ioredis 5 or 6', () => {
  createModelCache({ db, namespace, redis: new Redis() })
  createModelCache({ db, namespace, redis: new Redis5() })
  createModelCache({
    db,
    namespace,
    redis: new Redis({ sentinels: [{ host: 's1', port: 26379 }], name: 'app' }),
  })
  createModelCache({ db, namespace, redis: new Cluster([{ host: 'c1', port: 6379 }]) })
  createModelCache({ db, namespace, redis: new Cluster5([{ host: 'c1', port: 6379 }]) })

  // @ts-expect-error not its address
  createModelCache({ db, namespace, redis: 'redis://localhost' })
  // @ts-expect-error not its options
  createModelCache({ db, namespace, redis: { host: 'localhost' } })
})
