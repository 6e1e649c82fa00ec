import { execFile } from 'node:child_process'
import { cp, mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const root = fileURLToPath(new URL('..', import.meta.url))

/**
 * Compiles src and what runs in the contenders' processes, with the settings of `npm run build`: what is timed is the
 * plain JS that users run, not what tsx makes of it. Types are not checked here.
 *
 * The output is in `.tmp`, within the repository, where Node finds `node_modules`.
 */
export class Build {
  readonly #directory = join(root, '.tmp', `bench-${process.pid}`)

  /** @returns the compiled child.js */
  async main(): Promise<string> {
    const out = join(this.#directory, 'main')
    await compile(out, root, [join(root, 'bench/child.ts'), join(root, 'src/index.ts')])
    return join(out, 'bench/child.js')
  }

  /**
   * The same benchmarks on the `src` of another checkout, which needs the same dependencies.
   *
   * @returns the compiled child.js
   */
  async other(checkout: string): Promise<string> {
    const out = join(this.#directory, 'other')
    await compile(out, checkout, [join(checkout, 'src/index.ts')])
    await cp(join(this.#directory, 'main/bench'), join(out, 'bench'), { recursive: true })
    return join(out, 'bench/child.js')
  }

  remove(): Promise<void> {
    return rm(this.#directory, { recursive: true, force: true })
  }
}

async function compile(outDir: string, rootDir: string, files: readonly string[]): Promise<void> {
  await mkdir(outDir, { recursive: true })
  const compilerOptions = { noEmit: false, noCheck: true, rootDir, outDir, types: [], paths: {} }
  const config = join(outDir, 'tsconfig.json')
  const settings = { extends: join(root, 'tsconfig.json'), compilerOptions, include: [], files }
  await writeFile(config, JSON.stringify(settings))
  await promisify(execFile)(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', config])
}
