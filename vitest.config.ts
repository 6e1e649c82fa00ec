import { readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'

const root = new URL('./', import.meta.url)
const { name, exports } = JSON.parse(readFileSync(new URL('package.json', root), 'utf8'))

/** Tests import the package by its public names; these lead to src, not to a build that may be old. */
const alias = Object.entries<string | { default: string }>(exports).flatMap(([subpath, target]) => {
  if (typeof target === 'string') return []
  const source = target.default.replace('./dist/', 'src/').replace(/\.js$/, '.ts')
  const publicName = subpath.replace('.', name)
  return [{ find: new RegExp(`^${publicName}$`), replacement: fileURLToPath(new URL(source, root)) }]
})

export default defineConfig({
  resolve: { alias },
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: 'test/servers/global-setup.ts',
    pool: 'forks',
    // Much of the time goes into waiting for servers, so that two keep a small machine busy.
    maxWorkers: Math.max(2, availableParallelism() - 1),
    reporters: ['default'],
    testTimeout: 20_000,
    hookTimeout: 30_000,
  },
})
