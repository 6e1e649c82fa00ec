import {
  type CompiledQuery,
  type DatabaseConnection,
  type DatabaseIntrospector,
  type Dialect,
  type DialectAdapter,
  type Driver,
  type Kysely,
  type OperationNode,
  PostgresAdapter,
  type QueryCompiler,
  type QueryResult,
  type TransactionSettings,
} from 'kysely'
import { OptionError } from '../errors.ts'
import { type CommitHub, Committer } from './committer.ts'
import { INTERNAL, type RunRaw, readServerRun } from './outbox-rows.ts'
import type { InvalidationParty } from './party.ts'

/** The caches that are told of commits through one dialect. */
export interface InvalidationHub extends CommitHub {
  readonly parties: Set<InvalidationParty>
}

const hubs = new WeakMap<DialectAdapter, InvalidationHub>()

/** The hub of a Kysely whose dialect went through {@link withInvalidation}, else undefined. */
export function hubOf(db: Pick<Kysely<unknown>, 'getExecutor'>): InvalidationHub | undefined {
  return hubs.get(db.getExecutor().adapter)
}

/**
 * Makes writes through a Kysely instance invalidate at once: when a statement or transaction has committed, what it
 * touched is gone from the caches on this database before its promise resolves, so whoever wrote reads what they
 * wrote. Which keys that are, the triggers tell (`cache.install()`); without them nothing is different. A rollback
 * invalidates nothing. Writes that go another way are invalidated by the relay.
 *
 * A write outside of a transaction gets one of its own.
 *
 * ```ts
 * const db = new Kysely<Database>({ dialect: withInvalidation(new PostgresDialect({ pool })) })
 * ```
 *
 * @param dialect any Kysely dialect for Postgres
 * @throws OptionError for a dialect of another database
 */
export function withInvalidation(dialect: Dialect): Dialect {
  if (typeof dialect?.createAdapter !== 'function')
    throw new OptionError('dialect', 'a Kysely dialect', dialect)
  if (!(dialect.createAdapter() instanceof PostgresAdapter)) {
    throw new OptionError('dialect', 'a dialect for Postgres', dialect.constructor.name)
  }
  const hub: InvalidationHub = { parties: new Set(), installed: false }
  return {
    createAdapter(): DialectAdapter {
      const adapter = dialect.createAdapter()
      hubs.set(adapter, hub)
      return adapter
    },
    createDriver: (): Driver => new InvalidationDriver(dialect.createDriver(), hub),
    createQueryCompiler: (): QueryCompiler => dialect.createQueryCompiler(),
    createIntrospector: (db): DatabaseIntrospector => dialect.createIntrospector(db),
  }
}

class InvalidationDriver implements Driver {
  readonly #inner: Driver
  readonly #committer: Committer
  readonly #connections = new WeakMap<DatabaseConnection, InvalidationConnection>()

  constructor(inner: Driver, hub: InvalidationHub) {
    this.#inner = inner
    this.#committer = new Committer(hub)
  }

  init(...args: Parameters<Driver['init']>): Promise<void> {
    return this.#inner.init(...args)
  }

  destroy(...args: Parameters<Driver['destroy']>): Promise<void> {
    return this.#inner.destroy(...args)
  }

  async acquireConnection(...args: Parameters<Driver['acquireConnection']>): Promise<DatabaseConnection> {
    const inner = await this.#inner.acquireConnection(...args)
    let connection = this.#connections.get(inner)
    if (!connection) {
      connection = new InvalidationConnection(inner, this.#inner, this.#committer)
      this.#connections.set(inner, connection)
    }
    return connection
  }

  releaseConnection(connection: DatabaseConnection, ...rest: never[]): Promise<void> {
    return this.#inner.releaseConnection(innerOf(connection), ...rest)
  }

  async beginTransaction(connection: DatabaseConnection, settings: TransactionSettings): Promise<void> {
    await this.#inner.beginTransaction(innerOf(connection), settings)
    ;(connection as InvalidationConnection).begun(settings.isolationLevel === 'serializable')
  }

  commitTransaction(connection: DatabaseConnection): Promise<void> {
    const { inner } = connection as InvalidationConnection
    return (connection as InvalidationConnection).commit(() => this.#inner.commitTransaction(inner))
  }

  rollbackTransaction(connection: DatabaseConnection): Promise<void> {
    return (connection as InvalidationConnection).rollback()
  }

  savepoint(connection: DatabaseConnection, ...rest: SavepointArgs): Promise<void> {
    return required(this.#inner, 'savepoint')(innerOf(connection), ...rest)
  }

  rollbackToSavepoint(connection: DatabaseConnection, ...rest: SavepointArgs): Promise<void> {
    return required(this.#inner, 'rollbackToSavepoint')(innerOf(connection), ...rest)
  }

  releaseSavepoint(connection: DatabaseConnection, ...rest: SavepointArgs): Promise<void> {
    return required(this.#inner, 'releaseSavepoint')(innerOf(connection), ...rest)
  }
}

type SavepointMethod = 'savepoint' | 'rollbackToSavepoint' | 'releaseSavepoint'
type SavepointArgs = [name: string, compileQuery: QueryCompiler['compileQuery']]

function required(driver: Driver, method: SavepointMethod) {
  const found = driver[method]
  if (!found) throw new Error(`The \`${method}\` method is not supported by this driver`)
  return found.bind(driver)
}

function innerOf(connection: DatabaseConnection): DatabaseConnection {
  return (connection as InvalidationConnection).inner
}

/** A connection that knows whether its transaction wrote, and gives a lone write a transaction. */
class InvalidationConnection implements DatabaseConnection {
  readonly inner: DatabaseConnection
  readonly #driver: Driver
  readonly #committer: Committer
  #transaction: { wrote: boolean; readonly isSerializable: boolean } | undefined
  #serverRun: string | undefined
  /** Lone writes on one connection take turns: each has a BEGIN and a COMMIT around it. */
  #turn: Promise<unknown> = Promise.resolve()

  constructor(inner: DatabaseConnection, driver: Driver, committer: Committer) {
    this.inner = inner
    this.#driver = driver
    this.#committer = committer
    for (const method of ['cancelQuery', 'collectSessionInfo', 'killSession'] as const) {
      // Kysely looks whether a connection has them.
      if (inner[method]) Object.assign(this, { [method]: inner[method].bind(inner) })
    }
  }

  begun(isSerializable: boolean): void {
    this.#transaction = { wrote: false, isSerializable }
  }

  async commit(commit: () => Promise<void>): Promise<void> {
    const { wrote, isSerializable } = this.#transaction ?? { wrote: true, isSerializable: false }
    const send = () => {
      // However COMMIT is answered, there is no transaction any more.
      this.#transaction = undefined
      return commit()
    }
    if (!wrote || !this.#committer.needed) return send()
    const run: RunRaw = (query) => this.inner.executeQuery(query)
    await this.#committer.commit({
      run,
      isSerializable,
      serverRun: async () => {
        this.#serverRun ??= await readServerRun(run)
        return this.#serverRun
      },
      commit: send,
      rollback: () => this.rollback(),
    })
  }

  async rollback(): Promise<void> {
    // A commit that was refused has ended it already.
    if (!this.#transaction) return
    this.#transaction = undefined
    await this.#driver.rollbackTransaction(this.inner)
  }

  async executeQuery<R>(
    query: CompiledQuery,
    ...rest: Parameters<DatabaseConnection['executeQuery']> extends [unknown, ...infer Rest] ? Rest : never
  ): Promise<QueryResult<R>> {
    const run = () => this.inner.executeQuery<R>(query, ...rest)
    if (query.sql.startsWith(INTERNAL)) return run()
    const kind = kindOf(query)
    if (kind === 'read') return run()
    if (kind === 'begin') {
      const result = await run()
      this.begun(/\bserializable\b/i.test(query.sql))
      return result
    }
    if (this.#transaction) {
      if (kind === 'commit') return this.#commitRaw(run)
      const result = await run()
      if (kind === 'rollback') this.#transaction = undefined
      else this.#transaction.wrote = true
      return result
    }
    if (kind !== 'write' || !this.#committer.needed) return run()
    const turn = this.#turn.then(() => this.#lone(run))
    this.#turn = turn.catch(() => undefined)
    return turn
  }

  streamQuery<R>(
    ...args: Parameters<DatabaseConnection['streamQuery']>
  ): AsyncIterableIterator<QueryResult<R>> {
    if (this.#transaction) this.#transaction.wrote = true
    return this.inner.streamQuery<R>(...args)
  }

  async #commitRaw<R>(run: () => Promise<QueryResult<R>>): Promise<QueryResult<R>> {
    let result: QueryResult<R> = { rows: [] }
    await this.commit(async () => {
      result = await run()
    })
    return result
  }

  async #lone<R>(run: () => Promise<QueryResult<R>>): Promise<QueryResult<R>> {
    await this.#driver.beginTransaction(this.inner, {})
    this.#transaction = { wrote: true, isSerializable: false }
    try {
      const result = await run()
      await this.commit(() => this.#driver.commitTransaction(this.inner))
      return result
    } catch (error) {
      // The first error tells what happened; a connection that cannot even roll back is dead, and nothing was committed.
      await this.rollback().catch(() => undefined)
      throw error
    }
  }
}

type StatementKind = 'read' | 'write' | 'begin' | 'commit' | 'rollback' | 'other'

const COMMENTS = /^(?:\s+|--[^\n]*\n|\/\*[\s\S]*?\*\/)*/
/** Statements that may stand in a transaction, and may write rows. */
const WRITES =
  /^(?:insert|update|delete|merge|copy|truncate|with\b[\s\S]*\b(?:insert|update|delete|merge))\b/i

function kindOf({ query, sql }: CompiledQuery): StatementKind {
  switch (query.kind) {
    case 'InsertQueryNode':
    case 'UpdateQueryNode':
    case 'DeleteQueryNode':
    case 'MergeQueryNode':
      return 'write'
    case 'SelectQueryNode':
      return writesInWith(query) ? 'write' : 'read'
    case 'RawNode': {
      const text = sql.replace(COMMENTS, '')
      if (WRITES.test(text)) return 'write'
      if (/^(?:select|with|values|show|explain)\b/i.test(text)) return 'read'
      if (/^(?:begin|start\s+transaction)\b/i.test(text)) return 'begin'
      if (/^(?:commit|end)\b/i.test(text)) return 'commit'
      return /^(?:rollback|abort)\b(?!\s+to\b)/i.test(text) ? 'rollback' : 'other'
    }
    default:
      return 'other'
  }
}

function writesInWith(query: OperationNode): boolean {
  const { with: list } = query as { with?: { expressions: readonly { expression: OperationNode }[] } }
  return (
    list?.expressions.some(
      ({ expression }) => expression.kind !== 'SelectQueryNode' || writesInWith(expression),
    ) ?? false
  )
}
