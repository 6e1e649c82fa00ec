/** How often each thing may go wrong in a run; at any moment, in any order. Left out: never. */
export interface Faults {
  /** COMMIT is refused, and says so. */
  readonly rollback?: number
  /** The connection breaks while COMMIT is under way; it is applied at once, later, or never. */
  readonly unknown?: number
  /** A process that writes dies. If COMMIT was sent, it is applied at once, later, or never. */
  readonly crash?: number
  /** The relay dies in a turn. Another one begins a new turn. */
  readonly relayCrash?: number
  /** A message to the store is not executed; or executed and its reply lost; or executed later. */
  readonly loss?: number
  /** A statement that loads rows fails. */
  readonly sqlError?: number
  /** The store forgets everything, and nobody notices. */
  readonly flush?: number
  /** The store forgets one key. */
  readonly evict?: number
  /** The store comes back empty, as another master. */
  readonly restart?: number
  /** A replica that has heard everything up to some moment becomes the master. */
  readonly failover?: number
  /** A lease may run out at any time. */
  readonly slow?: true
  /** An intent may run out before its transaction has ended. Otherwise only after. */
  readonly late?: true
}

export type Fault = keyof Faults
export type Budget = { [F in Exclude<Fault, 'slow' | 'late'>]: number }

/** A message to the store, about one key. */
export interface Message {
  /** Messages with the same text do the same. */
  readonly text: string
  /** Index of its key. */
  readonly key: number
  /** The record afterwards, and the one that is the reply: both by their numbers. */
  run(record: number, session: number): { readonly record: number; readonly reply: number }
}

/** The replies so far to a step that concerns several keys. */
export interface Replies {
  readonly session: number
  /** By the position of the key in the step. */
  readonly byKey: readonly (number | undefined)[]
}

/** What a read has to show: see `Property`. Masks of writes, per key. */
export interface Floors {
  readonly returned: readonly number[]
  readonly seen: readonly number[]
  readonly own: readonly number[]
  /** What was committed when it began. */
  readonly committed: number
}

/** Everything outside of the processes. Sets of transactions are masks, a bit per write. */
export class World {
  /** Per key, the number of its record. */
  records: readonly number[]
  /** What the replica has; undefined: there is none. */
  replica: readonly number[] | undefined
  /** Grows with every new master. */
  session = 0
  committed = 0
  aborted = 0
  /** COMMIT was sent by somebody who is not there any more to hear of it. */
  flying = 0
  /** Whose outbox rows are there, and committed. */
  outbox = 0
  /** Whose outbox rows the relay holds. */
  taken = 0
  /** Whose outbox rows their process will delete soon. */
  deleting = 0
  /** Whose intents ran out early. */
  lapsed = 0
  /** Per write, the session its intents were taken in; -1: none were. */
  intendedIn: readonly number[]
  /** Processes that died. */
  dead = 0
  /** Messages whose sender has given them up. */
  late: readonly Message[] = []
  replies: ReadonlyMap<string, Replies> = new Map()
  /** Per key: the writes whose calls returned; those that somebody has seen. */
  returned: readonly number[]
  seen: readonly number[]
  /** Per process and key: the writes of its own that returned. */
  own: readonly (readonly number[])[]
  /** Per caller. */
  floors: readonly (Floors | undefined)[]
  budget: Budget

  constructor(keys: number, writes: number, processes: number, callers: number, faults: Faults) {
    const { rollback = 0, unknown = 0, crash = 0, relayCrash = 0, loss = 0, sqlError = 0 } = faults
    const { flush = 0, evict = 0, restart = 0, failover = 0 } = faults
    this.budget = { rollback, unknown, crash, relayCrash, loss, sqlError, flush, evict, restart, failover }
    this.records = new Array(keys).fill(0)
    this.replica = failover > 0 ? new Array(keys).fill(0) : undefined
    this.intendedIn = new Array(writes).fill(-1)
    this.returned = new Array(keys).fill(0)
    this.seen = new Array(keys).fill(0)
    this.own = Array.from({ length: processes }, () => new Array(keys).fill(0))
    this.floors = new Array(callers).fill(undefined)
  }

  /** Shares its parts, which are replaced and never changed. */
  copy(): World {
    const copy: World = Object.create(World.prototype)
    copy.records = this.records
    copy.replica = this.replica
    copy.session = this.session
    copy.committed = this.committed
    copy.aborted = this.aborted
    copy.flying = this.flying
    copy.outbox = this.outbox
    copy.taken = this.taken
    copy.deleting = this.deleting
    copy.lapsed = this.lapsed
    copy.intendedIn = this.intendedIn
    copy.dead = this.dead
    copy.late = this.late
    copy.replies = this.replies
    copy.returned = this.returned
    copy.seen = this.seen
    copy.own = this.own
    copy.floors = this.floors
    copy.budget = this.budget
    return copy
  }

  spend(fault: keyof Budget): void {
    this.budget = { ...this.budget, [fault]: this.budget[fault] - 1 }
  }

  commit(writes: number): void {
    this.flying &= ~writes
    this.committed |= writes
    this.outbox |= writes
  }

  abort(writes: number): void {
    this.flying &= ~writes
    this.aborted |= writes
  }

  /** The outbox rows of these writes are deleted. */
  release(writes: number): void {
    this.outbox &= ~writes
    this.taken &= ~writes
    this.deleting &= ~writes
  }

  /** A process is gone. Of the writes it makes, only those of which COMMIT was sent may still be committed. */
  dies(process: number, writes: number, sent: number): void {
    this.dead |= 1 << process
    this.deleting &= ~writes
    this.flying |= sent
    this.aborted |= writes & ~this.committed & ~this.flying
    this.intendedIn = this.intendedIn.map((session, w) => (writes & (1 << w) ? -1 : session))
    this.lapsed &= ~writes
  }

  put(key: number, record: number): void {
    this.records = this.records.with(key, record)
  }

  run(message: Message): void {
    this.put(message.key, message.run(this.records[message.key] as number, this.session).record)
  }

  delay(messages: readonly Message[]): void {
    const nameOf = ({ key, text }: Message) => `${key}${text}`
    this.late = [...this.late, ...messages].sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1))
  }

  /** The replies so far to the step that a thread of a process waits with. */
  repliesTo(process: number, thread: string): Replies | undefined {
    return this.replies.size === 0 ? undefined : this.replies.get(`${process} ${thread} `)
  }

  awaitReplies(process: number, thread: string, replies: Replies): void {
    const all = new Map(this.replies).set(`${process} ${thread} `, replies)
    this.replies = new Map([...all].sort(([a], [b]) => (a < b ? -1 : 1)))
  }

  /** @param thread left out: of all threads */
  forgetReplies(process: number, thread?: string): void {
    if (this.replies.size === 0) return
    const prefix = thread === undefined ? `${process} ` : `${process} ${thread} `
    this.replies = new Map([...this.replies].filter(([step]) => !step.startsWith(prefix)))
  }

  /** Writes down everything in it. */
  write(to: StateText): void {
    const { budget } = this
    for (const number of [this.session, this.committed, this.aborted, this.flying, this.outbox])
      to.number(number)
    for (const number of [this.taken, this.deleting, this.lapsed, this.dead]) to.number(number)
    for (const number of [budget.rollback, budget.unknown, budget.crash, budget.relayCrash]) to.number(number)
    for (const number of [budget.loss, budget.sqlError, budget.flush, budget.evict]) to.number(number)
    to.number(budget.restart)
    to.number(budget.failover)
    to.numbers(this.records)
    to.numbers(this.returned)
    to.numbers(this.seen)
    for (const session of this.intendedIn) to.number(session + 1)
    for (const own of this.own) to.numbers(own)
    for (const floors of this.floors) {
      to.number(floors ? 1 : 0)
      if (!floors) continue
      to.numbers(floors.returned)
      to.numbers(floors.seen)
      to.numbers(floors.own)
      to.number(floors.committed)
    }
    if (this.replica) to.numbers(this.replica)
    to.number(this.late.length)
    for (const { key, text } of this.late) to.text(`${key}${text}`)
    for (const [step, { session, byKey }] of this.replies) to.text(`${step}${session}${byKey.join()}`)
  }
}

/** Builds the text of a state. Every state is made into one, so this has to be quick. */
export class StateText {
  readonly #bytes = Buffer.alloc(4096)
  #length = 0

  number(value: number): void {
    this.#bytes[this.#length++] = value & 0xff
    this.#bytes[this.#length++] = value >> 8
  }

  numbers(values: readonly number[]): void {
    for (const value of values) this.number(value)
  }

  text(value: string): void {
    this.#length += this.#bytes.write(`${value}\n`, this.#length, 'latin1')
  }

  /** What was written since the last time. */
  take(): string {
    const text = this.#bytes.toString('latin1', 0, this.#length)
    this.#length = 0
    return text
  }
}
