/**
 * Every error Loadstone throws or rejects with. `code` is a literal, so a `switch` over it is checked by the
 * compiler; `transient` says whether the same call may succeed when it is made again later.
 */
export abstract class LoadstoneError extends Error {
  abstract readonly code: string
  readonly transient: boolean = false
  override get name(): string {
    return this.constructor.name
  }
}

/** An option has a value Loadstone cannot work with. Thrown once, where the option is given. */
export class OptionError extends LoadstoneError {
  override readonly code = 'ERR_OPTION'
  constructor(
    readonly option: string,
    wanted: string,
    given: unknown,
  ) {
    super(`option '${option}' must be ${wanted}, but is ${show(given)}`)
  }
}

/** A model cannot work as declared: declared twice, or its table, a column or a type does not fit. */
export class ModelError extends LoadstoneError {
  override readonly code = 'ERR_MODEL'
  constructor(
    readonly model: string,
    problem: string,
    options?: ErrorOptions,
  ) {
    super(`model '${model}': ${problem}`, options)
  }
}

/** A lookup names a field list that the model does not declare. */
export class ShapeNotDeclaredError extends LoadstoneError {
  override readonly code = 'ERR_SHAPE_NOT_DECLARED'
  constructor(
    readonly model: string,
    readonly fields: readonly string[],
    kind: 'keyFields' | 'filterFields',
    readonly declared: readonly (readonly string[])[],
  ) {
    super(
      `model '${model}' has no ${kind} ${list(fields)}; declared: ${declared.map(list).join(', ') || 'none'}. ` +
        `Add ${list(fields)} to ${kind}, or look up by a declared one`,
    )
  }
}

/** A lookup value cannot be a key: `undefined`, `NaN`, an invalid Date, an object, or no value of the column's type. */
export class InvalidKeyError extends LoadstoneError {
  override readonly code = 'ERR_INVALID_KEY'
  constructor(
    readonly model: string,
    readonly field: string,
    problem: string,
  ) {
    super(`model '${model}': field '${field}' ${problem}`)
  }
}

/**
 * A lookup of a model with `scopeBy`, and the scope does not say of which tenant (or the like) it is; or there is no
 * scope. Nothing was asked of anybody, and other lookups are not concerned.
 */
export class ScopeDimensionError extends LoadstoneError {
  override readonly code = 'ERR_SCOPE_DIMENSION'
  constructor(
    readonly model: string,
    readonly dimension: string,
    isInScope: boolean,
  ) {
    super(
      `model '${model}' is scoped by '${dimension}', which ${isInScope ? 'this scope does not give' : 'only a scope gives'}; ` +
        `run it in runInLoop(fn, { scopeBy: { ${dimension}: ... } })`,
    )
  }
}

/** No row has this key. */
export class NotFoundError extends LoadstoneError {
  override readonly code: 'ERR_NOT_FOUND' | 'ERR_NOT_FOUND_HTTP' = 'ERR_NOT_FOUND'
  constructor(
    readonly model: string,
    readonly key: Readonly<Record<string, unknown>>,
    message = `model '${model}' has no row with ${describeKey(key)}`,
  ) {
    super(message)
  }
}

/**
 * As {@link NotFoundError}, in the form that HTTP frameworks and GraphQL servers turn into a 404 by themselves. Its
 * message goes to clients, so it names neither table nor key; `model` and `key` are there for logs.
 */
export class NotFoundHttpError extends NotFoundError {
  override readonly code = 'ERR_NOT_FOUND_HTTP'
  /** For Express, Koa, Nest, h3. */
  readonly status = 404
  /** For Fastify. */
  readonly statusCode = 404
  readonly expose = true
  /** For GraphQL. The response keeps its status: other fields of it may well have been found. */
  readonly extensions = { code: 'NOT_FOUND' }
  constructor(model: string, key: Readonly<Record<string, unknown>>) {
    super(model, key, 'Not Found')
  }

  /** For Hono. */
  getResponse(): Response {
    return new Response(this.message, { status: this.status })
  }
}

/** A `keyFields` shape selected more than one row, so it is no key. Loadstone never picks one of them. */
export class NotUniqueError extends LoadstoneError {
  override readonly code = 'ERR_NOT_UNIQUE'
  constructor(
    readonly model: string,
    readonly fields: readonly string[],
    readonly key: Readonly<Record<string, unknown>>,
  ) {
    super(
      `model '${model}': keyFields ${list(fields)} is not unique, ${describeKey(key)} selects more than one row. ` +
        'Add a unique constraint, or declare these fields under filterFields',
    )
  }
}

/** The SQL behind a lookup failed; `cause` is the driver's own error. Not memoised: the next lookup asks again. */
export class SourceError extends LoadstoneError {
  override readonly code = 'ERR_SOURCE'
  override readonly transient = true
  constructor(
    readonly model: string,
    readonly fields: readonly string[],
    cause: unknown,
  ) {
    super(`model '${model}': SQL for ${list(fields)} failed: ${messageOf(cause)}`, { cause })
  }
}

/** A custom cache's own `load` threw, timed out, or returned what cannot be used. Not memoised: the next lookup asks again. */
export class LoadError extends LoadstoneError {
  override readonly code = 'ERR_LOAD'
  constructor(
    readonly cache: string,
    problem: string,
    options?: ErrorOptions,
  ) {
    super(`cache '${cache}': ${problem}`, options)
  }
}

/** What a plan cannot reach, and what would help. */
export interface Unreachable {
  readonly node: string
  /** Sets of parameters, each of which would be enough, the smallest first. None: there is no such node, or no way in. */
  readonly missing: readonly (readonly string[])[]
}

/** Nodes of a plan were asked for that cannot be reached from what was given. Thrown before anything is looked up. */
export class PlanError extends LoadstoneError {
  override readonly code = 'ERR_PLAN'
  constructor(
    readonly given: readonly string[],
    readonly unreachable: readonly Unreachable[],
    nodes: readonly string[],
  ) {
    const from = given.length > 0 ? given.join(', ') : 'nothing'
    const problems = unreachable.map(({ node, missing }) => {
      if (!nodes.includes(node)) return `there is no node '${node}', there are ${nodes.join(', ') || 'none'}`
      if (missing.length === 0) return `'${node}' cannot be reached: all its ways come from itself`
      const cures = missing.map((names) => names.join(' and ')).join(', or ')
      return `'${node}' cannot be reached from ${from}: give ${cures}`
    })
    super(`plan: ${problems.join('; ')}`)
  }
}

/** A polymorphic row is of a type that no model was declared for. */
export class UnknownTypeError extends LoadstoneError {
  override readonly code = 'ERR_UNKNOWN_TYPE'
  constructor(
    readonly field: string,
    readonly type: string,
    readonly declared: readonly string[],
  ) {
    super(
      `polymorphic field '${field}' is ${show(type)}; declared: ${declared.join(', ')}. ` +
        "Add the type and its model to 'to', or mend the row",
    )
  }
}

/** The store cannot be reached, did not answer in time, or refused. Lookups never reject with it: SQL answers them. */
export class StoreUnavailableError extends LoadstoneError {
  override readonly code = 'ERR_STORE_UNAVAILABLE'
  override readonly transient = true
  /** Whether the server answered, and refused: it is full, or takes no writes. Else it was not reached in time. */
  readonly refused: boolean
  constructor(problem: string, { refused = false, ...options }: ErrorOptions & { refused?: boolean } = {}) {
    super(`the store is unavailable: ${problem}`, options)
    this.refused = refused
  }
}

/**
 * The store is away, and too many loads wait for the database already, or this one has waited for too long: it was not
 * sent. Only the lookups it was for are rejected. See `fallback`. Not memoised: the next lookup asks again.
 */
export class OverloadedError extends LoadstoneError {
  override readonly code = 'ERR_OVERLOADED'
  override readonly transient = true
  constructor(problem: string) {
    super(`the database has enough to do while the store is away: ${problem}`)
  }
}

/**
 * A write to a `strict` model was rolled back before COMMIT, as its promise could not be kept. `transient` when the
 * store could not be reached: the same transaction may succeed when it is run again.
 */
export class StrictWriteError extends LoadstoneError {
  override readonly code = 'ERR_STRICT_WRITE'
  override readonly transient: boolean
  constructor(
    readonly models: readonly string[],
    problem: string,
    options?: ErrorOptions,
  ) {
    super(`strict model ${models.map((model) => `'${model}'`).join(', ')}: ${problem}; rolled back`, options)
    this.transient = options?.cause !== undefined
  }
}

/** The connection broke during COMMIT, and nobody could say within the limit whether it happened. Look before writing again. */
export class CommitOutcomeUnknownError extends LoadstoneError {
  override readonly code = 'ERR_COMMIT_OUTCOME_UNKNOWN'
  constructor(
    readonly xid: string | null,
    cause: unknown,
  ) {
    super(
      `the connection broke during COMMIT, and whether transaction ${xid} was committed could not be learned`,
      { cause },
    )
  }
}

/** A transaction was used wrongly: inside another one, or after its end. */
export class TransactionUseError extends LoadstoneError {
  override readonly code = 'ERR_TRANSACTION_USE'
}

/** The cache was closed; nothing can be looked up through it any more. */
export class CacheClosedError extends LoadstoneError {
  override readonly code = 'ERR_CACHE_CLOSED'
  constructor(namespace: string) {
    super(`the cache '${namespace}' is closed`)
  }
}

/** Triggers or tables could not be installed or removed. When rights are missing, the message has the SQL for somebody who has them. */
export class InstallError extends LoadstoneError {
  override readonly code = 'ERR_INSTALL'
  override readonly transient: boolean
  constructor(
    problem: string,
    { transient = false, ...options }: ErrorOptions & { transient?: boolean } = {},
  ) {
    super(problem, options)
    this.transient = transient
  }
}

/** The message of whatever was thrown. */
export function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  // Where no address of a host could be reached, Node has a reason for each of them, and no message for all.
  if (error.message === '' && error instanceof AggregateError) {
    return [...new Set(error.errors.map(messageOf))].join('; ') || error.name
  }
  return error.message || error.name
}

/** A value as an error message shows it: short, on one line, never throwing. */
export function show(value: unknown): string {
  const text = (() => {
    if (typeof value === 'string') return JSON.stringify(value)
    if (typeof value === 'bigint') return `${value}n`
    if (typeof value === 'function') return `function ${value.name}`
    if (value instanceof Date)
      return `Date(${Number.isNaN(value.getTime()) ? 'invalid' : value.toISOString()})`
    if (typeof value !== 'object' || value === null) return String(value)
    try {
      return JSON.stringify(value) ?? String(value)
    } catch {
      return Object.prototype.toString.call(value)
    }
  })()
  return text.length > 120 ? `${text.slice(0, 117)}...` : text
}

function list(fields: readonly string[]): string {
  return `[${fields.map((field) => `'${field}'`).join(', ')}]`
}

function describeKey(key: Readonly<Record<string, unknown>>): string {
  return Object.entries(key)
    .map(([field, value]) => `${field} = ${show(value)}`)
    .join(', ')
}
