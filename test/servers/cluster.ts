import { Redis } from 'ioredis'
import { freePort } from './ports.ts'
import { startRedis } from './redis.ts'
import type { Server } from './server.ts'

export interface ClusterOptions {
  /** Default: `redis-server`. Valkey does as well. */
  program?: string | undefined
  /** How many replicas each master has. Default 0. */
  replicas?: number
  /** Further settings of every server, as on the command line. They win over ours. */
  args?: readonly string[]
  /** After how long without an answer a server counts as lost, ms. Default 2000. */
  nodeTimeout?: number
}

/** A Redis Cluster of our own on 127.0.0.1: three masters, a third of the slots each, in order. */
export interface TestCluster {
  readonly masters: readonly Server[]
  /** Those of the first master, then those of the second, and so on. */
  readonly replicas: readonly Server[]
  /** As an ioredis `Cluster` takes them. */
  readonly nodes: readonly { readonly host: string; readonly port: number }[]
  stop(): Promise<void>
}

const MASTERS = 3
const SLOTS = 16_384
const FORMING_MS = 15_000
const BUS_OFFSET = 10_000
const ATTEMPTS = 5

/** Starts a cluster, formed by our own commands, and waits until every server knows all of it. */
export async function startCluster({
  program,
  replicas = 0,
  args = [],
  nodeTimeout = 2000,
}: ClusterOptions = {}): Promise<TestCluster> {
  const count = MASTERS * (1 + replicas)
  const settings = ['--cluster-node-timeout', String(nodeTimeout), ...args]
  const started = await Promise.allSettled(
    Array.from({ length: count }, () => startClusterNode(settings, program)),
  )
  const servers = started.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []))
  const stop = async () => {
    await Promise.all(servers.map((server) => server.stop()))
  }
  try {
    for (const result of started) if (result.status === 'rejected') throw result.reason
    await form(servers, replicas)
  } catch (error) {
    await stop()
    throw error
  }
  return {
    masters: servers.slice(0, MASTERS),
    replicas: servers.slice(MASTERS),
    nodes: servers.map(({ port }) => ({ host: '127.0.0.1', port })),
    stop,
  }
}

/** A server that could become part of a cluster. */
export async function startClusterNode(args: readonly string[] = [], program?: string): Promise<Server> {
  const cluster = ['--cluster-enabled', 'yes', '--cluster-config-file', 'nodes.conf']
  // Else it does not know its own address until another server tells, and clients are told of slots at no address.
  cluster.push('--cluster-announce-ip', '127.0.0.1')
  for (let attempt = 1; ; attempt++) {
    const port = await freePort()
    // The cluster's own bus listens so much higher.
    if (port + BUS_OFFSET > 65_535) continue
    try {
      return await startRedis({
        port,
        program,
        args: [...cluster, '--repl-diskless-sync-delay', '0', ...args],
      })
    } catch (error) {
      if (attempt >= ATTEMPTS || !/address already in use|failed listening/i.test(String(error))) throw error
    }
  }
}

async function form(servers: readonly Server[], replicas: number): Promise<void> {
  const clients = servers.map(({ url }) => new Redis(url))
  try {
    await Promise.all(
      clients.map(async (client, i) => {
        await client.call('CLUSTER', 'SET-CONFIG-EPOCH', i + 1)
        if (i < MASTERS) await client.call('CLUSTER', 'ADDSLOTS', ...slotsOf(i))
      }),
    )
    const [first, ...others] = clients as [Redis, ...Redis[]]
    for (const { port } of servers.slice(1)) await first.call('CLUSTER', 'MEET', '127.0.0.1', port)
    await until(clients, async (client) => {
      return Number(infoOf(await client.call('CLUSTER', 'INFO'), 'cluster_known_nodes')) === servers.length
    })
    const ids = (await Promise.all(clients.map((client) => client.call('CLUSTER', 'MYID')))).map(String)
    await Promise.all(
      others
        .slice(MASTERS - 1)
        .map((client, i) => client.call('CLUSTER', 'REPLICATE', ids[Math.floor(i / replicas)] as string)),
    )
    await until(clients, async (client) => {
      if (infoOf(await client.call('CLUSTER', 'INFO'), 'cluster_state') !== 'ok') return false
      const known = String(await client.call('CLUSTER', 'NODES'))
      return (known.match(/\bslave\b/g) ?? []).length === servers.length - MASTERS
    })
    await until(clients.slice(MASTERS), async (client) =>
      /master_link_status:up/.test(await client.info('replication')),
    )
  } finally {
    for (const client of clients) client.disconnect()
  }
}

/** The slots of the master at `index`. */
export function slotsOf(index: number): number[] {
  const [from, to] = [Math.floor((index * SLOTS) / MASTERS), Math.floor(((index + 1) * SLOTS) / MASTERS)]
  return Array.from({ length: to - from }, (_, i) => from + i)
}

function infoOf(text: unknown, name: string): string | undefined {
  return new RegExp(`^${name}:(.*?)\r?$`, 'm').exec(String(text))?.[1]
}

async function until(clients: readonly Redis[], holds: (client: Redis) => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + FORMING_MS
  while (!(await Promise.all(clients.map(holds))).every(Boolean)) {
    if (Date.now() > deadline) throw new Error(`the cluster was not formed within ${FORMING_MS} ms`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
