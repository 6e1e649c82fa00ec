import { readdirSync, readFileSync } from 'node:fs'
import { posix } from 'node:path'
import ts from 'typescript'
import { describe, expect, test } from 'vitest'

/** The parts of src, lowest first. A file imports from its own layer and from those below, never from above. */
const LAYERS = [
  ['errors', 'options', 'telemetry'],
  ['models'],
  ['stores', 'sources'],
  ['loaders', 'invalidation'],
  ['cache-options', 'custom-caches', 'plans', 'polymorphic'],
  ['database-cache'],
  ['cache'],
  ['integrations', 'testing', 'cli'],
  ['index'],
]

/** Neighbours in one layer that do not know each other: stores never see SQL, sources never see Redis. */
const STRANGERS = ['stores', 'sources']

const src = new URL('../src/', import.meta.url)

test('imports in src run downward only', () => {
  const files = readdirSync(src, { recursive: true, encoding: 'utf8' }).filter((path) => path.endsWith('.ts'))
  const problems = files.flatMap((path) => problemsIn(path, readFileSync(new URL(path, src), 'utf8')))
  expect(problems, problems.join('\n')).toEqual([])
})

describe('what counts as a wrong import', () => {
  test.each([
    ['stores/redis.ts', `import { Model } from '../models/model.ts'`],
    ['stores/redis.ts', `import { scripts } from './scripts.ts'`],
    ['stores/redis.ts', `import { Redis } from 'ioredis'`],
    ['loaders/wave.ts', `import { touchedKeys } from '../invalidation/touched.ts'`],
    ['index.ts', `export { createModelCache } from './cache.ts'`],
  ])('%s may say: %s', (path, text) => {
    expect(problemsIn(path, text)).toEqual([])
  })

  test.each([
    ['models/key.ts', `import { Wave } from '../loaders/wave.ts'`, 'models is below loaders'],
    ['models/key.ts', `import type { Wave } from '../loaders/wave.ts'`, 'models is below loaders'],
    ['models/key.ts', `export * from '../loaders/wave.ts'`, 'models is below loaders'],
    ['models/key.ts', `const wave = await import('../loaders/wave.ts')`, 'models is below loaders'],
    ['errors.ts', `import { createModelCache } from 'loadstone'`, 'errors is below index'],
    ['cache.ts', `import { contract } from 'loadstone/testing'`, 'cache is below testing'],
    [
      'stores/redis.ts',
      `import { sql } from '../sources/kysely.ts'`,
      'stores and sources do not know each other',
    ],
    [
      'sources/sql.ts',
      `import { redis } from '../stores/redis.ts'`,
      'sources and stores do not know each other',
    ],
    ['utils/misc.ts', '', "'utils' is in no layer"],
    ['models/key.ts', `import { misc } from '../utils/misc.ts'`, "'utils' is in no layer"],
  ])('%s may not say: %s', (path, text, problem) => {
    expect(problemsIn(path, text)).toEqual([expect.stringContaining(problem)])
  })
})

/** What is wrong with the imports of the file at `path`, relative to src: one line each. */
function problemsIn(path: string, text: string): string[] {
  const from = partOf(path)
  if (layerOf(from) === -1) return [noLayer(path, from)]
  // Reads every form: import, import type, export from, import().
  const { importedFiles } = ts.preProcessFile(text, true, true)
  return importedFiles.flatMap(({ fileName: specifier }) => {
    const target = targetOf(path, specifier)
    const problem = target && problemBetween(path, from, partOf(target))
    return problem ? [`src/${path} imports '${specifier}': ${problem}`] : []
  })
}

function problemBetween(path: string, from: string, to: string): string | undefined {
  if (layerOf(to) === -1) return noLayer(path, to)
  if (layerOf(to) > layerOf(from)) return `${from} is below ${to}`
  if (from !== to && STRANGERS.includes(from) && STRANGERS.includes(to)) {
    return `${from} and ${to} do not know each other`
  }
  return undefined
}

/** The file under src that an import names, relative to src; undefined for a package of others. */
function targetOf(path: string, specifier: string): string | undefined {
  if (specifier.startsWith('.')) return posix.join(posix.dirname(path), specifier)
  const [name, subpath = 'index'] = specifier.split(/\/(.*)/)
  return name === 'loadstone' ? subpath : undefined
}

/** The folder or file directly under src that `path` belongs to: `stores/redis.ts` -> `stores`. */
function partOf(path: string): string {
  return (path.split('/')[0] as string).replace(/\.ts$/, '')
}

function layerOf(part: string): number {
  return LAYERS.findIndex((parts) => parts.includes(part))
}

function noLayer(path: string, part: string): string {
  return `src/${path}: '${part}' is in no layer; give it a place in test/layers.test.ts`
}
