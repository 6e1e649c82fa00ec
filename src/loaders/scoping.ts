import { ScopeDimensionError } from '../errors.ts'
import type { ModelDefinition } from '../models/model.ts'
import type { Address, Dimension, Shape } from '../models/shape.ts'
import type { Target } from '../models/target.ts'
import { currentScope } from './scope.ts'

type Values = Readonly<Record<string, unknown>>

/**
 * The values of a lookup, with those of the current scope in the fields of the dimensions, whatever was given for them.
 *
 * @throws ScopeDimensionError
 */
export function inScope({ name }: ModelDefinition, { dimensions }: Shape, values: Values): Values {
  return dimensions.length === 0 ? values : { ...values, ...fromScope(name, dimensions) }
}

/**
 * The address of a lookup in the current scope. Where the lookup names the field of a dimension itself, it finds
 * something only if it names what the scope says.
 *
 * @param scoped of {@link inScope}
 * @throws InvalidKeyError
 */
export function addressIn(target: Target, values: Values, scoped: Values): Address {
  const address = target.addressOf(scoped)
  const { asked, fields, dimensions } = target.shape
  if (asked.length + dimensions.length === fields.length) return address
  const named = target.addressOf({ ...scoped, ...values })
  if (named.key === address.key) return address
  // '#' is escaped in namespaces: it is no key of the store.
  return { key: `##elsewhere:${named.key}`, texts: named.texts, route: 'nowhere' }
}

/**
 * What is to be invalidated, with the dimensions it does not say. A row says itself whose it is.
 *
 * @throws ScopeDimensionError
 */
export function withDimensions<Given>({ name, dimensions }: ModelDefinition, given: Given): Given {
  if (dimensions.length === 0 || typeof given !== 'object' || given === null) return given
  const missing = dimensions.filter(
    ({ field }) => !Object.hasOwn(given, field) || (given as Values)[field] === undefined,
  )
  return missing.length === 0 ? given : { ...given, ...fromScope(name, missing) }
}

function fromScope(model: string, dimensions: readonly Dimension[]): Values {
  const scope = currentScope()
  return Object.fromEntries(
    dimensions.map(({ name, field }) => {
      const value = scope?.scopeBy[name]
      if (value === undefined) throw new ScopeDimensionError(model, name, scope !== undefined)
      return [field, value]
    }),
  )
}
