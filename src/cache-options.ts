import type { Kysely } from 'kysely'
import { messageOf, OptionError } from './errors.ts'
import { RELAY_DEFAULTS, type RelaySettings } from './invalidation/relay.ts'
import type { BulkheadSettings } from './loaders/bulkhead.ts'
import type { WaveSettings } from './loaders/wave.ts'
import { createRowCodec, type ValueType } from './models/codec.ts'
import { booleanOption, checkOptionNames, type Duration, durationMs, integerOption } from './options.ts'
import type { Database } from './sources/database.ts'
import type { LoadedShape, ReplicaSettings } from './sources/replica.ts'
import type { MemoryStoreOptions } from './stores/memory.ts'
import type { RedisClient } from './stores/redis.ts'
import type { ClusterClient } from './stores/topology.ts'

export interface CacheOptions<DB> extends DatabaseOptions {
  /** Where rows come from. Kysely on Postgres: `pg` or PGlite. */
  readonly db: Kysely<DB>
  /**
   * Where the shared cache is: an ioredis `Redis`, also one with `sentinels` and `name`, or an ioredis `Cluster`.
   * Loadstone makes connections of its own to the same servers, one to each master. Default: a store inside the
   * process, which is right only while one process uses the database through Loadstone.
   */
  readonly redis?: RedisClient | ClusterClient | undefined
  /** Begins all cache keys; any text without `~`. Caches with one namespace on one store share entries. */
  readonly namespace: string
  /** The default `ttl` of models. Default `'7d'`. */
  readonly ttl?: Duration | undefined
  /** How long a step at the store may take before SQL answers instead. Default `'50ms'`. */
  readonly storeTimeout?: Duration | undefined
  /**
   * How long a reader looks again for a key that somebody else loads or writes before SQL answers it, unshared. Default
   * `'50ms'`. Longer: fewer statements for what takes SQL long to load; and readers wait longer behind who has crashed.
   */
  readonly waitBudget?: Duration | undefined
  /**
   * Bounds of the SQL for lookups that the store would have answered, were it not away, see {@link FallbackOptions}.
   */
  readonly fallback?: FallbackOptions | undefined
  /**
   * How long one reader may take to load a key before another may. Default `'6s'`. Too short: rows load twice; too
   * long: after a crash its keys are loaded without being cached for so long.
   */
  readonly leaseTtl?: Duration | undefined
  /**
   * How long a write intent of a `strict` model holds without being renewed. Default `'30s'`. A writer that is
   * paused for longer between its last statement and COMMIT loses the strict promise; one that crashes leaves its
   * keys uncached for so long.
   */
  readonly intentTtl?: Duration | undefined
  /**
   * How many Redis replicas must have a write intent before COMMIT. Default 0. As many as there are: `strict` holds
   * through a failover, strict writes fail while one of them is away, and lookups wait behind a replica that is slow.
   */
  readonly intentReplicas?: number | undefined
  /** A longer encoded value is answered, but not cached. Default 1 MiB. */
  readonly maxValueBytes?: number | undefined
  /** A statement that writes more rows of a model is recorded as one that wrote all of them. Default 10,000. Takes effect with `install()`. */
  readonly maxTouchedRows?: number | undefined
  /** Bounds of the store inside the process; refused together with `redis`. */
  readonly memory?: MemoryStoreOptions | undefined
  /** How values of classes that type parsers return (a Decimal, a Temporal) are kept. Default none. */
  readonly valueTypes?: readonly ValueType[] | undefined
  /**
   * `'triggers'` (the default): what `install()` puts into the database tells which entries a write touched. `'manual'`:
   * there are no triggers, and entries live until their ttl, or until `invalidate` or `clear` is called.
   */
  readonly invalidation?: 'triggers' | 'manual' | undefined
  /** The relay of this process, see {@link RelayOptions}. False: this process never applies what others wrote. */
  readonly relay?: RelayOptions | false | undefined
  /**
   * False: every lookup is answered by SQL, batched and memoised as always, and none by the store, which is not even
   * connected to until there is something to clear. Writes go on to clear what other processes have there, and take
   * intents for strict models; what nobody else applies of the outbox, the relay of this process does, some seconds later.
   * Default true.
   */
  readonly enabled?: boolean | undefined
}

/** Of each of the databases of a cache. */
export interface DatabaseOptions {
  /** A standby to load rows from, see {@link ReplicaOptions}. Default: all rows come from the primary. */
  readonly replica?: ReplicaOptions | undefined
}

/**
 * Where rows are loaded from when that is as good as the primary: a load asks how far the primary is, sees that the
 * replica has as much, and then reads there. When it has not, or anything else is wrong with it, the primary answers,
 * and `stats().replica` counts why. So answers are as fresh, and are cached, as without a replica.
 *
 * Not read from a replica: strict models, what is looked up in `cache.transaction`, `invalidateWhere`, `verify`, and
 * what functions given as `load` read through the `db` they are handed.
 */
export interface ReplicaOptions {
  /**
   * Kysely on a pool of connections to physical standbys of the Postgres of `db`; each may lead to another one. With the
   * type parsers and session settings of `db`; Kysely's plugins are those of `db`, whatever it has itself.
   */
  // biome-ignore lint/suspicious/noExplicitAny: only its connections are used
  readonly db: Kysely<any>
  /**
   * How long the replica may take to show that it has what the primary had, a connection from its pool included. Then
   * the primary is asked. Default `'20ms'`. Longer than the 50 ms for which others wait for a load: they load as well.
   */
  readonly maxWait?: Duration | undefined
  /** Asked at every load. Default: every shape is read from the replica. */
  readonly uses?: ((shape: LoadedShape) => boolean) | undefined
}

/**
 * What the database is asked to do while the store cannot be: the rest waits, and what cannot wait is rejected with
 * OverloadedError. Per database, and per cache. Loads under a lease, and of what is never cached, are not counted.
 */
export interface FallbackOptions {
  /**
   * How many statements run at once, and as many `load` functions of custom caches. Default 10, as many as a pool of `pg`
   * has connections unless it is told otherwise. Give it the size of your pool; less, to keep some of it for others.
   */
  readonly concurrency?: number | undefined
  /** How many more may wait. Those beyond are rejected at once. Default 1000. */
  readonly queue?: number | undefined
  /** How long one may wait before it is rejected. Default `'1s'`. */
  readonly timeout?: Duration | undefined
}

/**
 * The relay applies writes that their writer did not apply itself: other programs, psql, crashed processes. One
 * process at a time does.
 */
export interface RelayOptions {
  /** How often the outbox is looked at. Default `'50ms'`. */
  readonly poll?: Duration | undefined
  /** Younger outbox rows are left to the process that wrote them. Default `'100ms'`. Shorter: keys are cleared twice; longer: other programs' writes are seen later. */
  readonly grace?: Duration | undefined
  /** How often other processes try to take over: how long the outbox waits after a crash. Default `'1s'`. */
  readonly election?: Duration | undefined
}

const OPTION_NAMES = [
  'db',
  'redis',
  'namespace',
  'ttl',
  'storeTimeout',
  'waitBudget',
  'fallback',
  'leaseTtl',
  'intentTtl',
  'intentReplicas',
  'maxValueBytes',
  'maxTouchedRows',
  'memory',
  'valueTypes',
  'invalidation',
  'relay',
  'enabled',
  'replica',
]

export interface ResolvedOptions<DB> {
  readonly db: Kysely<DB>
  readonly redis: RedisClient | ClusterClient | undefined
  readonly namespace: string
  readonly ttlMs: number
  readonly storeTimeoutMs: number
  readonly intentTtlMs: number
  readonly intentReplicas: number
  readonly maxTouchedRows: number
  readonly memory: MemoryStoreOptions | undefined
  readonly valueTypes: readonly ValueType[]
  readonly wave: WaveSettings
  readonly fallback: BulkheadSettings
  readonly invalidation: 'triggers' | 'manual'
  readonly relay: RelaySettings | undefined
  readonly enabled: boolean
  readonly replica: ReplicaSettings | undefined
}

/** How long a reader waits before it looks again, for the first times and from then on, ms. */
const WAITS_MS = [2, 4, 8, 16, 20]
/** How long a loaded value waits for the slower statements of its wave before it is filled without them. */
const FILL_PATIENCE_MS = 250

/** @throws OptionError for the first option that is not as it must be */
export function resolveOptions<DB>(given: CacheOptions<DB>): ResolvedOptions<DB> {
  if (typeof given !== 'object' || given === null) {
    throw new OptionError('options', 'an object with db and namespace', given)
  }
  checkOptionNames('createModelCache', given, OPTION_NAMES)
  const { db, redis, namespace, memory, valueTypes = [], invalidation = 'triggers', relay = {} } = given
  if (
    typeof namespace !== 'string' ||
    namespace === '' ||
    !namespace.isWellFormed() ||
    namespace.includes('~')
  ) {
    throw new OptionError(
      'namespace',
      "a text that is not empty, of well-formed Unicode, without '~'",
      namespace,
    )
  }
  if (!isDatabase(db)) throw new OptionError('db', 'a Kysely instance', db)
  if (redis !== undefined && typeof redis?.duplicate !== 'function') {
    throw new OptionError('redis', 'an ioredis client', redis)
  }
  if (redis && memory) throw new OptionError('memory', 'left out when redis is given', memory)
  if (!Array.isArray(valueTypes)) throw new OptionError('valueTypes', 'a list of value types', valueTypes)
  try {
    createRowCodec(['any'], { valueTypes })
  } catch (error) {
    throw new OptionError('valueTypes', `a list of value types (${messageOf(error)})`, valueTypes)
  }
  if (invalidation !== 'triggers' && invalidation !== 'manual') {
    throw new OptionError('invalidation', "'triggers' or 'manual'", invalidation)
  }
  return {
    db,
    redis,
    invalidation,
    namespace,
    memory,
    valueTypes,
    ttlMs: durationMs('ttl', given.ttl ?? '7d'),
    storeTimeoutMs: durationMs('storeTimeout', given.storeTimeout ?? '50ms'),
    intentTtlMs: durationMs('intentTtl', given.intentTtl ?? '30s', 100),
    intentReplicas: integerOption('intentReplicas', given.intentReplicas ?? 0, 0),
    maxTouchedRows: integerOption('maxTouchedRows', given.maxTouchedRows ?? 10_000, 1, 1_000_000),
    wave: {
      leaseMs: durationMs('leaseTtl', given.leaseTtl ?? '6s'),
      waitsMs: waitsWithin(durationMs('waitBudget', given.waitBudget ?? '50ms', 0)),
      fillPatienceMs: FILL_PATIENCE_MS,
      maxValueBytes: integerOption('maxValueBytes', given.maxValueBytes ?? 1024 * 1024, 0),
      random: Math.random,
    },
    fallback: resolveFallback(given.fallback),
    enabled: booleanOption('enabled', given.enabled ?? true),
    relay: relay === false || invalidation === 'manual' ? undefined : resolveRelay(relay),
    replica: given.replica === undefined ? undefined : resolveReplica(given.replica, db),
  }
}

function isDatabase(given: unknown): boolean {
  return typeof (given as { selectFrom?: unknown } | undefined)?.selectFrom === 'function'
}

/** @throws OptionError unless these can be the name, and the rest, of a further database */
export function resolveUsing(
  name: unknown,
  db: unknown,
  given: DatabaseOptions,
): ReplicaSettings | undefined {
  if (typeof name !== 'string' || !/^[\w.-]+$/.test(name))
    throw new OptionError('using', "a name of letters, digits, '_', '.' and '-'", name)
  if (!isDatabase(db)) throw new OptionError(`using ${name}`, 'a Kysely instance', db)
  checkOptionNames(`using ${name}`, given, ['replica'])
  return given.replica && resolveReplica(given.replica, db)
}

/** Waits that are `budgetMs` together. */
function waitsWithin(budgetMs: number): number[] {
  const waits: number[] = []
  for (let left = budgetMs; left > 0; left -= waits.at(-1) as number) {
    waits.push(Math.min(left, WAITS_MS[waits.length] ?? 20))
  }
  return waits
}

function resolveFallback(given: FallbackOptions = {}): BulkheadSettings {
  if (typeof given !== 'object' || given === null) throw new OptionError('fallback', 'an object', given)
  checkOptionNames('fallback', given, ['concurrency', 'queue', 'timeout'])
  return {
    concurrency: integerOption('fallback.concurrency', given.concurrency ?? 10, 1),
    queue: integerOption('fallback.queue', given.queue ?? 1000, 0),
    timeoutMs: durationMs('fallback.timeout', given.timeout ?? '1s'),
  }
}

function resolveRelay(given: RelayOptions): RelaySettings {
  if (typeof given !== 'object' || given === null) throw new OptionError('relay', 'an object or false', given)
  checkOptionNames('relay', given, ['poll', 'grace', 'election'])
  const { pollMs, graceMs, electionMs } = RELAY_DEFAULTS
  return {
    ...RELAY_DEFAULTS,
    pollMs: durationMs('relay.poll', given.poll ?? pollMs),
    graceMs: durationMs('relay.grace', given.grace ?? graceMs, 0),
    electionMs: durationMs('relay.election', given.election ?? electionMs),
  }
}

function resolveReplica(given: ReplicaOptions, primary: unknown): ReplicaSettings {
  if (typeof given !== 'object' || given === null)
    throw new OptionError('replica', 'an object with db', given)
  checkOptionNames('replica', given, ['db', 'maxWait', 'uses'])
  const { db, maxWait = '20ms', uses = () => true } = given
  if (typeof db?.selectFrom !== 'function') throw new OptionError('replica.db', 'a Kysely instance', db)
  if (db === primary) throw new OptionError('replica.db', 'another Kysely than db, on a standby', 'db')
  if (db.getExecutor().adapter.supportsMultipleConnections === false)
    throw new OptionError(
      'replica.db',
      'on a pool of connections to a standby',
      'a database without standbys',
    )
  if (typeof uses !== 'function')
    throw new OptionError('replica.uses', 'a function that takes a shape and returns true or false', uses)
  return { db: db as Database, maxWaitMs: durationMs('replica.maxWait', maxWait), uses }
}
