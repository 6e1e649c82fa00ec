import { messageOf, StoreUnavailableError } from '../errors.ts'
import { MARKS_TTL_MS, masterOf, OWN_CONNECTION, readFacts, unavailable, within } from './connection.ts'
import { Marks, newMark } from './marks.ts'
import { MARK, SCRIPTS, type Script } from './scripts.ts'
import type { StoreFacts } from './store.ts'
import type { NodeClient } from './topology.ts'

export type Argument = string | number | Buffer

export interface Command {
  readonly name: string
  readonly args: readonly Argument[]
  /** Of an EVALSHA, so that it can be sent with its text. */
  readonly script?: Script
  /** The key's slot is being moved, and this is where it goes. */
  readonly isAsking?: boolean
}

export function evalsha(script: Script, keys: readonly string[], args: readonly Argument[]): Command {
  return { name: 'evalsha', args: [script.sha, keys.length, ...keys, ...args], script }
}

/** The part of an ioredis `Redis` that is used on a connection of ours. */
interface Connection {
  readonly status: string
  connect(): Promise<void>
  disconnect(reconnect?: boolean): void
  on(event: 'ready' | 'close' | 'end' | 'error', listener: (error?: unknown) => void): unknown
  pipeline(): Pipeline
  info(section: string): Promise<string>
  time(): Promise<readonly (string | number)[]>
}

interface Pipeline {
  callBuffer(name: string, ...args: Argument[]): unknown
  exec(): Promise<[error: Error | null, reply: unknown][] | null>
}

/** A connection to one master from `ready` to `close`, as long as nothing is marked. */
export interface NodeSession {
  /** One buffer per connection and master. */
  readonly master: Buffer
  /** The key of the marks that are read with every entry of this master; undefined: it has no slot for any. */
  readonly marksKey: string | undefined
  readonly marks: Marks | undefined
}

export interface NodeParts {
  /** `host:port` */
  readonly address: string
  readonly client: NodeClient
  /** Where this master's marks are. */
  marksKeyOf(master: Buffer): string | undefined
  /** They are not there now: their slot is being moved. */
  marksMoved(marksKey: string): void
  /** The session that it had is another one, or gone. */
  changed(): void
  /** The connection is lost, or could not be made. */
  lost(): void
}

/** A connection that has answered nothing for so long is made anew, ms: TCP would try for many minutes. */
const STUCK_MS = 1000

/** One master of a Redis Cluster, through a connection of our own, which follows no redirection by itself. */
export class ClusterNode {
  readonly address: string
  /** When it was last of use, by `performance.now()`. */
  usedAt = performance.now()
  readonly #parts: NodeParts
  readonly #connection: Connection
  readonly #opening: Promise<void>
  #session: NodeSession | undefined
  /** Counts connections, so that what is found out on one says nothing of the next. */
  #connectionNo = 0
  #beginning: Promise<void> | undefined
  /** Pipelines that were not answered in time, nor since. */
  #silent = 0
  #silentSince = 0
  #closed = false
  #lastError: unknown

  constructor(parts: NodeParts) {
    this.#parts = parts
    this.address = parts.address
    const [, host, port] = /^(.*):(\d+)$/.exec(parts.address) ?? []
    this.#connection = parts.client.duplicate({
      ...OWN_CONNECTION,
      host,
      port: Number(port),
      readOnly: false,
      // Put before keys by the store, as the slot depends on it.
      keyPrefix: '',
    }) as Connection
    this.#connection.on('error', (error) => {
      this.#lastError = error
    })
    this.#opening = new Promise((opened) => {
      this.#connection.on('ready', () => {
        this.#connectionNo++
        this.#beginning = undefined
        this.begin().then(opened, opened)
      })
      for (const event of ['close', 'end'] as const) {
        this.#connection.on(event, () => {
          this.#connectionNo++
          this.#setSession(undefined)
          opened()
          if (!this.#closed) parts.lost()
        })
      }
    })
    // Whatever goes wrong here comes as an 'error' event too.
    this.#connection.connect().catch(() => undefined)
  }

  get session(): NodeSession | undefined {
    return this.#session
  }

  /** @param untilMs until when to wait while the first connection is being made, by `performance.now()` */
  async open(untilMs: number): Promise<NodeSession> {
    if (!this.#session) await within(this.#opening, Math.max(0, untilMs - performance.now()))
    if (this.#session) return this.#session
    throw this.unavailable()
  }

  /**
   * Sends commands in one write. Replies in their order, an Error in the place of one that was refused; rejects
   * StoreUnavailableError when they were not answered in time.
   *
   * @param isPatient false: fails at once while earlier ones are not answered
   */
  async send(commands: readonly Command[], untilMs: number, isPatient: boolean): Promise<unknown[]> {
    this.usedAt = performance.now()
    if (this.#silent > 0) {
      this.#endSilence()
      if (!isPatient) throw new StoreUnavailableError(`${this.address} does not answer`)
    }
    const sent = this.#sendAll(commands)
    const timeoutMs = Math.max(0, Math.ceil(untilMs - performance.now()))
    try {
      return await within(sent, timeoutMs)
    } catch (error) {
      this.#noteSilence(sent)
      throw error
    }
  }

  /** Takes marks that were read. Undefined: they are not those that entries are believed by now. */
  accept(marksKey: string, record: Buffer): Marks | undefined {
    const session = this.#session
    if (!session?.marks || session.marksKey !== marksKey) return undefined
    if (record.equals(session.marks.record)) return session.marks
    const marks = new Marks(session.master, record)
    this.#setSession({ ...session, marks })
    return marks
  }

  /** The marks are not where they were. Until others are found, nothing of this master is believed. */
  dropMarks(): void {
    if (this.#session) this.#setSession({ ...this.#session, marksKey: undefined, marks: undefined })
  }

  /** As {@link begin}, where there is a connection. */
  async look(): Promise<void> {
    if (this.#connection.status === 'ready') await this.begin()
  }

  /** Finds out who the master is and where its marks are, if that is another one. Never rejects. */
  begin(): Promise<void> {
    this.#beginning ??= this.#begin().finally(() => {
      this.#beginning = undefined
    })
    return this.#beginning
  }

  /** Without a session: a server that is no master is one of the things to be found out. */
  async facts(timeoutMs: number, patienceMs: number): Promise<StoreFacts> {
    await within(this.#opening, patienceMs)
    if (this.#connection.status !== 'ready') throw this.unavailable()
    return readFacts(this.#connection, patienceMs, timeoutMs)
  }

  unavailable(): StoreUnavailableError {
    const cause = this.#lastError
    const problem = `no connection to ${this.address}${cause ? `: ${messageOf(cause)}` : ''}`
    return new StoreUnavailableError(problem, { cause })
  }

  close(): void {
    this.#closed = true
    this.#setSession(undefined)
    this.#connection.disconnect()
  }

  #setSession(session: NodeSession | undefined): void {
    const before = this.#session
    if (session === before) return
    this.#session = session
    if (before) this.#parts.changed()
  }

  async #begin(): Promise<void> {
    const connectionNo = this.#connectionNo
    const session = this.#session
    try {
      const [info, ...others] = await within(
        this.#sendAll([
          { name: 'info', args: ['replication'] },
          ...(session ? [] : SCRIPTS.map(({ source }) => ({ name: 'script', args: ['LOAD', source] }))),
        ]),
        STUCK_MS,
      )
      const failed = [info, ...others].find((reply) => reply instanceof Error)
      if (failed) throw failed
      const replid = masterOf(String(info))
      const master = session?.master.equals(replid) ? session.master : replid
      const kept = session?.master === master ? session : undefined
      const { marksKey, marks } = await this.#findMarks(master, kept)
      if (connectionNo !== this.#connectionNo || session !== this.#session) return
      if (kept && kept.marks === marks) return
      this.#setSession({ master, marksKey, marks })
    } catch (error) {
      this.#lastError = error
      if (connectionNo !== this.#connectionNo || this.#connection.status !== 'ready') return
      this.#setSession(undefined)
      // It was demoted, most likely. A connection anew may find its successor.
      this.#connection.disconnect(true)
    }
  }

  /** Where a slot is being moved, its marks are with it, and others have to do. */
  async #findMarks(
    master: Buffer,
    session: NodeSession | undefined,
  ): Promise<Pick<NodeSession, 'marksKey' | 'marks'>> {
    for (;;) {
      const marksKey = this.#parts.marksKeyOf(master)
      if (!marksKey) return { marksKey, marks: undefined }
      if (session?.marks && session.marksKey === marksKey) {
        await within(this.#sendAll([{ name: 'pexpire', args: [marksKey, MARKS_TTL_MS] }]), STUCK_MS)
        return session
      }
      const mark = evalsha(MARK, [marksKey], [newMark(), MARKS_TTL_MS, ''])
      const [record] = await within(this.#sendAll([mark]), STUCK_MS)
      if (Buffer.isBuffer(record)) return { marksKey, marks: new Marks(master, record) }
      this.#lastError = record
      // Writes do without marks, and reads go to SQL until there are some.
      if (!isRedirection(record)) return { marksKey: undefined, marks: undefined }
      this.#parts.marksMoved(marksKey)
    }
  }

  async #sendAll(commands: readonly Command[]): Promise<unknown[]> {
    const replies = await this.#pipeline(commands)
    const unknown = commands.flatMap((command, i) => {
      const reply = replies[i]
      return command.script && reply instanceof Error && reply.message.startsWith('NOSCRIPT') ? [i] : []
    })
    if (unknown.length === 0) return replies
    // Nothing of them ran, so this is the first time they are sent.
    const again = unknown.map((i): Command => {
      const { args, script, ...command } = commands[i] as Command & { readonly script: Script }
      return { ...command, name: 'eval', args: [script.source, ...args.slice(1)] }
    })
    const late = await this.#pipeline(again)
    unknown.forEach((at, i) => {
      replies[at] = late[i]
    })
    return replies
  }

  async #pipeline(commands: readonly Command[]): Promise<unknown[]> {
    const pipeline = this.#connection.pipeline()
    for (const { name, args, isAsking } of commands) {
      if (isAsking) pipeline.callBuffer('asking')
      pipeline.callBuffer(name, ...args)
    }
    const results = (await pipeline.exec()) ?? []
    let at = 0
    return commands.map(({ isAsking }) => {
      if (isAsking) at++
      const [error, reply] = results[at++] ?? [this.unavailable(), null]
      if (!error) return reply
      return error.name === 'ReplyError' ? error : unavailable(error)
    })
  }

  #noteSilence(sent: Promise<unknown>): void {
    if (this.#silent++ === 0) this.#silentSince = performance.now()
    const answered = () => {
      this.#silent--
    }
    sent.then(answered, answered)
  }

  #endSilence(): void {
    if (this.#connection.status !== 'ready' || performance.now() - this.#silentSince < STUCK_MS) return
    this.#setSession(undefined)
    this.#connection.disconnect(true)
  }
}

function isRedirection(reply: unknown): boolean {
  return reply instanceof Error && /^(MOVED|ASK|TRYAGAIN)\b/.test(reply.message)
}
