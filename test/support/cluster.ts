import { randomBytes } from 'node:crypto'
import { Cluster, Redis } from 'ioredis'
import { slotOf } from '../../src/stores/slots.ts'
import type { TestCluster } from '../servers/cluster.ts'

/** A look past the store: each master by itself. */
export class ClusterView {
  readonly masters: readonly Redis[]
  readonly #cluster: Cluster

  constructor({ nodes, masters }: TestCluster) {
    this.masters = masters.map(({ url }) => {
      const redis = new Redis(url)
      redis.on('error', () => {}) // servers are killed on purpose
      return redis
    })
    this.#cluster = new Cluster([...nodes])
    this.#cluster.on('error', () => {})
  }

  /** Follows redirections, as an application does. */
  get client(): Cluster {
    return this.#cluster
  }

  /** All keys with this prefix, of all masters. */
  async keys(prefix: string): Promise<string[]> {
    return (await Promise.all(this.masters.map((redis) => redis.keys(`*${prefix}*`)))).flat()
  }

  async forget(prefix: string): Promise<void> {
    await Promise.all((await this.keys(prefix)).map((key) => this.#cluster.del(key)))
  }

  /** The key at which a stale copy is, and any other. */
  static placeOf(key: string): string {
    return key.endsWith('~stale') ? `{${key.slice(0, -'~stale'.length)}}~stale` : key
  }

  /** What one number of each server's `INFO stats` has grown by while `step` ran: this look itself is taken off. */
  async grown(step: () => Promise<unknown>, name = 'total_reads_processed'): Promise<number[]> {
    const read = async (redis: Redis) => {
      const info = await redis.info('stats')
      return Number(new RegExp(`^${name}:(\\d+)`, 'm').exec(info)?.[1])
    }
    const before = await Promise.all(this.masters.map(read))
    await step()
    const after = await Promise.all(this.masters.map(read))
    // The one that asks is counted before it is answered.
    return after.map((count, i) => count - (before[i] as number) - 1)
  }

  /** Which master has a key, by its slot. */
  async ownerOf(key: string): Promise<number> {
    const slot = slotOf(ClusterView.placeOf(key))
    const owned = await Promise.all(
      this.masters.map(async (redis) => {
        const ranges = (await redis.call('CLUSTER', 'SLOTS')) as [number, number, [string, number]][]
        const port = Number(redis.options.port)
        return ranges.some(([from, to, master]) => slot >= from && slot <= to && master[1] === port)
      }),
    )
    return owned.indexOf(true)
  }

  /** Begins to move the slot of a key to another master: from then on both know of it. */
  async move(key: string, to: number): Promise<Move> {
    const slot = slotOf(ClusterView.placeOf(key))
    const from = await this.ownerOf(key)
    const [source, target] = [this.masters[from] as Redis, this.masters[to] as Redis]
    const [sourceId, targetId] = (await Promise.all(
      [source, target].map((redis) => redis.call('CLUSTER', 'MYID')),
    )) as [string, string]
    await target.call('CLUSTER', 'SETSLOT', slot, 'IMPORTING', sourceId)
    await source.call('CLUSTER', 'SETSLOT', slot, 'MIGRATING', targetId)
    const keys = async () => {
      const found = (await source.call('CLUSTER', 'GETKEYSINSLOT', slot, 100)) as string[]
      if (found.length === 0) return
      await source.call('MIGRATE', '127.0.0.1', Number(target.options.port), '', 0, 5000, 'KEYS', ...found)
    }
    return {
      keys,
      finish: async () => {
        await keys()
        for (const redis of [target, source, ...this.masters]) {
          await redis.call('CLUSTER', 'SETSLOT', slot, 'NODE', targetId)
        }
      },
    }
  }

  close(): void {
    for (const redis of this.masters) redis.disconnect()
    this.#cluster.disconnect()
  }
}

/** A slot on its way. */
export interface Move {
  /** Moves the keys that are in it by now. */
  keys(): Promise<void>
  /** Moves what is left, and tells all masters whose slot it is. */
  finish(): Promise<void>
}

export function newNamespace(): string {
  return `test-${randomBytes(6).toString('hex')}`
}

/** `count` keys that begin with `prefix` and are of the slots from `from` up to, without it, `to`. */
export function keysIn(prefix: string, [from, to]: readonly [number, number], count: number): string[] {
  const keys: string[] = []
  for (let i = 0; keys.length < count; i++) {
    const key = `${prefix}${i}`
    const slot = slotOf(key)
    if (slot >= from && slot < to) keys.push(key)
  }
  return keys
}
