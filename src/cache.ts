import type { Kysely, Selectable } from 'kysely'
import { ModelError, OptionError } from './errors.ts'
import { Binder } from './loaders/binder.ts'
import { Dispatcher, type Totals } from './loaders/dispatcher.ts'
import { AsyncDriver } from './loaders/driver.ts'
import { ScopeLoader } from './loaders/loader.ts'
import { type CacheParts, ModelCache } from './loaders/model-cache.ts'
import type { ValueType } from './models/codec.ts'
import { defineModel, type ModelMeta } from './models/model.ts'
import type { FieldName, LookupKey, Row, TableName } from './models/types.ts'
import { checkOptionNames, type Duration, durationMs, integerOption } from './options.ts'
import type { Database } from './sources/database.ts'
import { KyselySource } from './sources/kysely.ts'
import { MemoryStore, type MemoryStoreOptions } from './stores/memory.ts'
import { type RedisClient, RedisStore } from './stores/redis.ts'
import type { CacheStore } from './stores/store.ts'

export interface CacheOptions<DB> {
  /** Where rows come from. Kysely on Postgres: `pg` or PGlite. */
  readonly db: Kysely<DB>
  /**
   * Where the shared cache is: an ioredis `Redis`. Loadstone makes a connection of its own to the same server.
   * Default: a store inside the process.
   */
  readonly redis?: RedisClient
  /** Begins all cache keys. Caches with one namespace on one store share entries, so they must declare the same models. */
  readonly namespace: string
  /** The default `ttl` of models. Default `'7d'`. */
  readonly ttl?: Duration
  /** How long a step at the store may take before SQL answers instead. Default `'50ms'`. */
  readonly storeTimeout?: Duration
  /**
   * How long one reader may take to load a key before another may. Default `'6s'`. Too short: rows load twice; too
   * long: after a crash its keys are loaded without being cached for so long.
   */
  readonly leaseTtl?: Duration
  /** A longer encoded value is answered, but not cached. Default 1 MiB. */
  readonly maxValueBytes?: number
  /** Bounds of the store inside the process; refused together with `redis`. */
  readonly memory?: MemoryStoreOptions
  /** How values of classes that type parsers return (a Decimal, a Temporal) are kept. Default none. */
  readonly valueTypes?: readonly ValueType[]
}

const OPTION_NAMES = [
  'db',
  'redis',
  'namespace',
  'ttl',
  'storeTimeout',
  'leaseTtl',
  'maxValueBytes',
  'memory',
  'valueTypes',
]

/** Counted since the cache was made. */
export interface CacheStats extends Readonly<Totals> {
  /** Lookups made outside any scope. */
  readonly outOfScope: number
}

/** A model: its table, and `cache` to look rows up. */
export interface Model<Key extends object, Filter extends object, Result> {
  readonly name: string
  readonly cache: ModelCache<Key, Filter, Result>
}

export interface Cache<DB> {
  /**
   * Declares how a table is looked up. The table is checked at the first lookup.
   *
   * @throws OptionError for a bad option, ModelError for a model or shape declared twice
   */
  model<
    TB extends TableName<DB>,
    const Keys extends readonly (readonly FieldName<DB, TB>[])[],
    const Filters extends readonly (readonly FieldName<DB, TB>[])[] = readonly [],
    const Columns extends readonly FieldName<DB, TB>[] = readonly FieldName<DB, TB>[],
  >(
    table: TB,
    meta: ModelMeta<FieldName<DB, TB>> & {
      readonly keyFields: Keys
      readonly filterFields?: Filters
      readonly columns?: Columns
    },
  ): Model<
    LookupKey<Selectable<DB[TB]>, Keys>,
    LookupKey<Selectable<DB[TB]>, Filters>,
    Row<DB, TB, Columns[number]>
  >

  /** Resolves when every declared model is bound to its table. Rejects ModelError, or SourceError when the database cannot be asked. */
  ready(): Promise<void>

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
  if (typeof options !== 'object' || options === null)
    throw new OptionError('options', 'an object with db and namespace', options)
  checkOptionNames('createModelCache', options, OPTION_NAMES)
  const { db, redis, namespace, valueTypes = [] } = options
  if (typeof namespace !== 'string' || namespace === '')
    throw new OptionError('namespace', 'a text that is not empty', namespace)
  if (typeof db?.selectFrom !== 'function') throw new OptionError('db', 'a Kysely instance', db)
  if (redis !== undefined && typeof redis.duplicate !== 'function')
    throw new OptionError('redis', 'an ioredis client', redis)
  if (redis && options.memory) throw new OptionError('memory', 'left out when redis is given', options.memory)
  const storeTimeout = durationMs('storeTimeout', options.storeTimeout ?? '50ms')
  const ttl = durationMs('ttl', options.ttl ?? '7d')
  const settings = {
    leaseMs: durationMs('leaseTtl', options.leaseTtl ?? '6s'),
    waitsMs: [2, 4, 8, 16, 20],
    fillPatienceMs: 250,
    maxValueBytes: integerOption('maxValueBytes', options.maxValueBytes ?? 1024 * 1024, 0),
    random: Math.random,
  }
  const store = redis ? new RedisStore(redis, { timeout: storeTimeout }) : new MemoryStore(options.memory)
  const source = new KyselySource(db as unknown as Database)
  const binder = new Binder(namespace, source, valueTypes)
  const driver = new AsyncDriver(store, source)
  const dispatcher = new Dispatcher(namespace, driver, settings, (model) => binder.unbind(model))
  const parts: CacheParts = {
    namespace,
    store,
    binder,
    dispatcher,
    counters: { outOfScope: 0 },
    ambient: new ScopeLoader(dispatcher, undefined),
    closed: false,
  }

  const cache: Cache<DB> = {
    model(table, meta) {
      const definition = defineModel(table, { ttl, ...meta } as ModelMeta)
      if (binder.has(table)) throw new ModelError(table, 'is declared twice in one cache')
      return { name: table, cache: new ModelCache(parts, binder.add(definition)) }
    },
    async ready() {
      for (const binding of binder.bindings) await binder.bind(binding)
    },
    idle: () => dispatcher.idle(),
    stats: () => ({ ...dispatcher.totals, trips: { ...dispatcher.totals.trips }, ...parts.counters }),
    async close() {
      parts.closed = true
      await dispatcher.idle()
      await store.close()
    },
  }
  insides.set(cache, { driver, store })
  return cache
}

/** What the test kit may reach of a cache. */
const insides = new WeakMap<object, { readonly driver: AsyncDriver; readonly store: CacheStore }>()

/** @internal */
export function insidesOf(cache: object) {
  const found = insides.get(cache)
  if (!found) throw new OptionError('cache', 'made by createModelCache', cache)
  return found
}
