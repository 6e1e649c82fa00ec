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
  placeOf(key: string): string {
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

  close(): void {
    for (const redis of this.masters) redis.disconnect()
    this.#cluster.disconnect()
  }
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
