import type { Kysely } from 'kysely'
import { createModelCache } from 'loadstone'
import { test } from 'vitest'
import type { Database } from './fixture.ts'

/* Checked by `npm run typecheck`, never run. */

declare const db: Kysely<Database>
declare const replica: Kysely<Database>

test('rows may come from a replica, for some shapes', () => {
  createModelCache({ db, namespace: 'shop', replica: { db: replica } })
  createModelCache({
    db,
    namespace: 'shop',
    replica: {
      db: replica,
      maxWait: '30ms',
      uses: ({ model, kind, fields, cache }) =>
        model === 'users' && kind === 'filter' && fields.length === 1 && cache === undefined,
    },
  })
  // @ts-expect-error it is a Kysely
  createModelCache({ db, namespace: 'shop', replica: { db: 'postgres://replica' } })
  // @ts-expect-error in milliseconds, or with a unit
  createModelCache({ db, namespace: 'shop', replica: { db: replica, maxWait: 'soon' } })
  // @ts-expect-error no such kind
  createModelCache({ db, namespace: 'shop', replica: { db: replica, uses: ({ kind }) => kind === 'list' } })
})

test('what came of it is counted', () => {
  const { replica: counts } = createModelCache({ db, namespace: 'shop' }).stats()
  const answered: number = counts.answered
  const reasons: readonly number[] = [counts.behind, counts.unfit, counts.failed, counts.resting, answered]
  // @ts-expect-error no such reason
  return [reasons, counts.late]
})
