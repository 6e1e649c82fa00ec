import type { Kysely, Selectable, SelectQueryBuilder, Transaction } from 'kysely'
import type { ResolvedOptions } from './cache-options.ts'
import { type CustomCaches, createCustomCaches, type Declared } from './custom-caches.ts'
import { CacheClosedError, InstallError, ModelError, OptionError } from './errors.ts'
import { hubOf } from './invalidation/dialect.ts'
import { diagnose, type Finding } from './invalidation/doctor.ts'
import { inspectInstall, problemsOf } from './invalidation/inspect.ts'
import { install, uninstall } from './invalidation/install.ts'
import { installSql } from './invalidation/install-sql.ts'
import {
  type InvalidationCounters,
  type InvalidationParty,
  NO_INVALIDATIONS,
  OutboxCleaner,
} from './invalidation/party.ts'
import { type InstallPlan, planModels } from './invalidation/recording.ts'
import { RELAY_DEFAULTS, Relay } from './invalidation/relay.ts'
import { storedFormNumber } from './invalidation/stored-form.ts'
import { runTransaction, type TransactionOptions } from './invalidation/transaction.ts'
import { type VerifyOptions, type VerifyReport, verify } from './invalidation/verify.ts'
import { Binder, newBinding } from './loaders/binder.ts'
import { clearModels, extendModelCache, type ModelCache, RelatedModelCache } from './loaders/model-cache.ts'
import { type CacheParts, type DatabaseParts, forgetTouched, Reader } from './loaders/reader.ts'
import { linkModels } from './loaders/related.ts'
import { type BoundModel, defineModel, type ModelDefinition, type ModelMeta } from './models/model.ts'
import type {
  CheckedRelations,
  GivenKey,
  Graph,
  LeadsOf,
  LinkedLeads,
  NoRelations,
  RELATED,
  RelationsOf,
} from './models/relation.ts'
import type { FieldName, LookupKey, Row, TableName } from './models/types.ts'
import type { Database } from './sources/database.ts'
import { KyselySource } from './sources/kysely.ts'
import {
  NO_REPLICA_COUNTS,
  type ReplicaCounts,
  type ReplicaSettings,
  ReplicaSource,
} from './sources/replica.ts'
import type { RoutedSource } from './sources/routed.ts'

/** A model: its table, and `cache` to look rows up. */
export interface Model<
  Key extends object,
  Filter extends object,
  Result,
  Table extends string = string,
  Related extends object = NoRelations,
  Declared extends object = NoRelations,
  Extension extends object = NoExtension,
  Rows = unknown,
  Scoped extends string = never,
> {
  readonly name: Table
  /** As declared. */
  readonly relations: Declared
  /** As declared; none when it is not. */
  readonly scopeBy: Readonly<Record<string, Scoped>>
  readonly cache: keyof Extension extends never
    ? CacheOf<Key, Filter, Result, Related, Rows>
    : CacheOf<Key, Filter, Result, Related, Rows> & Extension
  /** For the compiler alone: nothing is there. */
  readonly [RELATED]?: Related
}

/** A model, whatever its types are. */
interface AnyModel {
  readonly name: string
  readonly relations: object
  readonly [RELATED]?: object
}

/** Models, with types that know what related rows are related to. */
export type LinkedModels<Models extends Readonly<Record<string, AnyModel>>> = {
  readonly [N in keyof Models]: LinkedModel<Models[N], GraphOf<Models>>
}

type GraphOf<Models extends Readonly<Record<string, AnyModel>>> = {
  readonly [N in keyof Models as Models[N]['name']]: {
    readonly leads: NonNullable<Models[N][typeof RELATED]>
    readonly declared: Models[N]['relations']
  }
}

type LinkedModel<M, G extends Graph> =
  M extends Model<
    infer Key,
    infer Filter,
    infer Result,
    infer Table,
    infer Related,
    infer Declared,
    infer Extension,
    infer Rows,
    infer Scoped
  >
    ? Model<Key, Filter, Result, Table, LinkedLeads<G, Related, Declared>, Declared, Extension, Rows, Scoped>
    : never

type CacheOf<
  Key extends object,
  Filter extends object,
  Result,
  Related extends object,
  Rows,
> = keyof Related extends never
  ? ModelCache<Key, Filter, Result, Rows>
  : RelatedModelCache<Key, Filter, Result, Related, Rows>

/** What `extend` of a model adds: functions by name. */
export type Extensions = Readonly<Record<string, (...args: never) => unknown>>

/** That of a model without `extend`. */
export type NoExtension = Readonly<Record<never, never>>

/** What a lookup may be given; rows in the place of keys only where there are relations. */
type Given<DB, Key, Declared> = keyof Declared extends never ? Key : GivenKey<DB, Key, Declared>

/** What is done with a database of a cache, whatever its tables. */
export interface DatabaseOperations {
  /** The names of the models declared so far. */
  readonly modelNames: readonly string[]

  /**
   * Creates, or brings up to date, the outbox table and the triggers that record what writes touch. Safe to repeat, and
   * from several processes at once. What an earlier version of the code had recorded besides stays recorded.
   *
   * Rejects ModelError when a table does not fit, InstallError when the database does not allow it: its message has the
   * SQL for somebody who may.
   *
   * @returns a line for everything that was changed; none when all was there
   */
  install(): Promise<string[]>

  /** What `install` would do to an empty database, as SQL for a migration: complete, and safe to run twice. */
  installSql(): Promise<string>

  /**
   * Removes the triggers of this namespace, and with the last namespace the outbox. The cache must not be used any more:
   * nobody tells it of writes. Rejects InstallError.
   *
   * @returns a line for everything that was dropped
   */
  uninstall(): Promise<string[]>

  /**
   * Resolves when every declared model fits its table and, unless `invalidation` is `'manual'`, every write to one is
   * recorded. Rejects InstallError when something is missing, outdated or disabled, and says what; ModelError; SourceError when the database cannot be asked.
   */
  ready(): Promise<void>

  /**
   * Compares a sample of the cached entries with the database, and reports how many are stale, by shape. An entry that
   * is about to be cleared is not stale. With `repair`, what is stale is deleted.
   *
   * Rejects StoreUnavailableError, SourceError, ModelError, OptionError, or the reason of `signal`.
   */
  verify(options?: VerifyOptions): Promise<VerifyReport>

  /**
   * Looks at what the cache depends on: Redis, Postgres, triggers, outbox, indexes. Never rejects for what it finds
   * broken: that is a finding, with its cure.
   */
  doctor(): Promise<Finding[]>

  /**
   * Forgets everything cached for these models, by name; for all, when none is named. One round trip per model,
   * however much is cached. Rejects OptionError for a model that is not declared, StoreUnavailableError.
   */
  clear(models?: readonly string[]): Promise<void>
}

/**
 * One of the databases of a cache: its models and custom caches, and what is done with that database. Every method here
 * concerns this database alone.
 */
export interface DatabaseCache<DB> extends CustomCaches<DB>, DatabaseOperations {
  /**
   * Declares how a table is looked up. The table is checked at the first lookup.
   *
   * @throws OptionError for a bad option, or a method whose name is taken; ModelError for a model or shape declared twice
   */
  model<
    TB extends TableName<DB>,
    const Keys extends readonly (readonly FieldName<DB, TB>[])[],
    const Filters extends readonly (readonly FieldName<DB, TB>[])[] = readonly [],
    const Columns extends readonly FieldName<DB, TB>[] = readonly FieldName<DB, TB>[],
    const Declared extends RelationsOf<DB> = NoRelations,
    Extension extends Extensions = NoExtension,
    const Scoped extends FieldName<DB, TB> = never,
  >(
    table: TB,
    meta: Omit<ModelMeta<FieldName<DB, TB>, Selectable<DB[TB]>>, 'relations' | 'scopeBy'> & {
      readonly keyFields: Keys
      readonly filterFields?: Filters | undefined
      readonly columns?: Columns | undefined
      /**
       * Whose rows these are: `{ tenant: 'org_id' }`. Every lookup then takes place in a scope that says which tenant it
       * is for, `runInLoop(fn, { scopeBy: { tenant } })`, and finds rows with that `org_id` alone; without one it
       * rejects ScopeDimensionError. Custom caches of the model are scoped as it is. Default: all get the same answers.
       */
      readonly scopeBy?: Readonly<Record<string, Scoped>> | undefined
      /**
       * Rows of other tables that belong to a row, for `with` and `relation`: to one, to many, or to many through a
       * table. Default none. Their models, of this cache and without `columns`, are found at the first use.
       */
      readonly relations?: (Declared & CheckedRelations<DB, TB, Declared>) | undefined
      /**
       * Takes the model's `cache`, once, and returns methods to be added to it. Spread what several models share. A
       * method that leads back to this model by way of another's says what it returns, or nothing could be inferred.
       */
      readonly extend?:
        | ((
            cache: CacheOf<
              Given<DB, LookupKey<DB, TB, Keys>, Declared>,
              Given<DB, LookupKey<DB, TB, Filters>, Declared>,
              Row<DB, TB, Columns[number]>,
              LeadsOf<DB, Declared>,
              // biome-ignore lint/complexity/noBannedTypes: as below
              SelectQueryBuilder<DB, TB, {}>
            >,
          ) => Extension)
        | undefined
    },
  ): Model<
    Given<DB, LookupKey<DB, TB, Keys>, Declared>,
    Given<DB, LookupKey<DB, TB, Filters>, Declared>,
    Row<DB, TB, Columns[number]>,
    TB,
    LeadsOf<DB, Declared>,
    Declared,
    Extension,
    // biome-ignore lint/complexity/noBannedTypes: as Kysely has it, for a query that selects nothing yet
    SelectQueryBuilder<DB, TB, {}>,
    Scoped
  >

  /**
   * Returns these models, by the same names, with types that know what related rows are related to, so that lookups take
   * relations of relations, and paths of `related` their names. Relations that lead to other models end there, and so do
   * those that `extend` is given.
   *
   * ```ts
   * export const { Team, User } = cache.link({
   *   Team: cache.model('teams', { ... }),
   *   User: cache.model('users', { ... }),
   * })
   * await User.cache.getAsync({ id }, { with: [{ team: ['org'] }] })
   * ```
   *
   * @throws OptionError for what is no model of this cache, ModelError for a relation that does not lead to a model
   */
  link<const Models extends Readonly<Record<string, AnyModel>>>(models: Models): LinkedModels<Models>

  /**
   * Runs `fn` in a transaction. Lookups inside, through the models of this cache, read through the transaction: they
   * see what it has written. When it has committed, what it touched is invalidated before the promise resolves.
   *
   * Rejects what `fn` rejects with, after a rollback; TransactionUseError inside another `cache.transaction`;
   * StrictWriteError, CommitOutcomeUnknownError.
   *
   * @throws OptionError when `db` is without `withInvalidation(dialect)`
   */
  transaction<Result>(
    fn: (trx: Transaction<DB>) => Promise<Result>,
    options?: TransactionOptions,
  ): Promise<Result>

  clear(models?: readonly TableName<DB>[]): Promise<void>
}

/** What the databases of a cache have in common. */
export interface SharedParts {
  readonly cache: CacheParts
  /** Each database adds its own. */
  readonly source: RoutedSource
  readonly binders: Set<Binder>
  readonly settings: Pick<
    ResolvedOptions<unknown>,
    'valueTypes' | 'intentTtlMs' | 'invalidation' | 'relay' | 'maxTouchedRows' | 'ttlMs'
  > & {
    /** The relay leaves the store alone unless nobody else does the work. */
    readonly isStandby: boolean
  }
}

/** One of the databases of a cache, as the cache itself sees it. */
export interface OpenDatabase<Of extends DatabaseOperations = DatabaseOperations> {
  readonly cache: Of
  readonly relay: Relay
  readonly counters: Readonly<InvalidationCounters>
  readonly replicaCounts: ReplicaCounts
  /** Of a model declared here; undefined for anything else. */
  definitionOf(model: object): ModelDefinition | undefined
  tableChanged(model: BoundModel): void
  /** Resolves when the outbox rows of what was applied are deleted. */
  flush(): Promise<void>
  stop(): Promise<void>
}

/** Puts together what belongs to one database. Its namespace tells its entries from those of the others. */
export function openDatabase<DB>(
  { cache: parts, source: routed, binders, settings }: SharedParts,
  namespace: string,
  db: Kysely<DB>,
  replica: ReplicaSettings | undefined,
): OpenDatabase<DatabaseCache<DB>> {
  const { store } = parts
  const database = db as unknown as Database
  const plain = database.withoutPlugins()
  const source = new KyselySource(database)
  const numberOf = (name: string, form: string, atLeast: number) =>
    storedFormNumber(plain, namespace, name, form, atLeast)
  const binder = new Binder(namespace, source, settings.valueTypes, numberOf, binders)
  const databaseParts: DatabaseParts = { cache: parts, namespace, binder, readers: new Map() }
  const reading = replica && new ReplicaSource(namespace, source, replica)
  routed.add(namespace, reading ?? source)

  const cleaner = new OutboxCleaner(plain)
  const party: InvalidationParty = {
    namespace,
    store,
    db: plain,
    intentTtlMs: settings.intentTtlMs,
    counters: { ...NO_INVALIDATIONS },
    get hasStrict() {
      return binder.bindings.some(({ definition }) => definition.consistency === 'strict')
    },
    strictness: (model) => binder.get(model)?.strictness,
    forget: (touched) => forgetTouched(parts, touched),
    deleteSoon: (rows) => cleaner.add(rows),
  }
  const hub = settings.invalidation === 'triggers' ? hubOf(db) : undefined
  hub?.parties.add(party)
  const { isStandby } = settings
  const relay = new Relay(party, { ...(settings.relay ?? RELAY_DEFAULTS), isStandby })
  if (settings.relay) relay.start()

  const plan = async (): Promise<InstallPlan> => ({
    namespace,
    models: planModels(await binder.bindAll()),
    maxTouchedRows: settings.maxTouchedRows,
  })
  const refuseClosed = () => {
    if (parts.closed) throw new CacheClosedError(parts.namespace)
  }

  const declared = new Map<object, Declared>()
  const cache: DatabaseCache<DB> = {
    ...createCustomCaches<DB>(declared),
    model(table, meta) {
      const definition = defineModel(table, { ...meta, ttl: meta.ttl ?? settings.ttlMs } as ModelMeta)
      if (binder.get(table)) throw new ModelError(table, 'is declared twice in one database')
      if (definition.consistency === 'strict' && !hub) {
        throw new OptionError(
          `${table}.consistency`,
          "'default', or db made with withInvalidation(dialect)",
          'strict',
        )
      }
      const binding = newBinding(definition)
      const reader = new Reader(databaseParts, binding)
      const modelCache = new RelatedModelCache(reader)
      extendModelCache(table, modelCache, meta.extend as ((given: object) => unknown) | undefined)
      binder.add(binding)
      databaseParts.readers.set(table, reader)
      const { relations = {}, scopeBy = {} } = meta
      const model = { name: table, relations, scopeBy, cache: modelCache }
      declared.set(model, { reader, extend: (extended) => binder.extend(binding, extended) })
      return model as never
    },
    link(models) {
      linkModels(models, (model) => declared.get(model)?.reader)
      return models as never
    },
    get modelNames() {
      return binder.bindings.map(({ definition }) => definition.name)
    },
    async transaction(fn, options = {}) {
      refuseClosed()
      if (!hub)
        throw new OptionError(
          'db',
          'made with withInvalidation(dialect) to use cache.transaction',
          'a plain dialect',
        )
      // Not inside: it takes a connection, and the transaction may have the only one.
      await binder.bindWhatFits()
      const through = (trx: Transaction<DB>) =>
        routed.with(namespace, new KyselySource(trx as unknown as Database))
      return runTransaction(parts, db, through, fn, options)
    },
    async install() {
      const changes = await install(plain, await plan())
      binder.unbindAll()
      await binder.bindAll()
      // What was written while nobody recorded it. Where the store cannot be told now, the relay does it later.
      if (changes.length > 0) await relay.turn(0).catch(() => 0)
      relay.wake()
      return changes
    },
    installSql: async () => installSql(await plan()),
    async uninstall() {
      const changes = await uninstall(plain, namespace)
      if (hub) hub.installed = false
      binder.unbindAll()
      return changes
    },
    async ready() {
      const bound = await plan()
      if (settings.invalidation === 'manual') return
      const problems = problemsOf(await inspectInstall(plain, bound))
      if (problems.length > 0)
        throw new InstallError(`writes are not all seen; run cache.install(): ${problems.join('; ')}`)
    },
    async verify(options) {
      refuseClosed()
      return verify({ namespace, store, source, binder, db: plain }, options)
    },
    async doctor() {
      refuseClosed()
      const { maxTouchedRows, invalidation } = settings
      const dialectInvalidates = hubOf(db) !== undefined
      return diagnose({
        namespace,
        store,
        binder,
        db: plain,
        maxTouchedRows,
        invalidation,
        dialectInvalidates,
        replica,
      })
    },
    async clear(models) {
      refuseClosed()
      await clearModels(databaseParts, models)
    },
  }
  return {
    cache,
    relay,
    counters: party.counters,
    get replicaCounts() {
      return reading?.counts ?? NO_REPLICA_COUNTS
    },
    definitionOf: (model) => declared.get(model)?.reader.definition,
    tableChanged: (model) => binder.unbind(model),
    flush: () => cleaner.flush(),
    async stop() {
      await relay.stop()
      hub?.parties.delete(party)
      await cleaner.flush()
    },
  }
}
