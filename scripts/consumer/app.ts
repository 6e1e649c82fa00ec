// Compiled by scripts/check-package.mjs in a project that has loadstone installed from its tarball.
import { Kysely, PostgresDialect, type PostgresPool } from 'kysely'
import { createModelCache, runInLoop } from 'loadstone'

interface Database {
  users: { id: number; email: string }
}

declare const pool: PostgresPool

const db = new Kysely<Database>({ dialect: new PostgresDialect({ pool }) })
const cache = createModelCache({ db, namespace: 'shop' })
const User = cache.model('users', { keyFields: [['id'], ['email']] })

export const emailOf = runInLoop(async (id: number): Promise<string> => {
  const user = await User.cache.getAsync({ id })
  return user.email
})

// @ts-expect-error: `age` is no key of User, and the types that a user gets must still say so.
export const wrong = () => User.cache.getAsync({ age: 3 })
