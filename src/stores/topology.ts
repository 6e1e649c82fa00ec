import { OWN_CONNECTION } from './connection.ts'
import type { RedisClient } from './redis.ts'
import { SLOTS } from './slots.ts'

/**
 * What Loadstone needs of an ioredis `Cluster` (5.x or 6.x): where its servers are, and how to make a client of its
 * own for the same cluster.
 */
export interface ClusterClient {
  readonly isCluster: boolean
  readonly options: object
  duplicate(overrideStartupNodes?: object, overrideOptions?: object): unknown
}

/** The part of an ioredis `Cluster` that is used on Loadstone's own one. */
interface ClusterConnection {
  readonly status: string
  readonly options: { readonly keyPrefix?: string; readonly natMap?: unknown }
  /** Per slot, the addresses of its master and then of its replicas. */
  readonly slots: readonly (readonly string[] | undefined)[]
  connect(): Promise<void>
  disconnect(reconnect?: boolean): void
  nodes(role: 'master'): NodeClient[]
  refreshSlotsCache(callback: (error?: unknown) => void): void
  on(event: 'refresh' | 'close' | 'end' | 'error', listener: (error?: unknown) => void): unknown
}

/** An ioredis `Redis` of a cluster: never connected, only copied. */
export interface NodeClient extends RedisClient {
  readonly options: { readonly host?: string; readonly port?: number }
}

/** How long after the servers were asked they are not asked again, ms. */
const REFRESH_PAUSE_MS = 200

/**
 * Which master has which slots, as ioredis finds it out, through a client of our own. No commands go through it: it
 * would send them again to another server by itself, and not say which one answered.
 */
export class Topology {
  /** Per slot, the address of its master, `host:port`. */
  owners: readonly (string | undefined)[] = []
  /** By address, what connections to a master are copied from. */
  clients: ReadonlyMap<string, NodeClient> = new Map()
  readonly keyPrefix: string
  /** Settles when the cluster has been asked for the first time. */
  readonly opening: Promise<void>
  lastError: unknown
  readonly #connection: ClusterConnection
  readonly #changed: () => void
  #asked = 0
  #refreshing: Promise<void> | undefined

  /** @param changed called when a slot has another master, or none any more */
  constructor(client: ClusterClient, changed: () => void) {
    this.#changed = changed
    this.#connection = client.duplicate([], {
      lazyConnect: true,
      enableOfflineQueue: false,
      // Which slots there are is of use also while some of them are not served.
      enableReadyCheck: false,
      shardedSubscribers: false,
      slotsRefreshInterval: 0,
      clusterRetryStrategy: OWN_CONNECTION.retryStrategy,
      // ioredis counts slots with what it is told.
      redisOptions: { stringNumbers: false },
    }) as ClusterConnection
    this.keyPrefix = this.#connection.options.keyPrefix ?? ''
    this.opening = new Promise((opened) => {
      const note = (error?: unknown) => {
        if (error) this.lastError = error
      }
      this.#connection.on('error', note)
      this.#connection.on('refresh', () => {
        this.#read()
        opened()
      })
      for (const event of ['close', 'end'] as const) this.#connection.on(event, () => opened())
    })
    this.#connection.connect().catch((error: unknown) => {
      this.lastError ??= error
    })
  }

  /** Asks the servers which slots they have, unless that has just been done. Resolves in any case. */
  refresh(): Promise<void> {
    this.#refreshing ??= this.#ask().finally(() => {
      this.#refreshing = undefined
    })
    return this.#refreshing
  }

  /** The address as we reach it, of one that a server has told. */
  reachable(address: string): string {
    const { natMap } = this.#connection.options
    const mapped: unknown =
      typeof natMap === 'function'
        ? natMap(address)
        : (natMap as Record<string, unknown> | undefined)?.[address]
    const { host, port } = (mapped ?? {}) as { host?: string; port?: number }
    return host ? `${host}:${port}` : address
  }

  close(): void {
    this.#connection.disconnect()
  }

  async #ask(): Promise<void> {
    const waitMs = this.#asked + REFRESH_PAUSE_MS - performance.now()
    if (waitMs > 0) await new Promise((resolve) => setTimeout(resolve, waitMs))
    this.#asked = performance.now()
    if (this.#connection.status !== 'ready') return
    await new Promise<void>((resolve) => {
      this.#connection.refreshSlotsCache((error) => {
        // None of them answers: they may all have moved, and only the addresses given at first lead to them.
        if (error) {
          this.lastError = error
          if (this.#connection.status === 'ready') this.#connection.disconnect(true)
        }
        resolve()
      })
    })
  }

  #read(): void {
    const { slots } = this.#connection
    const owners = Array.from({ length: SLOTS }, (_, slot) => slots[slot]?.[0])
    const clients = new Map<string, NodeClient>()
    for (const node of this.#connection.nodes('master')) {
      clients.set(`${node.options.host}:${node.options.port}`, node)
    }
    const isSame = owners.every((owner, slot) => owner === this.owners[slot])
    this.clients = clients
    if (isSame) return
    this.owners = owners
    this.#changed()
  }
}
