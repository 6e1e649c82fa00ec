import { readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { LoadstoneError, messageOf } from '../errors.ts'
import { COMMANDS, type Command, EXIT, type Given } from './commands.ts'
import { UsageError } from './errors.ts'
import { type CliCache, type CliDatabase, DEFAULT_MODULES, loadCache } from './load-cache.ts'
import { stylesFor, type Terminal } from './terminal.ts'

const CACHE_OPTIONS = {
  module: { type: 'string', short: 'm' },
  export: { type: 'string' },
  using: { type: 'string' },
  help: { type: 'boolean', short: 'h' },
} as const

/** A cache that cannot be closed, as its servers are gone, must not keep the command from ending. */
const CLOSE_WITHIN_MS = 3000

/**
 * Follows a command line. Never rejects: what goes wrong is told on stderr.
 *
 * @param args without the paths of Node and of the program
 * @returns the exit code: 0 fine, 1 there are findings, 2 it could not be done
 */
export async function run(args: readonly string[], terminal: Terminal): Promise<number> {
  try {
    return await follow(args, terminal)
  } catch (error) {
    const { red } = stylesFor(terminal.stderr, terminal.env)
    terminal.stderr.write(`${red('loadstone:')} ${messageOf(error)}\n`)
    if (error instanceof UsageError) terminal.stderr.write('loadstone help tells what it can do\n')
    // A fault of ours or of the module that was loaded: where it happened is what one needs to know.
    const stack = error instanceof LoadstoneError ? stackOf(error.cause) : stackOf(error)
    if (stack) terminal.stderr.write(`${stack}\n`)
    return EXIT.error
  }
}

/** The stack of an error that nobody expected; what servers and Loadstone say is told by the message. */
function stackOf(error: unknown): string | undefined {
  const expected =
    error instanceof LoadstoneError || (error as { code?: unknown } | undefined)?.code !== undefined
  return error instanceof Error && !expected ? error.stack : undefined
}

async function follow(args: readonly string[], terminal: Terminal): Promise<number> {
  const { stdout } = terminal
  const [name, ...rest] = args
  if (name === '--version' || name === '-v') {
    stdout.write(`${version()}\n`)
    return EXIT.ok
  }
  if (name === undefined || name === 'help' || name === '--help' || name === '-h') {
    const [about] = rest
    stdout.write(about === undefined ? overview() : commandHelp(about, commandOf(about)))
    // Nothing was asked for, so a script that meant to ask for something learns of it.
    return name === undefined ? EXIT.error : EXIT.ok
  }
  const command = commandOf(name)
  const given = parse(name, command, rest)
  if (given.options.help) {
    stdout.write(commandHelp(name, command))
    return EXIT.ok
  }
  command.check?.(given)
  const { module, export: exportName, using } = given.options as Partial<Record<string, string>>
  const cache = await loadCache({ module, exportName, cwd: terminal.cwd })
  try {
    const code = await command.run(databaseOf(cache, using), given, terminal)
    if (using === undefined && cache.databases.size > 0)
      terminal.stderr.write(
        `this was its first database; others: --using ${[...cache.databases.keys()].join(', ')}\n`,
      )
    return code
  } finally {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, CLOSE_WITHIN_MS)
    })
    await Promise.race([cache.close().catch(() => undefined), late])
    clearTimeout(timer)
  }
}

/** @throws UsageError when there is none of that name */
function databaseOf(cache: CliCache, using: string | undefined): CliDatabase {
  const database = using === undefined ? cache : cache.databases.get(using)
  if (database) return database
  const names = [...cache.databases.keys()].join(', ') || 'none is declared'
  throw new UsageError(`the cache has no database '${using}'; databases are ${names}`)
}

function commandOf(name: string): Command {
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined
  if (command) return command
  throw new UsageError(
    `there is no command '${name}'; commands are ${Object.keys(COMMANDS).join(', ')}, help`,
  )
}

function parse(name: string, { options, parameters }: Command, args: readonly string[]): Given {
  try {
    const { values, positionals } = parseArgs({
      args: [...args],
      options: { ...CACHE_OPTIONS, ...options },
      allowPositionals: parameters !== '',
    })
    return { options: values as Given['options'], names: positionals }
  } catch (error) {
    // Node says it well, in a sentence or two; the second one is about arguments that begin with a dash.
    throw new UsageError(`${name}: ${messageOf(error).replace(/\. To specify .*$/s, '')}`)
  }
}

function overview(): string {
  const width = Math.max(...Object.keys(COMMANDS).map((name) => name.length))
  const commands = Object.entries(COMMANDS).map(
    ([name, { summary }]) => `  ${name.padEnd(width)}  ${summary}`,
  )
  return `${[
    'loadstone <command> [options]',
    '',
    ...commands,
    `  ${'help'.padEnd(width)}  help <command> tells its options`,
    '',
    ...cacheHelp(),
    '',
    'Exit codes: 0 fine, 1 there are findings (something is stale, a check failed), 2 it could not be done.',
  ].join('\n')}\n`
}

function commandHelp(name: string, { parameters, summary, help }: Command): string {
  const usage = ['loadstone', name, parameters, '[options]'].filter(Boolean).join(' ')
  return `${[usage, '', `  ${summary}`, '', ...help.map((line) => `  ${line}`), ...(help.length > 0 ? [''] : []), ...cacheHelp()].join('\n')}\n`
}

function cacheHelp(): string[] {
  return [
    '  --module <path>  the module of your application that exports the cache and declares its models;',
    `                   default: ${DEFAULT_MODULES.join(', ')}`,
    '  --export <name>  what it exports the cache as; default: cache, or default, or the only cache there is',
    '  --using <name>   the database of that name, of cache.using(name, db); default: that of createModelCache',
  ]
}

function version(): string {
  const manifest = readFileSync(new URL('../../package.json', import.meta.url), 'utf8')
  return (JSON.parse(manifest) as { version: string }).version
}
