import { messageOf, StoreUnavailableError } from '../errors.ts'
import type { StoreFacts } from './store.ts'

/**
 * What a connection of ours is made with, whatever the application's has: a cache must not queue commands while the
 * server is away, and must never send a command again.
 */
export const OWN_CONNECTION = {
  lazyConnect: true,
  enableOfflineQueue: false,
  autoResendUnfulfilledCommands: false,
  maxRetriesPerRequest: 0,
  enableAutoPipelining: false,
  stringNumbers: false,
  // A master that was demoted: the connection anew finds out who is master now. Nothing is sent again.
  reconnectOnError: (error: Error) => error.message.includes('READONLY'),
  connectTimeout: 2000,
  // So that a connection that is stuck does not take long to give up.
  disconnectTimeout: 100,
  retryStrategy: (attempt: number) => Math.min(50 * attempt, 250),
}

/** From the last time that somebody connected, cleared, or looked whether the master is the same. */
export const MARKS_TTL_MS = 30 * 24 * 3_600_000
/** A write's keys go in turns of so many, each with a patience of its own. */
export const WRITE_CHUNK = 5000
export const WRITE_PATIENCE_MS = 200
/** How long a step may take at least, ms, that no request waits for. */
export const PATIENCE_MS = 2000
const FACT_TRIPS = 7

/**
 * The first four bytes of `master_replid`, which changes with every restart and every promotion.
 *
 * @param info what `INFO replication` says
 * @throws StoreUnavailableError for a replica: it has its master's epoch, but may not have heard of the latest writes
 */
export function masterOf(info: string): Buffer {
  if (/^role:slave/m.test(info)) throw new StoreUnavailableError('it is a replica')
  const replid = /^master_replid:([0-9a-f]{8})/m.exec(info)?.[1]
  if (!replid) throw new StoreUnavailableError('INFO replication does not tell master_replid')
  return Buffer.from(replid, 'hex')
}

interface Asked {
  info(section: string): Promise<string>
  time(): Promise<readonly (string | number)[]>
}

/**
 * What a server says of itself. Rejects StoreUnavailableError.
 *
 * @param patienceMs for each question
 * @param timeoutMs how long a step of the store may take
 */
export async function readFacts(server: Asked, patienceMs: number, timeoutMs: number): Promise<StoreFacts> {
  const latenciesMs: number[] = []
  let clockAheadMs = 0
  for (let i = 0; i < FACT_TRIPS; i++) {
    const sent = Date.now()
    const began = performance.now()
    const [seconds, micros] = await within(server.time(), patienceMs)
    const tookMs = performance.now() - began
    // The fastest trip tells the time best.
    if (tookMs < Math.min(...latenciesMs, Number.POSITIVE_INFINITY)) {
      clockAheadMs = Number(seconds) * 1000 + Number(micros) / 1000 - (sent + tookMs / 2)
    }
    latenciesMs.push(tookMs)
  }
  const infos = ['server', 'memory', 'replication'].map((section) => within(server.info(section), patienceMs))
  const info = (await Promise.all(infos)).join('\n')
  const told = (name: string) => new RegExp(`^${name}:(.*?)\r?$`, 'm').exec(info)?.[1]
  return {
    version: told('redis_version') ?? '',
    role: told('role') ?? '',
    masterReplid: told('master_replid'),
    maxMemory: Number(told('maxmemory') ?? 0),
    evictionPolicy: told('maxmemory_policy') ?? '',
    latenciesMs,
    timeoutMs,
    clockAheadMs: Math.round(clockAheadMs),
  }
}

/** What `step` comes to; rejects StoreUnavailableError for whatever it rejects with, or when it takes longer. */
export function within<T>(step: Promise<T>, timeoutMs: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      // After a long pause of the event loop timers run before sockets are read: let a reply that is here win.
      setImmediate(() => reject(new StoreUnavailableError(`no answer within ${timeoutMs} ms`)))
    }, timeoutMs)
    step.then(
      (value) => {
        clearTimeout(timer)
        resolve(value)
      },
      (error: unknown) => {
        clearTimeout(timer)
        reject(unavailable(error))
      },
    )
  })
}

export function unavailable(error: unknown): StoreUnavailableError {
  return error instanceof StoreUnavailableError
    ? error
    : new StoreUnavailableError(messageOf(error), { cause: error, refused: isReply(error) })
}

/** Whether an error is what the server said, as ioredis tells it. */
function isReply(error: unknown): boolean {
  return error instanceof Error && error.name === 'ReplyError'
}

export function chunks<T>(items: readonly T[], size: number): readonly (readonly T[])[] {
  if (items.length <= size) return items.length === 0 ? [] : [items]
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) =>
    items.slice(i * size, (i + 1) * size),
  )
}

export function escapeGlob(text: string): string {
  return text.replace(/[\\*?[\]]/g, '\\$&')
}
