/**
 * What is different in type, prototype or content between two values, as paths: stricter than deep equality, which
 * overlooks key attributes, hidden keys and some prototypes. Empty: the two cannot be told apart from outside.
 */
export function differences(a: unknown, b: unknown, path = '$'): string[] {
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) {
    return Object.is(a, b) ? [] : [`${path}: ${String(a)} is not ${String(b)}`]
  }
  if (Object.getPrototypeOf(a) !== Object.getPrototypeOf(b)) return [`${path}: prototypes differ`]
  if (a instanceof Date && b instanceof Date && !Object.is(a.getTime(), b.getTime()))
    return [`${path}: times differ`]
  if (a instanceof Uint8Array)
    return Buffer.compare(a, b as Uint8Array) === 0 ? [] : [`${path}: bytes differ`]
  if (Array.isArray(a) !== Array.isArray(b)) return [`${path}: only one is an array`]
  const keys = Reflect.ownKeys(a)
  if (keys.length !== Reflect.ownKeys(b).length) return [`${path}: keys differ`]
  return keys.flatMap((key) => {
    const here = Object.getOwnPropertyDescriptor(a, key)
    const there = Object.getOwnPropertyDescriptor(b, key)
    const at = `${path}.${String(key)}`
    if (!here || !there) return [`${at}: only in one`]
    const attributes = ['writable', 'enumerable', 'configurable'] as const
    if (attributes.some((attribute) => here[attribute] !== there[attribute]))
      return [`${at}: attributes differ`]
    return differences(here.value, there.value, at)
  })
}

/** All objects inside a value, itself included. */
export function objectsIn(value: unknown): object[] {
  if (typeof value !== 'object' || value === null) return []
  if (value instanceof Uint8Array) return [value]
  return [value, ...Object.values(value).flatMap(objectsIn)]
}
