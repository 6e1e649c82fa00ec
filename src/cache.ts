import type { Selectable, SelectQueryBuilder, Transaction } from 'kysely'
import { type CacheOptions, resolveOptions } from './cache-options.ts'
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
import { Dispatcher, newTotals, type Totals } from './loaders/dispatcher.ts'
import { AsyncDriver } from './loaders/driver.ts'
import { Flights } from './loaders/flight.ts'
import { ScopeLoader } from './loaders/loader.ts'
import { clearModels, extendModelCache, type ModelCache, RelatedModelCache } from './loaders/model-cache.ts'
import { type CacheParts, forgetTouched, Reader } from './loaders/reader.ts'
import { marksKey } from './models/key.ts'
import { defineModel, type ModelMeta } from './models/model.ts'
import type { CheckedRelations, GivenKey, NoRelations, RelatedRows, RelationsOf } from './models/relation.ts'
import type { FieldName, LookupKey, Row, TableName } from './models/types.ts'
import { Plan } from './plans/plan.ts'
import { type CreatePolymorphic, polymorphicOf } from './polymorphic.ts'
import type { Database } from './sources/database.ts'
import { KyselySource } from './sources/kysely.ts'
import { openRedisStore } from './stores/cluster.ts'
import { LazyStore } from './stores/lazy.ts'
import { MemoryStore } from './stores/memory.ts'
import type { CacheStore } from './stores/store.ts'

/** Counted since the cache was made. */
export interface CacheStats extends Readonly<Totals>, Readonly<InvalidationCounters> {
  /** Lookups made outside any scope. */
  readonly outOfScope: number
}

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
> {
  readonly name: Table
  /** As declared. */
  readonly relations: Declared
  readonly cache: keyof Extension extends never
    ? CacheOf<Key, Filter, Result, Related, Rows>
    : CacheOf<Key, Filter, Result, Related, Rows> & Extension
}

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

export interface Cache<DB> extends CustomCaches<DB> {
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
  >(
    table: TB,
    meta: Omit<ModelMeta<FieldName<DB, TB>, Selectable<DB[TB]>>, 'relations'> & {
      readonly keyFields: Keys
      readonly filterFields?: Filters | undefined
      readonly columns?: Columns | undefined
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
              RelatedRows<DB, Declared>,
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
    RelatedRows<DB, Declared>,
    Declared,
    Extension,
    // biome-ignore lint/complexity/noBannedTypes: as Kysely has it, for a query that selects nothing yet
    SelectQueryBuilder<DB, TB, {}>
  >

  /**
   * Resolves the row that a row points at by a type and an id, as in `comments(target_type, target_id)`: by the primary
   * key of the model that is declared for the type, so it shares that model's entries. Rows of any mix of types are one
   * wave.
   *
   * ```ts
   * const Target = cache.polymorphic({ type: 'target_type', id: 'target_id', to: { user: User, event: Event } })
   * await Target.lookup(comment) // the user, or the event, or null
   * ```
   *
   * @throws OptionError
   */
  readonly polymorphic: CreatePolymorphic

  /**
   * An empty plan over parameters of these types, which are given to `resolve` or not. Nodes and the ways to them are
   * added one by one:
   *
   * ```ts
   * const page = cache
   *   .plan<{ eventSlug: string; eventId: number }>()
   *   .node('event', ['eventSlug'], ({ eventSlug }) => EventOnSlug(eventSlug))
   *   .way('event', ['eventId'], ({ eventId }) => Event.cache.getQuery({ id: eventId }))
   *   .node('owner', ['event'], ({ event }) => User.cache.getQuery({ id: event.owner_id }))
   *
   * const { owner } = await page.resolve({ eventSlug: 'launch' }, ['owner'])
   * console.log(page.explain(['eventSlug'], ['owner']))
   * ```
   */
  // biome-ignore lint/complexity/noBannedTypes: no parameters
  plan<Params extends object = {}>(): Plan<{ [Name in keyof Params]-?: Params[Name] }>

  /** The names of the models declared so far. */
  readonly modelNames: readonly string[]

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
  clear(models?: readonly TableName<DB>[]): Promise<void>

  /** Resolves when nothing is under way, fills included. */
  idle(): Promise<void>

  stats(): CacheStats

  /** Lets what is under way end, then frees the store's connection. `db` and `redis` stay open: they are yours. */
  close(): Promise<void>
}

/**
 * Makes a cache over a database: the one place where its parts are put together.
 *
 * @throws OptionError
 */
export function createModelCache<DB>(options: CacheOptions<DB>): Cache<DB> {
  const { db, redis, namespace, ...settings } = resolveOptions(options)
  const openRedis = (client: NonNullable<typeof redis>) =>
    openRedisStore(client, {
      timeout: settings.storeTimeoutMs,
      intentReplicas: settings.intentReplicas,
      marksKey: marksKey(namespace),
    })
  const store = !redis
    ? new MemoryStore(settings.memory)
    : settings.enabled
      ? openRedis(redis)
      : new LazyStore(() => openRedis(redis))
  const database = db as unknown as Database
  const plain = database.withoutPlugins()
  const source = new KyselySource(database)
  const binder = new Binder(namespace, source, settings.valueTypes, (name, form, atLeast) =>
    storedFormNumber(plain, namespace, name, form, atLeast),
  )
  const driver = new AsyncDriver(store, source)
  const totals = newTotals()
  const dispatcher = new Dispatcher({
    namespace,
    driver,
    settings: settings.wave,
    useStore: settings.enabled,
    flights: new Flights(),
    totals,
    tableChanged: (model) => binder.unbind(model),
  })
  const parts: CacheParts = {
    namespace,
    store,
    binder,
    dispatcher,
    counters: { outOfScope: 0 },
    ambient: new ScopeLoader(dispatcher, undefined),
    closed: false,
    readers: new Map(),
  }

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
  const relay = new Relay(party, {
    ...(settings.relay ?? RELAY_DEFAULTS),
    isStandby: redis !== undefined && !settings.enabled,
  })
  if (settings.relay) relay.start()

  const plan = async (): Promise<InstallPlan> => ({
    namespace,
    models: planModels(await binder.bindAll()),
    maxTouchedRows: settings.maxTouchedRows,
  })

  const declared = new Map<object, Declared>()
  const cache: Cache<DB> = {
    ...createCustomCaches<DB>(declared),
    model(table, meta) {
      const definition = defineModel(table, { ...meta, ttl: meta.ttl ?? settings.ttlMs } as ModelMeta)
      if (binder.get(table)) throw new ModelError(table, 'is declared twice in one cache')
      if (definition.consistency === 'strict' && !hub) {
        throw new OptionError(
          `${table}.consistency`,
          "'default', or db made with withInvalidation(dialect)",
          'strict',
        )
      }
      const binding = newBinding(definition)
      const reader = new Reader(parts, binding)
      const modelCache = new RelatedModelCache(reader)
      extendModelCache(table, modelCache, meta.extend as ((given: object) => unknown) | undefined)
      binder.add(binding)
      parts.readers.set(table, reader)
      const model = { name: table, relations: meta.relations ?? {}, cache: modelCache }
      declared.set(model, { reader, extend: (extended) => binder.extend(binding, extended) })
      return model as never
    },
    polymorphic: polymorphicOf((model) => declared.get(model)?.reader.definition),
    plan: () => new Plan(),
    get modelNames() {
      return binder.bindings.map(({ definition }) => definition.name)
    },
    async transaction(fn, transactionOptions = {}) {
      if (parts.closed) throw new CacheClosedError(namespace)
      if (!hub)
        throw new OptionError(
          'db',
          'made with withInvalidation(dialect) to use cache.transaction',
          'a plain dialect',
        )
      // Not inside: it takes a connection, and the transaction may have the only one.
      await binder.bindWhatFits()
      return runTransaction(parts, db, fn, transactionOptions)
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
    async verify(verifyOptions) {
      if (parts.closed) throw new CacheClosedError(namespace)
      return verify({ namespace, store, source, binder, db: plain }, verifyOptions)
    },
    async doctor() {
      if (parts.closed) throw new CacheClosedError(namespace)
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
      })
    },
    async clear(models) {
      if (parts.closed) throw new CacheClosedError(namespace)
      await clearModels(parts, models)
    },
    async idle() {
      await dispatcher.idle()
      await cleaner.flush()
    },
    stats: () => ({ ...totals, trips: { ...totals.trips }, ...party.counters, ...parts.counters }),
    async close() {
      parts.closed = true
      await relay.stop()
      await dispatcher.idle()
      hub?.parties.delete(party)
      await cleaner.flush()
      await store.close()
    },
  }
  insides.set(cache, { hook: driver.hook, store, relay })
  return cache
}

/** What the test kit may reach of a cache. */
interface Insides {
  readonly hook: AsyncDriver['hook']
  readonly store: CacheStore
  readonly relay: Relay
}

const insides = new WeakMap<object, Insides>()

/** @internal */
export function insidesOf(cache: object): Insides {
  const found = insides.get(cache)
  if (!found) throw new OptionError('cache', 'made by createModelCache', cache)
  return found
}
