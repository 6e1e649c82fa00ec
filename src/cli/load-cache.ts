import { existsSync, statSync } from 'node:fs'
import { relative, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { DatabaseOperations } from '../database-cache.ts'
import { messageOf } from '../errors.ts'
import { ModuleError } from './errors.ts'

/** What the commands use of a cache. Another copy of the package may have made it, so no class and no registry is asked. */
export interface CliCache extends CliDatabase {
  readonly databases: ReadonlyMap<string, CliDatabase>
  close(): Promise<void>
}

/** What the commands use of one of its databases. */
export type CliDatabase = Pick<DatabaseOperations, (typeof METHODS)[number] | 'modelNames'>

const METHODS = ['install', 'installSql', 'uninstall', 'verify', 'doctor', 'clear'] as const

export interface CacheAddress {
  /** Path of the module, relative to `cwd`. Default: the first of {@link DEFAULT_MODULES} that is there. */
  readonly module: string | undefined
  /** Default: `cache`, `default`, or the only export that is a cache. */
  readonly exportName: string | undefined
  readonly cwd: string
}

/** The last one works where Node reads TypeScript: from 22.18 on, or with `--import tsx`. */
export const DEFAULT_MODULES = ['loadstone.config.js', 'loadstone.config.mjs', 'loadstone.config.ts'] as const

const DEFAULT_EXPORTS = ['cache', 'default']

/**
 * The cache that a module of the application exports.
 *
 * Rejects ModuleError: there is no such module, it fails, it exports no cache, or one without models.
 */
export async function loadCache({ module, exportName, cwd }: CacheAddress): Promise<CliCache> {
  const path = findModule(module, cwd)
  const name = relative(cwd, path) || path
  const exported = exportsOf(await importModule(path, name))
  const cache = choose(exported, exportName, name)
  if ([cache, ...cache.databases.values()].every(({ modelNames }) => modelNames.length === 0)) {
    await cache.close()
    throw new ModuleError(
      `the cache of ${name} has no models: name a module that imports those which call cache.model()`,
    )
  }
  return cache
}

function findModule(module: string | undefined, cwd: string): string {
  if (module !== undefined) {
    const path = resolve(cwd, module)
    if (!existsSync(path)) throw new ModuleError(`there is no module ${module} in ${cwd}`)
    if (statSync(path).isDirectory()) throw new ModuleError(`${module} is a folder: name the module in it`)
    return path
  }
  const found = DEFAULT_MODULES.map((name) => resolve(cwd, name)).find((path) => existsSync(path))
  if (found) return found
  throw new ModuleError(
    'which cache? Name the module of your application that exports it: --module ./path/to/cache.js\n' +
      `or have one of ${DEFAULT_MODULES.join(', ')} in ${cwd}`,
  )
}

async function importModule(path: string, name: string): Promise<Record<string, unknown>> {
  try {
    return (await import(pathToFileURL(path).href)) as Record<string, unknown>
  } catch (error) {
    const { code } = (error ?? {}) as { code?: unknown }
    if (code === 'ERR_UNKNOWN_FILE_EXTENSION' && /\.[cm]?tsx?$/.test(path)) {
      throw new ModuleError(
        `this Node does not read TypeScript: name what ${name} is built to, or use Node 22.18 or newer,\n` +
          'or install tsx and set NODE_OPTIONS="--import tsx"',
        { cause: error },
      )
    }
    throw new ModuleError(`${name} could not be loaded: ${messageOf(error)}`, { cause: error })
  }
}

/** The exports, and those of a CommonJS module that Node does not see by itself. */
function exportsOf(module: Record<string, unknown>): ReadonlyMap<string, unknown> {
  const exported = new Map(Object.entries(module))
  const inner = module.default
  if (typeof inner === 'object' && inner !== null && !isCache(inner)) {
    for (const [name, value] of Object.entries(inner)) if (!exported.has(name)) exported.set(name, value)
  }
  return exported
}

function choose(exported: ReadonlyMap<string, unknown>, wanted: string | undefined, name: string): CliCache {
  const caches = [...exported]
    .filter(([, value]) => isCache(value))
    .map(([each]) => each)
    .sort()
  const hint = caches.length > 0 ? `; caches are ${caches.join(', ')}: choose with --export` : ''
  if (wanted !== undefined) {
    const value = exported.get(wanted)
    if (isCache(value)) return value
    throw new ModuleError(
      exported.has(wanted)
        ? `export '${wanted}' of ${name} is no cache made by createModelCache${hint}`
        : `${name} has no export '${wanted}'; it has ${[...exported.keys()].sort().join(', ') || 'none'}`,
    )
  }
  const only = caches.length === 1 ? caches : []
  for (const each of [...DEFAULT_EXPORTS, ...only]) {
    const value = exported.get(each)
    if (isCache(value)) return value
  }
  throw new ModuleError(
    `${name} exports no cache made by createModelCache as ${DEFAULT_EXPORTS.join(' or ')}${hint}`,
  )
}

function isCache(value: unknown): value is CliCache {
  if (typeof value !== 'object' || value === null) return false
  const candidate = value as Record<string, unknown>
  return (
    [...METHODS, 'close'].every((method) => typeof candidate[method] === 'function') &&
    Array.isArray(candidate.modelNames) &&
    candidate.databases instanceof Map
  )
}
