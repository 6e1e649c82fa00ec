import { createHash } from 'node:crypto'
import { sql } from 'kysely'
import { InstallError, ModelError, messageOf } from '../errors.ts'
import { MAX_VERSION } from '../models/model.ts'
import type { Database } from '../sources/database.ts'
import { INTERNAL } from './outbox-rows.ts'

/** Each attempt that fails has let another form take a number, so this is never reached by processes that are deployed at once. */
const ATTEMPTS = 100

/**
 * The number of a model's stored form: the same in every process, and higher than those of all forms seen earlier. The
 * first form gets `atLeast`.
 *
 * Rejects ModelError when all numbers up to 65,000 are used up, InstallError when the role may not use the table.
 *
 * @param form what decides the meaning of stored bytes, of any length: it is kept as a hash
 * @returns undefined when the table is not installed
 */
export async function storedFormNumber(
  db: Database,
  namespace: string,
  model: string,
  form: string,
  atLeast: number,
): Promise<number | undefined> {
  const plain = db.withoutPlugins()
  const hash = createHash('sha256').update(form).digest('base64url')
  try {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const known = await sql<{
        number: number
      }>`${sql.raw(INTERNAL)} select number from loadstone.stored_form
        where namespace = ${namespace} and model = ${model} and form = ${hash}`.execute(plain)
      const number = known.rows[0]?.number ?? (await takeNumber(plain, namespace, model, hash, atLeast))
      if (number !== undefined) return number
    }
  } catch (error) {
    const code = (error as { code?: unknown } | null)?.code
    if (code === '42P01' || code === '3F000') return undefined
    if (code === '23514')
      throw new ModelError(model, `all numbers of stored forms up to ${MAX_VERSION} are used up`)
    if (code === '42501') {
      throw new InstallError(`loadstone.stored_form cannot be used: ${messageOf(error)}; see grantSql()`, {
        cause: error,
      })
    }
    throw error
  }
  throw new ModelError(model, 'no number could be had for its stored form, as others took them all the time')
}

/** Undefined when another process was faster: with the same form, or with the same number for another one. */
async function takeNumber(
  db: Database,
  namespace: string,
  model: string,
  form: string,
  atLeast: number,
): Promise<number | undefined> {
  const { rows } = await sql<{ number: number }>`${sql.raw(INTERNAL)}
    insert into loadstone.stored_form (namespace, model, form, number)
    select ${namespace}::text, ${model}::text, ${form}::text, greatest(coalesce(max(number) + 1, 0), ${atLeast}::int)
    from loadstone.stored_form where namespace = ${namespace} and model = ${model}
    on conflict do nothing returning number`.execute(db)
  return rows[0]?.number
}
