import { type Expression, expressionBuilder, type SelectQueryNode } from 'kysely'
import { OptionError } from '../errors.ts'
import type { Tables } from './database.ts'
import type { Where } from './source.ts'

const CONDITION_PARTS = ['kind', 'from', 'where']

/**
 * The condition that `where` puts on a query of a table.
 *
 * @throws OptionError when it does more than that, or less
 */
export function conditionOf(table: string, where: (rows: unknown) => Expression<unknown>): Where {
  // Of no database: its plugins would transform the condition twice, here and in the statement it becomes a part of.
  const rows = expressionBuilder<Tables>().selectFrom(table)
  const node = where(rows)?.toOperationNode?.() as SelectQueryNode | undefined
  const condition = node?.where?.where
  const others = Object.entries(node ?? {}).flatMap(([part, value]) =>
    value === undefined || CONDITION_PARTS.includes(part) ? [] : [part],
  )
  if (!condition || others.length > 0) {
    throw new OptionError(
      `${table}.invalidateWhere`,
      'a function that returns the query it was given with a where, and nothing else (clear() forgets all rows)',
      others.length > 0 ? `one with ${others.join(', ')}` : 'none',
    )
  }
  return { condition: { toOperationNode: () => condition } }
}
