import type { ParseArgsConfig } from 'node:util'
import type { VerifyProgress } from '../invalidation/verify.ts'
import { UsageError } from './errors.ts'
import type { CliDatabase } from './load-cache.ts'
import { describeFindings, describeReport } from './report.ts'
import { formatCount, progressLine, stylesFor, type Terminal } from './terminal.ts'

/** `findings`: what was looked at is not as it should be. `error`: it could not be looked at. */
export const EXIT = { ok: 0, findings: 1, error: 2 } as const

/** What was given on the command line. */
export interface Given {
  readonly options: Readonly<Record<string, string | boolean | readonly (string | boolean)[] | undefined>>
  readonly names: readonly string[]
}

export interface Command {
  /** What may follow the name of the command, but for options. */
  readonly parameters: string
  readonly summary: string
  /** Lines of the help, an option each. */
  readonly help: readonly string[]
  readonly options: NonNullable<ParseArgsConfig['options']>
  /** @throws UsageError for what is known to be wrong before a cache is loaded */
  check?(given: Given): void
  /** Returns the exit code. */
  run(cache: CliDatabase, given: Given, terminal: Terminal): Promise<number>
}

const JSON_HELP = '--json           for programs'

export const COMMANDS: Readonly<Record<string, Command>> = {
  install: {
    parameters: '',
    summary: 'creates the outbox and the triggers that record writes; safe to repeat',
    help: ['--print          changes nothing; prints the SQL, for a migration'],
    options: { print: { type: 'boolean' } },
    async run(cache, { options }, { stdout }) {
      if (options.print) stdout.write(await cache.installSql())
      else stdout.write(changeList(await cache.install(), 'nothing to do, all is installed'))
      return EXIT.ok
    },
  },
  uninstall: {
    parameters: '',
    summary: 'removes them, when no process uses the cache any more',
    help: [],
    options: {},
    async run(cache, _, { stdout }) {
      stdout.write(changeList(await cache.uninstall(), 'nothing to do, nothing is installed'))
      return EXIT.ok
    },
  },
  verify: {
    parameters: '',
    summary: 'compares cached entries with the database, and measures how many are stale',
    help: [
      '--sample <n>     how many entries, drawn at random; default 10000; all: every entry',
      '--settle <ms>    how long invalidations may be in flight; default 1000',
      '--model <name>   only this model; may be repeated',
      '--repair         deletes what is stale',
      JSON_HELP,
      'Run it with the type parsers and plugins of the application: rows are compared as it reads them.',
    ],
    options: {
      sample: { type: 'string' },
      settle: { type: 'string' },
      model: { type: 'string', multiple: true },
      repair: { type: 'boolean' },
      json: { type: 'boolean' },
    },
    check: verifyOptions,
    async run(cache, given, { stdout, stderr, env }) {
      const progress = progressLine(stderr, env)
      const onProgress = ({ phase, done, total }: VerifyProgress) => progress.show(PHASES[phase], done, total)
      const report = await cache.verify({ ...verifyOptions(given), onProgress }).finally(() => progress.end())
      stdout.write(given.options.json ? toJson(report) : describeReport(report, stylesFor(stdout, env)))
      return report.stale > 0 ? EXIT.findings : EXIT.ok
    },
  },
  doctor: {
    parameters: '',
    summary: 'looks at Redis, Postgres, triggers, outbox and indexes, and tells what to cure',
    help: [JSON_HELP],
    options: { json: { type: 'boolean' } },
    async run(cache, { options }, { stdout, env }) {
      const findings = await cache.doctor()
      stdout.write(options.json ? toJson(findings) : describeFindings(findings, stylesFor(stdout, env)))
      return findings.some(({ status }) => status === 'fail') ? EXIT.findings : EXIT.ok
    },
  },
  clear: {
    parameters: '<model...>',
    summary: 'forgets everything cached for models',
    help: ['--all            for every model'],
    options: { all: { type: 'boolean' } },
    check({ options, names }) {
      if (names.length === 0 && !options.all) throw new UsageError('clear what? Name models, or say --all')
      if (names.length > 0 && options.all) throw new UsageError('either name models, or say --all')
    },
    async run(cache, { names }, { stdout }) {
      const models = names.length > 0 ? names : cache.modelNames
      const unknown = models.find((name) => !cache.modelNames.includes(name))
      if (unknown !== undefined) {
        throw new UsageError(`there is no model '${unknown}'; models are ${cache.modelNames.join(', ')}`)
      }
      await cache.clear(models)
      stdout.write(`cleared ${models.join(', ')}\n`)
      return EXIT.ok
    },
  },
}

const PHASES: Record<VerifyProgress['phase'], string> = {
  scan: 'entries found',
  check: 'entries compared',
  settle: 'that differ looked at again',
}

function verifyOptions({ options }: Given) {
  return {
    ...(options.sample !== undefined && {
      sample: options.sample === 'all' ? Number.POSITIVE_INFINITY : wholeNumber('sample', options.sample, 1),
    }),
    ...(options.settle !== undefined && { settleMs: wholeNumber('settle', options.settle, 0) }),
    ...(Array.isArray(options.model) && { models: options.model.map(String) }),
    repair: options.repair === true,
  }
}

function wholeNumber(option: string, given: unknown, min: number): number {
  const number = Number(given)
  if (given === '' || !Number.isSafeInteger(number) || number < min) {
    throw new UsageError(`--${option} takes a whole number of at least ${formatCount(min)}, not '${given}'`)
  }
  return number
}

function changeList(changes: readonly string[], none: string): string {
  return changes.length === 0 ? `${none}\n` : `${changes.join('\n')}\n`
}

function toJson(value: unknown): string {
  return `${JSON.stringify(value, undefined, 2)}\n`
}
