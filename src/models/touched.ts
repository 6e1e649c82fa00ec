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
  /** Of those shapes whose entries are marked stale, how long they may be answered, ms, by name. Default none. */
  readonly stale?: Readonly<Record<string, number>>
  /** Shapes of other models whose values are made of these rows too. */
  readonly dependents?: readonly Dependent[]
  /** The old and the new values, each distinct tuple once, as Postgres prints them. */
  readonly rows: readonly (readonly (string | null)[])[]
}

/**
 * A shape that is made of rows which are joined to those of its own model. Which of its keys a write is about depends
 * on the rows between, so that has to be asked, after the commit: what links to the row then. A link that is gone by
 * then was written itself, and told by its own writer.
 */
export interface Dependent {
  readonly model: string
  /** The name of the shape. */
  readonly shape: string
  /** Which of the recorded columns link the row. */
  readonly values: readonly number[]
  /** From the row back to the model. None: the values are the key. */
  readonly steps: readonly BackStep[]
  /** If its entries are marked stale: how long they may be answered, ms. */
  readonly staleForMs?: number
  /** Columns of the last step's table, and their base types. */
  readonly key: readonly (readonly [column: string, type: string])[]
}

/** A table on the way back from a written row to the keys that are made of it. */
export interface BackStep {
  /** With its schema, as SQL writes it. */
  readonly table: string
  /** Columns of the table; for the first step with the SQL type of the value, then with the column of the step before. */
  readonly on: readonly (readonly [column: string, other: string])[]
}

/** Keys of a dependent shape that are still to be asked for. */
export interface Unresolved {
  readonly namespace: string
  readonly dependent: Dependent
  /** What the written rows have, or had, in the linking columns. */
  readonly values: readonly (readonly string[])[]
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
  /** Prefixes of models, or of shapes, of which everything has to go. */
  readonly prefixes: readonly string[]
  /** Keys whose entries are to be marked stale, with how long they may be answered, ms. Default none. */
  readonly stale?: ReadonlyMap<string, number>
  /** Default none. */
  readonly unresolved?: readonly Unresolved[]
}

/** The cache keys that outbox rows name: of every shape, for old and new values. */
export function touchedKeys(rows: readonly OutboxRow[]): TouchedKeys {
  const keys = new Set<string>()
  const prefixes = new Set<string>()
  const stale = new Map<string, number>()
  const unresolved = new Map<
    string,
    { namespace: string; dependent: Dependent; values: Map<string, string[]> }
  >()
  for (const { namespace, model, touched } of rows) {
    const prefix = modelPrefix(namespace, model)
    if (!touched) {
      prefixes.add(prefix)
      continue
    }
    const types = touched.columns.map(([, type]) => type)
    for (const dependent of touched.dependents ?? []) {
      const name = JSON.stringify([namespace, dependent])
      const of = unresolved.get(name) ?? { namespace, dependent, values: new Map() }
      unresolved.set(name, of)
      for (const row of touched.rows) {
        const values = dependent.values.map((column) => row[column] ?? null)
        // NULL links to nothing.
        if (!values.includes(null)) of.values.set(JSON.stringify(values), values as string[])
      }
    }
    for (const row of touched.rows) {
      const texts = row.map((text, i) => (text === null ? null : canonicalPrint(types[i] as string, text)))
      for (const [name, ...columns] of touched.shapes) {
        const key = keyOf(
          `${prefix}${name}:`,
          columns.map((column) => texts[column] ?? null),
        )
        const staleForMs = staleForOf(touched.stale, name)
        if (staleForMs === undefined) keys.add(key)
        else stale.set(key, staleForMs)
      }
    }
  }
  for (const prefix of prefixes) {
    for (const key of keys) if (key.startsWith(prefix)) keys.delete(key)
    for (const key of stale.keys()) if (key.startsWith(prefix)) stale.delete(key)
  }
  const asked: Unresolved[] = []
  for (const { namespace, dependent, values } of unresolved.values()) {
    if (dependent.steps.length > 0) asked.push({ namespace, dependent, values: [...values.values()] })
    else addDependent(namespace, dependent, [...values.values()], keys, stale)
  }
  return {
    keys: [...keys],
    prefixes: [...prefixes],
    stale,
    unresolved: asked.filter(({ values }) => values.length > 0),
  }
}

/** By own names alone: a field, and so a shape, may be called `constructor`. */
export function staleForOf(stale: Touched['stale'], shape: string): number | undefined {
  return stale && Object.hasOwn(stale, shape) ? stale[shape] : undefined
}

/**
 * Adds keys of a dependent shape to those that are to be cleared, or marked stale.
 *
 * @param texts of the key's columns, as Postgres prints them
 */
export function addDependent(
  namespace: string,
  dependent: Dependent,
  texts: readonly (readonly (string | null)[])[],
  keys: Set<string>,
  stale: Map<string, number>,
): void {
  const prefix = dependentPrefix(namespace, dependent)
  for (const row of texts) {
    const key = keyOf(
      prefix,
      row.map((text, i) => (text === null ? null : canonicalPrint(dependent.key[i]?.[1] as string, text))),
    )
    if (dependent.staleForMs === undefined) keys.add(key)
    else stale.set(key, dependent.staleForMs)
  }
}

/** What the keys of a dependent shape begin with. */
export function dependentPrefix(namespace: string, { model, shape }: Dependent): string {
  return `${modelPrefix(namespace, model)}${shape}:`
}
