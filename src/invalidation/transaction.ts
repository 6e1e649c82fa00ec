import type { AccessMode, IsolationLevel, Kysely, Transaction } from 'kysely'
import { TransactionUseError } from '../errors.ts'
import { ScopeLoader } from '../loaders/loader.ts'
import type { CacheParts } from '../loaders/reader.ts'
import { currentScope, runInScope, Scope } from '../loaders/scope.ts'
import type { Source } from '../sources/source.ts'

export interface TransactionOptions {
  readonly isolationLevel?: IsolationLevel
  readonly accessMode?: AccessMode
}

/**
 * Runs `fn` in a transaction in which lookups read through its connection, batched as always: they see what it has
 * written, take nothing from the store or a memo and leave nothing there. The scope around it is as it was, but
 * for what the transaction wrote, which it forgets at the commit.
 *
 * @param through where lookups inside read from
 */
export function runTransaction<DB, Result>(
  parts: CacheParts,
  db: Kysely<DB>,
  through: (trx: Transaction<DB>) => Source,
  fn: (trx: Transaction<DB>) => Promise<Result>,
  { isolationLevel, accessMode }: TransactionOptions,
): Promise<Result> {
  const outer = currentScope()
  if (outer?.isInTransaction) {
    throw new TransactionUseError(
      'cache.transaction inside cache.transaction: use the outer one, with savepoints where a part may be undone',
    )
  }
  let builder = db.transaction()
  if (isolationLevel) builder = builder.setIsolationLevel(isolationLevel)
  if (accessMode) builder = builder.setAccessMode(accessMode)
  return builder.execute(async (trx) => {
    const loader = new ScopeLoader(parts.dispatcher.forTransaction(through(trx)), undefined)
    const scope = new Scope(outer)
    scope.set(parts, loader)
    try {
      return await runInScope(scope, () => fn(trx))
    } finally {
      loader.ended = true
    }
  })
}
