import { canonicalPrint } from './canonical.ts'
import { keyOf, modelPrefix } from './key.ts'

/**
 * What a statement wrote, as the trigger recorded it. It carries the declarations it was recorded under, so that any
 * process of any version, and one that does not know the model at all, clears the same keys.
 */
export interface Touched {
  /** Name and base type of each recorded column, as in the database. */
  readonly columns: readonly (readonly [name: string, type: string])[]
  /** The name of each declared shape, and which of the columns it is made of. */
  readonly shapes: readonly (readonly [name: string, ...columns: number[]])[]
  /** The old and the new values, each distinct tuple once, as Postgres prints them. */
  readonly rows: readonly (readonly (string | null)[])[]
}

/** A row of the outbox. */
export interface OutboxRow {
  readonly namespace: string
  readonly xid: string
  readonly id: string
  readonly model: string
  /** Null: the whole model. */
  readonly touched: Touched | null
}

/** What writes made wrong. */
export interface TouchedKeys {
  readonly keys: readonly string[]
  /** Prefixes of models of which everything has to go. */
  readonly prefixes: readonly string[]
}

/** The cache keys that outbox rows name: of every shape, for old and new values. */
export function touchedKeys(rows: readonly OutboxRow[]): TouchedKeys {
  const keys = new Set<string>()
  const prefixes = new Set<string>()
  for (const { namespace, model, touched } of rows) {
    const prefix = modelPrefix(namespace, model)
    if (!touched) {
      prefixes.add(prefix)
      continue
    }
    const types = touched.columns.map(([, type]) => type)
    for (const row of touched.rows) {
      const texts = row.map((text, i) => (text === null ? null : canonicalPrint(types[i] as string, text)))
      for (const [name, ...columns] of touched.shapes) {
        keys.add(
          keyOf(
            `${prefix}${name}:`,
            columns.map((column) => texts[column] ?? null),
          ),
        )
      }
    }
  }
  for (const prefix of prefixes) for (const key of keys) if (key.startsWith(prefix)) keys.delete(key)
  return { keys: [...keys], prefixes: [...prefixes] }
}
