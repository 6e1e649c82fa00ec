import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { directoryWith, type Machine, pathDirectories, thisMachine } from './machine.ts'

export interface PostgresBinaries {
  initdb: string
  postgres: string
}

/** The path of `redis-server`, or undefined when it is not installed. */
export function findRedis(machine: Machine = thisMachine()): string | undefined {
  return findProgram('redis-server', machine)
}

/** The path of `valkey-server`, or undefined when it is not installed. */
export function findValkey(machine: Machine = thisMachine()): string | undefined {
  return findProgram('valkey-server', machine)
}

function findProgram(name: string, machine: Machine): string | undefined {
  const places = ['usr/bin', 'usr/local/bin', 'opt/homebrew/bin'].map((place) => join(machine.root, place))
  const directory = directoryWith([name], [...pathDirectories(machine), ...places])
  return directory && join(directory, name)
}

/** The paths of `initdb` and `postgres` of one version, or undefined when they are not installed. */
export function findPostgres(machine: Machine = thisMachine()): PostgresBinaries | undefined {
  const programs = ['initdb', 'postgres']
  const directory = directoryWith(programs, [...pathDirectories(machine), ...postgresPlaces(machine)])
  return directory ? { initdb: join(directory, 'initdb'), postgres: join(directory, 'postgres') } : undefined
}

/** Debian and Homebrew keep the server programs of each version in a folder of its own, off the PATH. */
function postgresPlaces({ root }: Machine): string[] {
  const debian = newestFirst(join(root, 'usr/lib/postgresql'), /^(\d+)$/)
  const brew = ['opt/homebrew/opt', 'usr/local/opt'].flatMap((place) =>
    newestFirst(join(root, place), /^postgresql@(\d+)$/),
  )
  return [...debian, ...brew].map((version) => join(version, 'bin'))
}

function newestFirst(parent: string, versionPattern: RegExp): string[] {
  return list(parent)
    .flatMap((name) => {
      const version = versionPattern.exec(name)?.[1]
      return version ? [{ path: join(parent, name), version: Number(version) }] : []
    })
    .sort((a, b) => b.version - a.version)
    .map(({ path }) => path)
}

function list(directory: string): string[] {
  try {
    return readdirSync(directory)
  } catch {
    return []
  }
}
