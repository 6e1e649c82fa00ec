import type { Kysely } from 'kysely'
import { type CacheOptions, type DatabaseOptions, resolveOptions, resolveUsing } from './cache-options.ts'
import {
  type DatabaseCache,
  type DatabaseOperations,
  type OpenDatabase,
  openDatabase,
  type SharedParts,
} from './database-cache.ts'
import { CacheClosedError, OptionError } from './errors.ts'
import { type InvalidationCounters, sumOfCounters } from './invalidation/party.ts'
import type { Relay } from './invalidation/relay.ts'
import { Fallbacks } from './loaders/bulkhead.ts'
import { Dispatcher, newTotals, type Totals } from './loaders/dispatcher.ts'
import { AsyncDriver } from './loaders/driver.ts'
import { Flights, QueuedLoads } from './loaders/flight.ts'
import { ScopeLoader } from './loaders/loader.ts'
import type { CacheParts } from './loaders/reader.ts'
import { databaseNamespace, marksKey } from './models/key.ts'
import { Plan } from './plans/plan.ts'
import { type CreatePolymorphic, polymorphicOf } from './polymorphic.ts'
import { type ReplicaCounts, type ReplicaSettings, sumOfReplicas } from './sources/replica.ts'
import { RoutedSource } from './sources/routed.ts'
import { Breaker, type BreakerSettings, type BreakerState } from './stores/breaker.ts'
import { LazyStore } from './stores/lazy.ts'
import { MemoryStore } from './stores/memory.ts'
import { openRedisStore } from './stores/open.ts'
import type { CacheStore } from './stores/store.ts'
import { channels } from './telemetry.ts'

/** Few enough that hardly a request waits in vain, more than one that failed by chance. */
const BREAKER: BreakerSettings = Object.freeze({ failures: 5, pauseMs: 100 })

/** Counted since the cache was made. */
export interface CacheStats extends Readonly<Totals>, Readonly<InvalidationCounters> {
  /** Lookups made outside any scope. */
  readonly outOfScope: number
  /** Of the store: while it is not `closed`, lookups go to SQL at once. */
  readonly breaker: BreakerState
  /** How often it has opened. */
  readonly breakerOpened: number
  /** Loads that were to be answered by replicas; each of 0 where there is none. */
  readonly replica: ReplicaCounts
}

/** What is published on `loadstone:breaker`. */
export interface BreakerMessage {
  readonly namespace: string
  readonly state: BreakerState
  /** How often it has opened since the cache was made. */
  readonly opened: number
  /** What failed last. */
  readonly error: unknown
}

/** A cache, and the database it was made over. */
export interface Cache<DB> extends DatabaseCache<DB> {
  /**
   * Another database, whose models join the waves, scopes and store of this cache: lookups of any mix of databases are
   * one MGET. Give each a name that stays, for it is part of the cache keys. With several databases of the same tables
   * (shards), declare the models on each, and choose by the key:
   *
   * ```ts
   * const archive = cache.using('archive', archiveDb)
   * const OldOrder = archive.model('orders', { keyFields: [['id']] })
   *
   * const users = shardDbs.map((db, i) => cache.using(`shard${i}`, db).model('users', { keyFields: [['id']] }))
   * const userOf = (id: number) => users[id % users.length].cache.getAsync({ id })
   * ```
   *
   * A lookup of one database inside a transaction of another one is answered by SQL, outside of that transaction.
   *
   * @param name of letters, digits, `_`, `.` and `-`
   * @throws OptionError for a bad name, or one that is taken; CacheClosedError
   */
  using<Other>(name: string, db: Kysely<Other>, options?: DatabaseOptions): DatabaseCache<Other>

  /** The databases that `using` has added, by name. */
  readonly databases: ReadonlyMap<string, DatabaseOperations>

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
  const breaker = new Breaker(BREAKER, () => performance.now())
  const openRedis = (client: NonNullable<typeof redis>) => {
    const { storeTimeoutMs: timeout, intentReplicas } = settings
    const storeOptions = { timeout, intentReplicas, marksKey: marksKey(namespace) }
    return openRedisStore(client, storeOptions, breaker)
  }
  const store = !redis
    ? new MemoryStore(settings.memory)
    : settings.enabled
      ? openRedis(redis)
      : new LazyStore(() => openRedis(redis))
  const source = new RoutedSource()
  const driver = new AsyncDriver(store, source, new Fallbacks(settings.fallback))
  const totals = newTotals()
  const all: OpenDatabase[] = []
  const dispatcher = new Dispatcher({
    namespace,
    driver,
    settings: settings.wave,
    useStore: settings.enabled,
    isAway: () => breaker.state !== 'closed',
    flights: new Flights(),
    queued: new QueuedLoads(),
    totals,
    tableChanged: (model) => {
      for (const { tableChanged } of all) tableChanged(model)
    },
  })
  const parts: CacheParts = {
    namespace,
    store,
    dispatcher,
    counters: { outOfScope: 0 },
    ambient: new ScopeLoader(dispatcher, undefined),
    closed: false,
  }
  breaker.onChange = () => {
    const { state, opened, lastError: error } = breaker
    // What could not be cleared meanwhile is what lookups must not see for long.
    if (state === 'closed') for (const { relay } of all) relay.wake()
    if (!channels.breaker.hasSubscribers) return
    channels.breaker.publish({ namespace, state, opened, error } satisfies BreakerMessage)
  }
  const shared: SharedParts = {
    cache: parts,
    source,
    binders: new Set(),
    settings: { ...settings, isStandby: redis !== undefined && !settings.enabled },
  }
  const open = <Tables>(of: string, instance: Kysely<Tables>, replica: ReplicaSettings | undefined) => {
    const opened = openDatabase(shared, of, instance, replica)
    all.push(opened)
    insides.set(opened.cache, { hook: driver.hook, store, relay: opened.relay })
    return opened
  }

  const databases = new Map<string, DatabaseOperations>()
  const first = open(namespace, db, settings.replica)
  const cache: Cache<DB> = {
    ...first.cache,
    get modelNames() {
      return first.cache.modelNames
    },
    using(name, other, given = {}) {
      if (parts.closed) throw new CacheClosedError(namespace)
      const replica = resolveUsing(name, other, given)
      if (databases.has(name)) throw new OptionError('using', 'a name that is not taken', name)
      const { cache: opened } = open(databaseNamespace(namespace, name), other, replica)
      databases.set(name, opened)
      return opened
    },
    databases,
    polymorphic: polymorphicOf((model) =>
      all.map(({ definitionOf }) => definitionOf(model)).find((definition) => definition !== undefined),
    ),
    plan: () => new Plan(),
    async idle() {
      await dispatcher.idle()
      await Promise.all(all.map((database) => database.flush()))
    },
    stats: () => ({
      ...totals,
      trips: { ...totals.trips },
      ...sumOfCounters(all.map(({ counters }) => counters)),
      ...parts.counters,
      breaker: breaker.state,
      breakerOpened: breaker.opened,
      replica: sumOfReplicas(all.map(({ replicaCounts }) => replicaCounts)),
    }),
    async close() {
      parts.closed = true
      await dispatcher.idle()
      await Promise.all(all.map((database) => database.stop()))
      await store.close()
    },
  }
  insides.set(cache, { hook: driver.hook, store, relay: first.relay })
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
