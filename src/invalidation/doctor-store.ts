import { messageOf } from '../errors.ts'
import type { CacheStore, NodeFacts, StoreFacts } from '../stores/store.ts'
import { clockFinding, type Finding, fail, isAtLeast, median, ok, readableMs, warn } from './findings.ts'

const OLDEST_REDIS = [6, 2] as const

/**
 * Looks at the store. Never rejects: that it cannot be reached is a finding.
 *
 * @param keys under which nothing is stored, one for each prefix that is used
 */
export async function diagnoseStore(store: CacheStore, keys: readonly string[] = []): Promise<Finding[]> {
  if (!store.facts) {
    return [ok('store', 'it is inside this process, which is right while only one process uses the database')]
  }
  try {
    const missing = await store.missingRights?.(keys)
    const needed = missing?.filter((right) => right !== 'scan') ?? []
    if (needed.length > 0) return [rights(needed)]
    const facts = await store.facts()
    const findings = 'version' in facts ? findingsOf(facts) : findingsOfAll(facts)
    return missing ? [...findings, rights(missing)] : findings
  } catch (error) {
    return [
      fail(
        'store',
        `Redis cannot be asked: ${messageOf(error)}`,
        'start it, or correct the address and credentials of the client given as redis; until then, SQL answers every lookup',
      ),
    ]
  }
}

/** Without `scan`, only `verify` cannot work. */
function rights(missing: readonly string[]): Finding {
  if (missing.length === 0) return ok('store', 'its user may run every command that is used, on every key')
  const grants = missing.map((right) =>
    right.startsWith('~') ? right.replace(/~rights$/, '*') : `+${right}`,
  )
  const cure = `ACL SETUSER <user> ${grants.join(' ')}; docs/security.md has all that is needed`
  return missing.every((right) => right === 'scan')
    ? warn('store', 'its user may not run scan: verify cannot look for entries', cure)
    : fail('store', `its user lacks ${grants.join(' ')}: what needs it fails, and SQL answers`, cure)
}

function findingsOf(facts: StoreFacts): Finding[] {
  return [
    ok('store', `Redis ${facts.version} answers`),
    version(facts),
    role(facts),
    epoch(facts),
    eviction(facts),
    latency(facts),
    clockFinding('store', 'Redis', facts.clockAheadMs),
  ]
}

/** Each server's findings, under its name. */
function findingsOfAll(nodes: readonly NodeFacts[]): Finding[] {
  const masters = nodes.filter(({ facts }) => !(facts instanceof Error)).length
  return [
    ok('store', `it is a Redis Cluster: ${masters} of ${nodes.length} masters answer`),
    ...nodes.flatMap(({ node, facts }) => {
      const findings =
        facts instanceof Error
          ? [
              fail(
                'store',
                `it cannot be asked: ${messageOf(facts)}`,
                'start it, or let a replica take its place; until then SQL answers for its keys, and what is written of them stays in the outbox',
              ),
            ]
          : findingsOf(facts)
      return findings.map((finding) => ({ ...finding, finding: `${node}: ${finding.finding}` }))
    }),
  ]
}

function version({ version }: StoreFacts): Finding {
  const least = OLDEST_REDIS.join('.')
  return isAtLeast(version, OLDEST_REDIS)
    ? ok('store', `its version is ${least} or newer`)
    : fail(
        'store',
        `its version ${version} is older than ${least}`,
        `upgrade to Redis ${least} or newer, or Valkey`,
      )
}

function role({ role }: StoreFacts): Finding {
  return role === 'master'
    ? ok('store', 'it is a master')
    : fail(
        'store',
        `it is no master (role:${role}): it may not have heard of the latest writes, and takes none`,
        'connect to the master; with Sentinel, give ioredis its sentinels and name',
      )
}

function epoch({ masterReplid }: StoreFacts): Finding {
  return masterReplid
    ? ok('store', 'INFO replication shows master_replid')
    : fail(
        'store',
        'INFO replication does not show master_replid, so a restart or failover cannot be noticed, and nothing is cached',
        'connect to Redis itself, not through a proxy that hides it; allow the user of the connection INFO',
      )
}

function eviction({ maxMemory, evictionPolicy: policy }: StoreFacts): Finding {
  const set = `maxmemory-policy is ${policy}`
  const cure = 'CONFIG SET maxmemory-policy allkeys-lru (or allkeys-lfu), and the same in redis.conf'
  if (policy === 'volatile-ttl') {
    return fail('store', `${set}: it evicts leases and write intents first, as they end soonest`, cure)
  }
  if (policy === 'allkeys-lru' || policy === 'allkeys-lfu') return ok('store', set)
  if (policy === 'noeviction') {
    return maxMemory > 0
      ? warn(
          'store',
          `${set}, and maxmemory is set: once full, Redis takes neither values nor write intents`,
          cure,
        )
      : ok('store', `${set}, and there is no maxmemory: entries leave at the end of their ttl`)
  }
  return warn(
    'store',
    `${set}: it may evict write intents in force, or what others keep on this server`,
    cure,
  )
}

function latency({ latenciesMs, timeoutMs }: StoreFacts): Finding {
  const typical = median(latenciesMs)
  const finding = `a round trip takes ${readableMs(typical)} (median), a step may take ${readableMs(timeoutMs)}`
  if (typical * 4 <= timeoutMs) return ok('store', finding)
  return warn(
    'store',
    `${finding}: many lookups will not wait for it, and ask SQL`,
    'bring Redis nearer to the application, look for what keeps it busy (SLOWLOG GET), or raise storeTimeout',
  )
}
