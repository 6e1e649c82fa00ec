import { type BoundModel, keysAt } from './model.ts'

/** The columns that the keys of a row are made of, by field: its canonical input, as text; null is NULL. */
export type StoredRow = Readonly<Record<string, string | null>>

/** The fields of all shapes of a model, each once: what a {@link StoredRow} of it has. */
export function recordedFields({ definition }: BoundModel): readonly string[] {
  return [...new Set(definition.shapes.flatMap(({ fields }) => fields))]
}

/** The cache keys that rows are in, of every shape. */
export function keysOfStored(model: BoundModel, rows: readonly StoredRow[]): string[] {
  const keys = new Set<string>()
  for (const [shape, { addressOfStored }] of model.targets) {
    for (const row of rows) {
      try {
        for (const key of keysAt(model, shape, addressOfStored(row))) keys.add(key)
      } catch {
        // What can be no key, such as NaN, was never looked up.
      }
    }
  }
  return [...keys]
}
