import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'

/** What the finder and the installer ask of the machine. A parameter, so that tests can describe another one. */
export interface Machine {
  platform: NodeJS.Platform
  /** Effective user id; 0 is root. -1 where there is none (Windows). */
  uid: number
  /** The search path for programs, as in `PATH`. */
  path: string
  /** Where absolute places such as `/usr/lib/postgresql` begin. Default `/`. */
  root: string
}

export function thisMachine(): Machine {
  return {
    platform: process.platform,
    uid: process.geteuid?.() ?? -1,
    path: process.env.PATH ?? '',
    root: '/',
  }
}

/** The first of `directories` that holds all of `programs`. */
export function directoryWith(
  programs: readonly string[],
  directories: readonly string[],
): string | undefined {
  return directories.find((directory) => programs.every((program) => isExecutable(join(directory, program))))
}

export function pathDirectories({ path }: Machine): string[] {
  return path.split(delimiter).filter((directory) => directory !== '')
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK)
    return true
  } catch {
    return false
  }
}
