// Checks what a user gets, not what we have: packs dist, installs the tarball elsewhere, imports and compiles it.
import { execFileSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const MAX_PACKED_BYTES = 250_000
const ALLOWED_FILES = /^(dist\/.+\.(js|d\.ts)|package\.json|README\.md|LICENSE|CHANGELOG\.md)$/
const REQUIRED_FILES = ['package.json', 'README.md', 'LICENSE', 'CHANGELOG.md']

const root = fileURLToPath(new URL('..', import.meta.url))
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const scratch = mkdtempSync(join(tmpdir(), 'loadstone-package-'))

try {
  step('publint', () => run('npx', ['publint', '--strict'], root))
  step('are the types wrong', () => run('npx', ['attw', '--pack', '.', '--profile', 'esm-only'], root))
  const tarball = step('contents of the tarball', packAndInspect)
  const project = step('install into an empty project', () => installTarball(tarball))
  step('import without optional peers', () => importSubpaths(project, ['.']))
  step('install the optional peers', () => install(project, peers({ optional: true })))
  step(`import ${subpaths().join(' ')}`, () => importSubpaths(project, subpaths()))
  step('compile a consumer', () => compileConsumer(project))
} catch (error) {
  console.error(`\ncheck:package failed\n${error.message}`)
  process.exitCode = 1
} finally {
  rmSync(scratch, { recursive: true, force: true })
}

function packAndInspect() {
  const output = run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', scratch], root)
  const [{ filename, files, size }] = Object.values(JSON.parse(output))
  const paths = files.map((file) => file.path)

  const unwanted = paths.filter((path) => !ALLOWED_FILES.test(path) || path.includes('.test.'))
  assert(unwanted.length === 0, `these files do not belong in the package: ${unwanted.join(', ')}`)
  const missing = [...REQUIRED_FILES, ...exportedFiles()].filter((path) => !paths.includes(path))
  assert(missing.length === 0, `the package lacks: ${missing.join(', ')} (was it built? npm run build)`)
  // Maps are not shipped, so a pointer to one would lead nowhere.
  const pointing = paths.filter((path) =>
    readFileSync(join(root, path), 'utf8').includes('//# sourceMappingURL='),
  )
  assert(
    pointing.length === 0,
    `these files point to source maps that are not shipped: ${pointing.join(', ')}`,
  )
  assert(size <= MAX_PACKED_BYTES, `the tarball has ${size} bytes, more than ${MAX_PACKED_BYTES}`)
  console.log(`  ${paths.length} files, ${(size / 1024).toFixed(1)} kB packed`)
  return join(scratch, filename)
}

function installTarball(tarball) {
  const project = join(scratch, 'project')
  cpSync(join(root, 'scripts/consumer'), project, { recursive: true })
  writeFileSync(
    join(project, 'package.json'),
    JSON.stringify({ name: 'consumer', private: true, type: 'module' }),
  )
  install(project, [
    tarball,
    ...peers({ optional: false }),
    versioned('typescript'),
    versioned('@types/node'),
  ])
  return project
}

function install(project, packages) {
  if (packages.length === 0) return
  run('npm', ['install', '--prefer-offline', '--no-audit', '--no-fund', ...packages], project)
}

function importSubpaths(project, wanted) {
  const specifiers = wanted.map((subpath) => subpath.replace('.', manifest.name))
  const script = specifiers.map((specifier) => {
    const options = specifier.endsWith('.json') ? `, { with: { type: 'json' } }` : ''
    return `await import('${specifier}'${options})`
  })
  run(process.execPath, ['--no-warnings', '--input-type=module', '-e', script.join('\n')], project)
}

/** `skipLibCheck` is off: our declarations must hold under the strictest settings of a user. */
function compileConsumer(project) {
  const imports = subpaths().filter((subpath) => !subpath.endsWith('.json'))
  const lines = imports.map(
    (subpath, i) => `export * as subpath${i} from '${subpath.replace('.', manifest.name)}'`,
  )
  writeFileSync(join(project, 'subpaths.ts'), `${lines.join('\n')}\n`)
  run('npx', ['--no', '--', 'tsc', '-p', '.'], project)
}

function subpaths() {
  return Object.keys(manifest.exports)
}

function exportedFiles() {
  const targets = Object.values(manifest.exports).flatMap((target) =>
    typeof target === 'string' ? [target] : Object.values(target),
  )
  return targets.map((target) => target.replace('./', ''))
}

function peers({ optional }) {
  const names = Object.keys(manifest.peerDependencies ?? {})
  const isOptional = (name) => manifest.peerDependenciesMeta?.[name]?.optional === true
  return names.filter((name) => isOptional(name) === optional).map(versioned)
}

/** A package in the version that we develop against. */
function versioned(name) {
  return `${name}@${manifest.devDependencies[name] ?? manifest.peerDependencies[name]}`
}

function step(title, work) {
  console.log(`- ${title}`)
  return work()
}

function assert(condition, message) {
  if (!condition) throw new Error(message)
}

function run(command, args, cwd) {
  try {
    return execFileSync(command, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
  } catch (error) {
    throw new Error(`${command} ${args.join(' ')}\n${error.stdout ?? ''}${error.stderr ?? ''}`)
  }
}
