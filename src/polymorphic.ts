import { InvalidKeyError, OptionError, UnknownTypeError } from './errors.ts'
import type { ModelCache } from './loaders/model-cache.ts'
import { createQuery, type Query } from './loaders/query.ts'
import type { ModelDefinition } from './models/model.ts'
import { checkOptionNames } from './options.ts'

/** A model of the cache, whatever its keys are. */
interface AnyModel<Result> {
  /** Not all of it: what takes rows and keys alike does not tell them apart. */
  readonly cache: Pick<ModelCache<never, never, Result>, 'filterAsync'>
}

type ResultOf<Model> = Model extends AnyModel<infer Result> ? Result : never

type Targets = Readonly<Record<string, AnyModel<unknown>>>

export interface PolymorphicOptions<Type extends string, Id extends string, To extends Targets> {
  /** The field that says which model the row points at. Text, or a number. */
  readonly type: Type
  /** The field with the primary key there; one field, whose texts Postgres reads as values of that column. */
  readonly id: Id
  /** The models by type, each with a primary key of one field. */
  readonly to: To
}

/** What a lookup needs of a row: its two fields. */
export type Pointing<Type extends string, Id extends string> = {
  readonly [F in Type]: string | number | bigint | null
} & { readonly [F in Id]: string | number | bigint | null }

/** The row of the type's model; of any of them while the type is not known. Null where the type is. */
export type TargetOf<To extends Targets, Type> = Type extends null
  ? null
  : `${Type & (string | number | bigint)}` extends keyof To
    ? ResultOf<To[`${Type & (string | number | bigint)}`]>
    : ResultOf<To[keyof To]>

/** Looks up what rows point at by a type and an id. */
export interface Polymorphic<Type extends string, Id extends string, To extends Targets> {
  /**
   * The row this one points at; null when type or id is null, or there is no such row: nothing in the database keeps it
   * from being gone. The same entry, and in a scope the same object, that `getAsync` of the target's model gives.
   *
   * Rejects UnknownTypeError for a type that is not declared; else as all lookups do.
   */
  lookup<const Row extends Pointing<Type, Id>>(row: Row): Promise<TargetOf<To, Row[Type]> | null>
  /** The lookup of `lookup`, to be made later. */
  getQuery<const Row extends Pointing<Type, Id>>(row: Row): Query<TargetOf<To, Row[Type]> | null>
}

export type CreatePolymorphic = <
  const Type extends string,
  const Id extends string,
  const To extends Targets,
>(
  options: PolymorphicOptions<Type, Id, To>,
) => Polymorphic<Type, Id, To>

/** @param definitionOf of a model of this cache; undefined for anything else */
export function polymorphicOf(
  definitionOf: (model: object) => ModelDefinition | undefined,
): CreatePolymorphic {
  return (options) => {
    checkOptionNames('polymorphic', options, ['type', 'id', 'to'])
    const { type, id, to } = options
    for (const [option, field] of Object.entries({ type, id }))
      if (typeof field !== 'string' || field === '')
        throw new OptionError(`polymorphic.${option}`, 'the name of a field', field)
    if (typeof to !== 'object' || to === null || Object.keys(to).length === 0)
      throw new OptionError('polymorphic.to', 'an object of models, by type', to)
    const targets = new Map(
      Object.entries(to).map(([name, model]) => [name, targetOf(name, model, definitionOf(model))]),
    )

    async function lookup(row: Readonly<Record<string, unknown>>, onlyCache: boolean): Promise<unknown> {
      const [name, key] = [row[type], row[id]]
      for (const [field, value] of [[type, name] as const, [id, key] as const])
        if (value === undefined)
          throw new InvalidKeyError(`polymorphic ${type}, ${id}`, field, 'must not be undefined')
      if (name === null || key === null) return null
      const target = targets.get(String(name))
      if (!target) throw new UnknownTypeError(type, String(name), [...targets.keys()])
      return target(key, onlyCache)
    }
    return {
      lookup: (row: never) => lookup(row, false),
      getQuery: (row: never) => createQuery((onlyCache) => lookup(row, onlyCache)),
    } as never
  }
}

function targetOf(
  type: string,
  model: AnyModel<unknown>,
  definition: ModelDefinition | undefined,
): (id: unknown, onlyCache: boolean) => Promise<unknown> {
  if (!definition) throw new OptionError(`polymorphic.to.${type}`, 'a model of this cache', model)
  const [field, ...others] = definition.primaryKey
  if (field === undefined || others.length > 0)
    throw new OptionError(
      `polymorphic.to.${type}`,
      'a model whose primary key is one field',
      definition.primaryKey,
    )
  const cache = model.cache as ModelCache<object, object, unknown>
  return (id, onlyCache) =>
    onlyCache
      ? cache.getQuery({ [field]: id }).resolveAsync({ onlyCache })
      : cache.getAsyncOrNone({ [field]: id })
}
