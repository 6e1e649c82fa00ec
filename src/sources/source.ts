import type { TableInfo } from '../models/column.ts'
import type { Hop } from '../models/custom.ts'
import type { BoundModel, ModelDefinition } from '../models/model.ts'
import type { Shape } from '../models/shape.ts'
import type { StoredRow } from '../models/stored-row.ts'

export type ResultRow = Readonly<Record<string, unknown>>

/** The canonical texts of one key, in the order of the shape's fields; null is NULL. */
export type KeyTexts = readonly (string | null)[]

/** A condition on the rows of a model's table, in the language of the source. */
export interface Where {
  readonly condition: unknown
}

/** What a database says of its tables. */
export interface Catalog {
  /** Asks about a model's table. Rejects ModelError when the table or a declared column is not there. */
  describe(model: ModelDefinition): Promise<TableInfo>
}

/**
 * Where rows come from. A source knows nothing of stores and leases. The rows it returns are the caller's alone.
 */
export interface Source {
  /**
   * Runs one statement, begun after the call, that sees all that was visible on the primary by then.
   *
   * @returns one list of rows per key, in the order of `keys`, each list in the model's order
   */
  select(model: BoundModel, shape: Shape, keys: readonly KeyTexts[]): Promise<ResultRow[][]>

  /** As `select`, but only how many rows there are. */
  count(model: BoundModel, shape: Shape, keys: readonly KeyTexts[]): Promise<number[]>

  /**
   * The rows at the end of a path that begins at the rows with a key, each once per key, in the order of their model.
   *
   * @param last the model at the end of the path
   */
  related(
    model: BoundModel,
    shape: Shape,
    path: readonly Hop[],
    last: ModelDefinition,
    keys: readonly KeyTexts[],
  ): Promise<ResultRow[][]>

  /**
   * The rows of a model that a condition selects, in portions, each by a statement of its own on the primary. A row that
   * is there all the time is in one portion, by its primary key.
   */
  rowsWhere(model: BoundModel, where: Where, limit: number): AsyncGenerator<readonly StoredRow[], void>

  /** What the application's functions for a model load through: a Kysely instance, or a transaction. */
  dbOf(model: BoundModel): unknown
}
