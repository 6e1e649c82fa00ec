import { LoadError, messageOf, show } from '../errors.ts'
import type { CustomLoad } from '../models/custom.ts'
import type { ModelDefinition } from '../models/model.ts'
import type { Target } from '../models/target.ts'
import type { KeyTexts, Source } from '../sources/source.ts'

/**
 * Loads the keys of a custom cache: a result per key.
 *
 * Rejects LoadError when the application's function throws, does not end in time, or does not return one result per
 * key; what the database says for what is built in.
 */
export async function runLoad(
  source: Source,
  { model, shape }: Target,
  keys: readonly KeyTexts[],
  values: readonly Readonly<Record<string, unknown>>[],
): Promise<readonly unknown[]> {
  const { name, load } = shape.custom as NonNullable<typeof shape.custom>
  switch (load.kind) {
    case 'count':
      return source.count(model, shape, keys)
    case 'exists':
      return (await source.count(model, shape, keys)).map((count) => count > 0)
    case 'first':
      return (await source.select(model, shape, keys)).map(([row]) => row ?? null)
    case 'related': {
      const last = load.path.at(-1)?.definition() as ModelDefinition
      const lists = await source.related(model, shape, load.path, last, keys)
      return load.single ? lists.map(([row]) => row ?? null) : lists
    }
    case 'load':
      return loadThrough(source.dbOf(model), name, load, values)
  }
}

async function loadThrough(
  db: unknown,
  name: string,
  { load, timeoutMs }: Extract<CustomLoad, { kind: 'load' }>,
  values: readonly Readonly<Record<string, unknown>>[],
): Promise<readonly unknown[]> {
  const results = await within(name, timeoutMs, async () => load(values, { db: db as never }))
  if (!Array.isArray(results) || results.length !== values.length) {
    const given = Array.isArray(results) ? `${results.length} results` : show(results)
    throw new LoadError(
      name,
      `load must return one result for each of its ${values.length} keys, but gave ${given}`,
    )
  }
  return results
}

/**
 * What the application's function loads. Rejects LoadError when it throws, or does not end in time.
 *
 * @param timeoutMs undefined for as long as it takes
 */
export async function within<T>(
  name: string,
  timeoutMs: number | undefined,
  load: () => Promise<T>,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = () =>
    new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new LoadError(name, `load did not end within ${timeoutMs} ms`)),
        timeoutMs,
      )
    })
  try {
    return await (timeoutMs === undefined ? load() : Promise.race([load(), late()]))
  } catch (error) {
    throw error instanceof LoadError ? error : new LoadError(name, messageOf(error), { cause: error })
  } finally {
    clearTimeout(timer)
  }
}
