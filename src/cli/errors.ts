import { LoadstoneError } from '../errors.ts'

/** The command line cannot be followed as it is: a command, an option or a module that is not there. */
export class UsageError extends LoadstoneError {
  override readonly code = 'ERR_USAGE'
}

/** The module named does not give us a cache. */
export class ModuleError extends LoadstoneError {
  override readonly code = 'ERR_MODULE'
}
