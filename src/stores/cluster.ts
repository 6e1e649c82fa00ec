import { OptionError, StoreUnavailableError } from '../errors.ts'
import { staleKeyOf, unstaleKeyOf } from '../models/key.ts'
import { checkOptionNames, durationMs, integerOption } from '../options.ts'
import { type Argument, ClusterNode, type Command, evalsha, type NodeSession } from './cluster-node.ts'
import {
  chunks,
  escapeGlob,
  MARKS_TTL_MS,
  PATIENCE_MS,
  unavailable,
  WRITE_CHUNK,
  WRITE_PATIENCE_MS,
  within,
} from './connection.ts'
import { answerRecord, isOfOtherEpoch, UNREACHABLE } from './entry.ts'
import { type Marks, newMark } from './marks.ts'
import type { RedisStoreOptions } from './redis.ts'
import { ACQUIRE, CLEAR, FILL, INTEND, LEAD, MARK, type Script, STALE } from './scripts.ts'
import { hashTagOf, SLOTS, slotOf } from './slots.ts'
import { type Acquired, type CacheStore, type Fill, type Lease, type NodeFacts, newToken } from './store.ts'
import { type ClusterClient, Topology } from './topology.ts'

/** A key as it is in the cluster. */
interface Place {
  readonly at: string
  readonly slot: number
}

interface ClusterLease extends Lease {
  /** Per key, who granted it. */
  readonly granted: ReadonlyMap<string, Grant>
}

interface Grant {
  readonly node: ClusterNode
  readonly session: NodeSession
  /** The key's slot was on its way there. */
  readonly isAsking: boolean
}

/** What is done to each of some keys, in one write per master. */
interface Step {
  /** By `performance.now()`. */
  readonly untilMs: number
  /** Whether it is tried also where earlier steps are not answered. */
  readonly isPatient: boolean
  /** `read`: the marks are read in front; `known`: those are needed that were read last. */
  readonly marks?: 'read' | 'known'
  /** Goes to each master after its keys. A reply below `least` refuses them. */
  readonly last?: { readonly command: Command; readonly least: number }
  /** @param isApart a command of more than one key cannot be had now */
  command(i: number, session: NodeSession, isApart: boolean): Command
  /** What a reply comes to. */
  answer?(i: number, reply: unknown, by: Grant): unknown
}

/** Keys that are asked for together. */
interface Group {
  readonly address: string | undefined
  /** Their slot is being moved, and this is where it goes. */
  readonly isAsking: boolean
  readonly isApart: boolean
  readonly indices: number[]
}

/** How often a key is followed to where it is said to be. */
const MAX_HOPS = 4
/**
 * In how many places marks are kept. Each master needs one among its slots: less than one in so many of them, in a row,
 * may have none.
 */
const MARK_PLACES = 128
/** A master without slots is let go when it was of no use for so long, ms. */
const IDLE_MS = 10_000
/** After how long marks are looked for again where they were not, ms. */
const MOVING_MS = 1500

/**
 * The store on a Redis Cluster, through a connection of our own to each master. Steps are one write per master, side by
 * side; each command of it is of one key, so of one slot. Where a key has moved, its command is sent once more, to where
 * it is said to be: what was refused was not done. A master that is away fails its own keys only.
 */
export class ClusterStore implements CacheStore {
  readonly #topology: Topology
  readonly #nodes = new Map<string, ClusterNode>()
  readonly #timeoutMs: number
  readonly #writePatienceMs: number
  readonly #intentReplicas: number
  readonly #epochCheck: NodeJS.Timeout
  readonly #keyPrefix: string
  readonly #marksPlaces: readonly Place[]
  /** Marks that are not at their slot's master, and since when. */
  readonly #moving = new Map<string, number>()
  /** Another one with everything that ends a connection, or takes a slot away from its master. */
  #session: object = {}
  #closed = false

  /** @throws OptionError */
  constructor(client: ClusterClient, options: RedisStoreOptions = {}) {
    checkOptionNames('redis', options, ['timeout', 'intentReplicas', 'epochCheck', 'marksKey'])
    this.#timeoutMs = durationMs('redis.timeout', options.timeout ?? 50)
    this.#writePatienceMs = Math.max(this.#timeoutMs, WRITE_PATIENCE_MS)
    this.#intentReplicas = integerOption('redis.intentReplicas', options.intentReplicas ?? 0, 0)
    const epochCheckMs = durationMs('redis.epochCheck', options.epochCheck ?? 2000)
    this.#topology = new Topology(client, () => this.#follow())
    this.#keyPrefix = this.#topology.keyPrefix
    if (/[{}]/.test(this.#keyPrefix) && hashTagOf(this.#keyPrefix) === undefined) {
      this.#topology.close()
      throw new OptionError('redis.keyPrefix', 'without braces, or with a whole hash tag', this.#keyPrefix)
    }
    this.#marksPlaces = placesOf(this.#keyPrefix + (options.marksKey ?? '~marks'))
    this.#epochCheck = setInterval(() => this.#check(), epochCheckMs)
    this.#epochCheck.unref()
  }

  get session(): unknown {
    return this.#session
  }

  async getMany(keys: readonly string[]): Promise<(Buffer | null)[]> {
    if (keys.length === 0) return []
    const untilMs = performance.now() + this.#timeoutMs
    await this.#open(untilMs)
    const places = this.#placesOf(keys)
    const replies = await this.#each(places, {
      untilMs,
      isPatient: false,
      marks: 'read',
      command: (i) => ({ name: 'get', args: [(places[i] as Place).at] }),
      answer: (i, reply, { session }) => {
        if (!Buffer.isBuffer(reply)) return null
        return isOfOtherEpoch(reply, (session.marks as Marks).epochOf(keys[i] as string)) ? null : reply
      },
    })
    return recordsOf(replies)
  }

  async acquire(keys: readonly string[], schemas: readonly number[], leaseMs: number): Promise<Acquired> {
    const untilMs = performance.now() + this.#timeoutMs
    await this.#open(untilMs)
    const token = newToken()
    const granted = new Map<string, Grant>()
    const lease: ClusterLease = { token, session: this.#session, granted }
    const places = this.#placesOf(keys)
    const replies = await this.#each(places, {
      untilMs,
      isPatient: false,
      marks: 'known',
      command: (i, { marks }) => {
        const epoch = (marks as Marks).epochOf(keys[i] as string)
        return this.#script(ACQUIRE, places[i] as Place, [token, leaseMs, schemas[i] as number, epoch])
      },
      answer: (i, reply, by) => {
        const [record = null] = reply as (Buffer | null)[]
        if (record === null) granted.set(keys[i] as string, by)
        return record
      },
    })
    return { lease, records: recordsOf(replies) }
  }

  async fill(lease: Lease, fills: readonly Fill[]): Promise<number> {
    const { granted } = lease as ClusterLease
    const untilMs = performance.now() + this.#timeoutMs
    const byNode = new Map<ClusterNode, Command[]>()
    let problem: unknown
    for (const { key, schema, payload, ttlMs } of fills) {
      const grant = granted.get(key)
      if (!grant) continue
      const now = grant.node.session
      // Another master may never have heard of the lease, or may have been told to forget it.
      if (!grant.session.marks || !now?.marks || now.master !== grant.session.master) {
        problem = new StoreUnavailableError('the connection of the lease is gone')
        continue
      }
      const epoch = grant.session.marks.epochOf(key)
      // What was marked meanwhile is not believed under the lease's marks, and may be old under those of now.
      if (!epoch.equals(now.marks.epochOf(key))) continue
      const value = payload === 'absent' ? null : payload
      const record = value === 'release' ? '' : answerRecord(schema, epoch, value, Date.now())
      const script = this.#script(FILL, this.#placeOf(key), [lease.token, record, ttlMs, epoch])
      const command = grant.isAsking ? { ...script, isAsking: true } : script
      const commands = byNode.get(grant.node)
      if (commands) commands.push(command)
      else byNode.set(grant.node, [command])
    }
    let stored = 0
    await Promise.all(
      [...byNode].map(async ([node, commands]) => {
        try {
          for (const reply of await node.send(commands, untilMs, false)) {
            // A key that has moved is not followed: its lease was granted here.
            if (reply instanceof Error) problem = reply
            else stored += Number(reply)
          }
        } catch (error) {
          problem = error
        }
      }),
    )
    if (problem) throw unavailable(problem)
    return stored
  }

  async intend(keys: readonly string[], token: string, ttlMs: number): Promise<unknown> {
    await this.#open(performance.now() + this.#timeoutMs)
    const session = this.#session
    const least = this.#intentReplicas
    const wait = { command: { name: 'wait', args: [least, this.#timeoutMs] }, least }
    await this.#write(keys, INTEND, [token, ttlMs], least > 0 ? wait : undefined)
    return session
  }

  async clear(keys: readonly string[], token: string | null, committed: boolean): Promise<void> {
    await this.#open(performance.now() + this.#timeoutMs)
    await this.#write(keys, CLEAR, [token ?? '', committed ? '1' : '0'])
  }

  async markStale(keys: ReadonlyMap<string, number>): Promise<void> {
    await this.#open(performance.now() + this.#timeoutMs)
    await this.#inTurns([...keys], async (turn) => {
      const places = turn.map(([key]) => this.#placeOf(key))
      return this.#each(places, {
        untilMs: performance.now() + this.#writePatienceMs,
        isPatient: true,
        command: (i, _, isApart) => {
          const place = places[i] as Place
          const [key, ms] = turn[i] as [string, number]
          // While a slot is being moved, two of its keys may be on two servers. It is forgotten then, and not kept as stale.
          if (isApart) return this.#script(CLEAR, place, ['', '1'])
          return evalsha(STALE, [place.at, this.#placeOf(staleKeyOf(key)).at], [ms])
        },
      })
    })
  }

  async clearPrefix(prefix: string): Promise<void> {
    await this.#open(performance.now() + this.#timeoutMs)
    const mark = newMark()
    const places = this.#marksPlaces
    // All of them, whatever they are used for now: any one may be what a master's entries are believed by later.
    const replies = await this.#each(places, {
      untilMs: performance.now() + this.#writePatienceMs,
      isPatient: true,
      command: (i) => this.#script(MARK, places[i] as Place, [mark, MARKS_TTL_MS, prefix]),
      answer: (i, reply, { node }) => {
        node.accept((places[i] as Place).at, reply as Buffer)
        return reply
      },
    })
    throwFirst(replies)
  }

  async *scan(prefix: string): AsyncGenerator<readonly string[]> {
    const stepMs = Math.max(this.#timeoutMs, PATIENCE_MS)
    await this.#open(performance.now() + stepMs)
    const { owners } = this.#topology
    const pattern = `${escapeGlob(this.#keyPrefix + prefix)}*`
    for (const address of new Set(owners)) {
      const node = this.#nodeAt(address)
      const { master } = await node.open(performance.now() + stepMs)
      let cursor = '0'
      do {
        const command = { name: 'scan', args: [cursor, 'MATCH', pattern, 'COUNT', 1000] }
        const [reply] = await node.send([command], performance.now() + stepMs, true)
        if (reply instanceof Error) throw unavailable(reply)
        // What has moved meanwhile may be where the scan has been already.
        if (node.session?.master !== master || this.#topology.owners !== owners) {
          throw new StoreUnavailableError('the connection of the scan is gone')
        }
        const [next, found] = reply as [Buffer, Buffer[]]
        const keys = found
          .map((key) => key.toString())
          .filter((key) => key.startsWith(this.#keyPrefix))
          .map((key) => key.slice(this.#keyPrefix.length))
        if (keys.length > 0) yield keys
        cursor = String(next)
      } while (cursor !== '0')
    }
  }

  async facts(): Promise<readonly NodeFacts[]> {
    const patienceMs = Math.max(this.#timeoutMs, PATIENCE_MS)
    await this.#open(performance.now() + patienceMs)
    const nodes = this.#owners()
    return Promise.all(
      nodes.map(async (node) => ({
        node: node.address,
        facts: await node.facts(this.#timeoutMs, patienceMs).catch(unavailable),
      })),
    )
  }

  async lead(name: string, candidate: string, ttlMs: number): Promise<boolean> {
    await this.#open(performance.now() + this.#timeoutMs)
    // Where the master of the name is away, another one's word is as good: two leaders for a while do no harm.
    const place = this.#placeOf(name)
    const others = this.#owners()
      .filter(({ address }) => address !== this.#topology.owners[place.slot])
      .flatMap(({ address }) => {
        const marks = this.#marksPlaces.find(({ slot }) => this.#topology.owners[slot] === address)
        return marks ? [{ at: `${marks.at}:${name}`, slot: marks.slot }] : []
      })
      .sort((a, b) => a.slot - b.slot)
    let problem: unknown
    for (const at of [place, ...others]) {
      const [reply] = await this.#each([at], {
        untilMs: performance.now() + this.#timeoutMs,
        isPatient: false,
        command: () => this.#script(LEAD, at, [candidate, ttlMs]),
      })
      if (!(reply instanceof Error)) return reply === 1
      problem ??= reply
    }
    throw unavailable(problem)
  }

  async close(): Promise<void> {
    this.#closed = true
    clearInterval(this.#epochCheck)
    this.#topology.close()
    for (const node of this.#nodes.values()) node.close()
  }

  /** A script over some keys, all of which have to be reached. */
  #write(
    keys: readonly string[],
    script: Script,
    args: readonly Argument[],
    last?: Step['last'],
  ): Promise<void> {
    return this.#inTurns(keys, (turn) => {
      const places = this.#placesOf(turn)
      return this.#each(places, {
        untilMs: performance.now() + this.#writePatienceMs,
        isPatient: true,
        ...(last && { last }),
        command: (i) => this.#script(script, places[i] as Place, args),
      })
    })
  }

  /** For writes, which may touch any number of keys. What cannot be reached does not keep the rest from being done. */
  async #inTurns<T>(
    items: readonly T[],
    write: (turn: readonly T[]) => Promise<readonly unknown[]>,
  ): Promise<void> {
    const replies: unknown[] = []
    for (const turn of chunks(items, WRITE_CHUNK)) replies.push(...(await write(turn)))
    throwFirst(replies)
  }

  #script(script: Script, place: Place, args: readonly Argument[]): Command {
    return evalsha(script, [place.at], args)
  }

  /** A reply per place, or an Error in its place. Never rejects. */
  async #each(places: readonly Place[], step: Step): Promise<unknown[]> {
    const replies: unknown[] = new Array(places.length)
    const { owners } = this.#topology
    const byAddress = new Map<string | undefined, number[]>()
    for (let i = 0; i < places.length; i++) {
      const address = owners[(places[i] as Place).slot]
      const indices = byAddress.get(address)
      if (indices) indices.push(i)
      else byAddress.set(address, [i])
    }
    let groups = [...byAddress].map(
      ([address, indices]): Group => ({ address, indices, isAsking: false, isApart: false }),
    )
    for (let hop = 0; hop <= MAX_HOPS && groups.length > 0; hop++) {
      const moved = await Promise.all(groups.map((group) => this.#sendGroup(group, step, replies)))
      groups = merged(moved.flat())
    }
    return replies
  }

  /** Puts the replies into `replies`. Returns what has to be asked for elsewhere; an Error is there meanwhile. */
  async #sendGroup(group: Group, step: Step, replies: unknown[]): Promise<Group[]> {
    const { indices, isAsking, isApart, address } = group
    const moved: Group[] = []
    try {
      const node = this.#nodeAt(address)
      const session = node.session ?? (await node.open(step.untilMs))
      if (step.marks && !session.marks) throw this.#withoutMarks(node)
      const commands = indices.map((i): Command => {
        const command = step.command(i, session, isApart)
        return isAsking ? { ...command, isAsking } : command
      })
      if (step.marks === 'read') commands.unshift({ name: 'get', args: [session.marksKey as string] })
      if (step.last) commands.push(step.last.command)
      const answers = await node.send(commands, step.untilMs, step.isPatient)
      if (step.last) checkLast(answers.pop(), step.last.least)
      const marks =
        step.marks === 'read' ? await this.#marksOf(node, session, answers.shift()) : session.marks
      const by: Grant = { node, session: { ...session, marks }, isAsking }
      indices.forEach((i, at) => {
        const answer = answers[at]
        if (answer instanceof Error) {
          replies[i] = isWrongType(answer) && step.marks === 'read' ? null : unavailable(answer)
          const to = this.#redirect(answer, group)
          if (to) moved.push({ ...to, indices: [i] })
        } else replies[i] = step.answer ? step.answer(i, answer, by) : answer
      })
    } catch (error) {
      for (const i of indices) replies[i] = unavailable(error)
      // It may have another master by now.
      if (!this.#closed) void this.#topology.refresh()
    }
    return moved
  }

  /** Where a key is that was not where it was asked for. */
  #redirect({ message }: Error, group: Group): Omit<Group, 'indices'> | undefined {
    const [kind, , address = ''] = message.split(' ')
    if (kind === 'MOVED') {
      void this.#topology.refresh()
      return { address: this.#topology.reachable(address), isAsking: false, isApart: group.isApart }
    }
    // An older server says so also where one of two keys is here still: each is asked for by itself first.
    if (kind === 'TRYAGAIN' || (kind === 'ASK' && !group.isApart)) return { ...group, isApart: true }
    if (kind === 'ASK') return { address: this.#topology.reachable(address), isAsking: true, isApart: true }
    if (kind === 'CLUSTERDOWN') void this.#topology.refresh()
    return undefined
  }

  /** The marks that were read in front of entries. */
  async #marksOf(node: ClusterNode, session: NodeSession, record: unknown): Promise<Marks> {
    if (Buffer.isBuffer(record) && session.marks?.record.equals(record)) return session.marks
    const marks = Buffer.isBuffer(record) ? node.accept(session.marksKey as string, record) : undefined
    if (marks) return marks
    if (record instanceof Error) this.#moving.set(session.marksKey as string, performance.now())
    // Lost, or moved with their slot. What is believed by others from now on was filled later.
    node.dropMarks()
    throw this.#withoutMarks(node)
  }

  #withoutMarks(node: ClusterNode): StoreUnavailableError {
    void node.look()
    return new StoreUnavailableError(`${node.address} has no marks to believe its entries by`)
  }

  #nodeAt(address: string | undefined): ClusterNode {
    if (address === undefined) throw new StoreUnavailableError('a slot has no master')
    const known = this.#nodes.get(address)
    if (known) return known
    const { clients } = this.#topology
    const client = clients.get(address) ?? [...clients.values()][0]
    if (!client || this.#closed) throw this.#unavailable()
    const node = new ClusterNode({
      address,
      client,
      marksKeyOf: (master) => this.#marksKeyOf(address, master),
      marksMoved: (key) => this.#moving.set(key, performance.now()),
      changed: () => {
        this.#session = {}
      },
      lost: () => void this.#topology.refresh(),
    })
    this.#nodes.set(address, node)
    return node
  }

  /**
   * One of the places on a master, the same for all who know which slots it has. Each master prefers others, so that
   * one that moves is seldom the one that is used where it goes.
   */
  #marksKeyOf(address: string, master: Buffer): string | undefined {
    const { owners } = this.#topology
    let best: Place | undefined
    let bestRank = SLOTS
    for (const place of this.#marksPlaces) {
      if (owners[place.slot] !== address || this.#moving.has(place.at)) continue
      const rank = slotOf(master.toString('hex') + place.slot)
      if (rank >= bestRank) continue
      best = place
      bestRank = rank
    }
    return best?.at
  }

  #owners(): ClusterNode[] {
    const addresses = [...new Set(this.#topology.owners)].filter((address) => address !== undefined)
    return addresses.map((address) => this.#nodeAt(address))
  }

  /** The slots have other masters. */
  #follow(): void {
    this.#session = {}
    this.#moving.clear()
    const owners = new Set(this.#owners())
    for (const node of this.#nodes.values()) {
      if (owners.has(node)) void node.look()
      else this.#letGo(node)
    }
  }

  /** A master can be demoted without closing its connections: only asking tells. */
  #check(): void {
    const now = performance.now()
    for (const [key, since] of this.#moving) if (now - since > MOVING_MS) this.#moving.delete(key)
    const owners = new Set(this.#topology.owners)
    for (const node of this.#nodes.values()) {
      if (owners.has(node.address)) void node.look()
      else this.#letGo(node)
    }
  }

  /** A server without slots may just be getting its first ones. */
  #letGo(node: ClusterNode): void {
    if (performance.now() - node.usedAt < IDLE_MS) return
    node.close()
    this.#nodes.delete(node.address)
  }

  async #open(untilMs: number): Promise<void> {
    if (this.#closed) throw this.#unavailable()
    if (this.#topology.owners.length > 0) return
    await within(this.#topology.opening, Math.max(0, Math.ceil(untilMs - performance.now())))
    if (this.#topology.owners.length === 0) throw this.#unavailable()
  }

  #unavailable(): StoreUnavailableError {
    if (this.#closed) return new StoreUnavailableError('it is closed')
    const { lastError } = this.#topology
    return new StoreUnavailableError(
      `the cluster cannot be reached${lastError ? `: ${unavailable(lastError).message}` : ''}`,
      { cause: lastError },
    )
  }

  #placesOf(keys: readonly string[]): Place[] {
    return keys.map((key) => this.#placeOf(key))
  }

  /** A stale copy is in the slot of its key: it is moved there in one step. */
  #placeOf(key: string): Place {
    const original = unstaleKeyOf(key)
    if (original === undefined) {
      const at = this.#keyPrefix + key
      return { at, slot: slotOf(at) }
    }
    const at = this.#keyPrefix + original
    return { at: staleKeyOf(hashTagOf(at) === undefined ? `{${at}}` : at), slot: slotOf(at) }
  }
}

/** Marks are kept in slots all over the cluster, so that each master has some. */
function placesOf(marksKey: string): readonly Place[] {
  if (hashTagOf(marksKey) !== undefined) return [{ at: marksKey, slot: slotOf(marksKey) }]
  const places = new Map<number, Place>()
  for (let i = 0; places.size < MARK_PLACES; i++) {
    const at = `${marksKey}{${i}}`
    const slot = slotOf(at)
    const part = Math.floor((slot * MARK_PLACES) / SLOTS)
    if (!places.has(part)) places.set(part, { at, slot })
  }
  return [...places.values()]
}

function merged(groups: readonly Group[]): Group[] {
  const byName = new Map<string, Group>()
  for (const group of groups) {
    const name = `${group.address} ${group.isAsking} ${group.isApart}`
    const same = byName.get(name)
    if (same) same.indices.push(...group.indices)
    else byName.set(name, { ...group, indices: [...group.indices] })
  }
  return [...byName.values()]
}

/** Records, with {@link UNREACHABLE} in the place of some errors. Throws where there is nothing else. */
function recordsOf(replies: readonly unknown[]): (Buffer | null)[] {
  if (replies.length > 0 && replies.every((reply) => reply instanceof Error)) throw replies[0]
  return replies.map((reply) => (reply instanceof Error ? UNREACHABLE : (reply as Buffer | null)))
}

function throwFirst(replies: readonly unknown[]): void {
  for (const reply of replies) if (reply instanceof Error) throw unavailable(reply)
}

function checkLast(reply: unknown, least: number): void {
  if (reply instanceof Error) throw reply
  if (Number(reply) >= least) return
  throw new StoreUnavailableError(`only ${reply} of ${least} replicas have the write intents`)
}

function isWrongType(error: Error): boolean {
  return error.message.startsWith('WRONGTYPE')
}
