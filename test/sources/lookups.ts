import { bindModel, defineModel, type ModelMeta, shapeOf } from '../../src/models/model.ts'
import type { Target } from '../../src/models/target.ts'
import type { Database } from '../../src/sources/database.ts'
import { KyselySource } from '../../src/sources/kysely.ts'
import type { ResultRow } from '../../src/sources/source.ts'

type Values = Readonly<Record<string, unknown>>

/** Lookups in a source: no store, no wave, one statement. */
export interface Lookups {
  /** A list for each of `keys`, which are all of one shape of `keyFields`. */
  get(...keys: Values[]): Promise<ResultRow[][]>
  /** The same for `filterFields`. */
  filter(...filters: Values[]): Promise<ResultRow[][]>
}

/** Declares a model of a table and binds it to what `db` says of the table. */
export async function lookups(db: unknown, table: string, meta: ModelMeta): Promise<Lookups> {
  const source = new KyselySource(db as Database)
  const definition = defineModel(table, meta)
  const model = bindModel('test', definition, await source.describe(definition), 0, [])
  const select = (kind: 'key' | 'filter', values: readonly Values[]) => {
    const shape = shapeOf(definition, kind, values[0])
    const { addressOf } = model.targets.get(shape) as Target
    return source.select(
      model,
      shape,
      values.map((each) => addressOf(each).texts),
    )
  }
  return { get: (...keys) => select('key', keys), filter: (...filters) => select('filter', filters) }
}
