import type { Kysely } from 'kysely'
import { messageOf, OptionError } from './errors.ts'
import { RELAY_DEFAULTS, type RelaySettings } from './invalidation/relay.ts'
import type { WaveSettings } from './loaders/wave.ts'
import { createRowCodec, type ValueType } from './models/codec.ts'
import { booleanOption, checkOptionNames, type Duration, durationMs, integerOption } from './options.ts'
import type { MemoryStoreOptions } from './stores/memory.ts'
import type { RedisClient } from './stores/redis.ts'
import type { ClusterClient } from './stores/topology.ts'

export interface CacheOptions<DB> {
  /** Where rows come from. Kysely on Postgres: `pg` or PGlite. */
  readonly db: Kysely<DB>
  /**
   * Where the shared cache is: an ioredis `Redis`, also one with `sentinels` and `name`, or an ioredis `Cluster`.
   * Loadstone makes connections of its own to the same servers, one to each master. Default: a store inside the
   * process, which is right only while one process uses the database through Loadstone.
   */
  readonly redis?: RedisClient | ClusterClient | undefined
  /** Begins all cache keys. Caches with one namespace on one store share entries. */
  readonly namespace: string
  /** The default `ttl` of models. Default `'7d'`. */
  readonly ttl?: Duration | undefined
  /** How long a step at the store may take before SQL answers instead. Default `'50ms'`. */
  readonly storeTimeout?: Duration | undefined
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
  readonly invalidation: 'triggers' | 'manual'
  readonly relay: RelaySettings | undefined
  readonly enabled: boolean
}

/** How long a reader looks again for a key that somebody else loads or writes: 50 ms in all, then SQL. */
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
  if (typeof namespace !== 'string' || namespace === '' || !namespace.isWellFormed()) {
    throw new OptionError('namespace', 'a text that is not empty, of well-formed Unicode', namespace)
  }
  if (typeof db?.selectFrom !== 'function') throw new OptionError('db', 'a Kysely instance', db)
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
      waitsMs: WAITS_MS,
      fillPatienceMs: FILL_PATIENCE_MS,
      maxValueBytes: integerOption('maxValueBytes', given.maxValueBytes ?? 1024 * 1024, 0),
      random: Math.random,
    },
    enabled: booleanOption('enabled', given.enabled ?? true),
    relay: relay === false || invalidation === 'manual' ? undefined : resolveRelay(relay),
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
