import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'

/** `requests` go to the server, `replies` come from it. */
export type Direction = 'requests' | 'replies'

/** A TCP proxy on 127.0.0.1 that makes a network between a client and a server misbehave as told. */
export interface FaultyProxy {
  readonly port: number
  /** How many connections it has accepted so far. */
  readonly accepted: number
  /** Holds bytes back, of both directions or one. Connections stay open, and new ones are accepted: a black hole. */
  hold(direction?: Direction): void
  /** Lets what was held back go on, in its order, and holds no more. */
  release(): void
  /** From now on everything takes so much longer, each way. Default 0. */
  delay(ms: number): void
  /** Breaks all connections, with a reset. What was held back is lost. */
  cut(): void
  /** New connections lead to the server at this port: the address goes over to it, as in a failover. */
  leadTo(port: number): void
  /** Breaks all connections and takes no more. */
  close(): Promise<void>
}

/** Starts a proxy in front of the server at `port`. */
export async function startProxy(port: number): Promise<FaultyProxy> {
  const held = new Set<Direction>()
  const connections = new Set<Connection>()
  let target = port
  let delayMs = 0
  let accepted = 0
  const control: Control = { isHeld: (direction) => held.has(direction), delayMs: () => delayMs }

  const listener = createServer((client) => {
    accepted++
    const connection = new Connection(client, connect(target, '127.0.0.1'), control)
    connections.add(connection)
    void connection.ended.then(() => connections.delete(connection))
  }).listen(0, '127.0.0.1')
  await once(listener, 'listening')

  return {
    port: (listener.address() as AddressInfo).port,
    get accepted() {
      return accepted
    },
    hold(direction) {
      for (const each of direction ? [direction] : (['requests', 'replies'] as const)) held.add(each)
    },
    release() {
      held.clear()
      for (const connection of connections) connection.flush()
    },
    delay(ms) {
      delayMs = ms
    },
    cut() {
      for (const connection of connections) connection.cut()
    },
    leadTo(other) {
      target = other
    },
    async close() {
      for (const connection of connections) connection.cut()
      listener.close()
      await once(listener, 'close')
    },
  }
}

interface Control {
  isHeld(direction: Direction): boolean
  delayMs(): number
}

class Connection {
  readonly ended: Promise<unknown>
  readonly #sockets: readonly Socket[]
  readonly #pipes: readonly Pipe[]

  constructor(client: Socket, server: Socket, control: Control) {
    this.#sockets = [client, server]
    this.#pipes = [
      new Pipe(client, server, () => control.isHeld('requests'), control.delayMs),
      new Pipe(server, client, () => control.isHeld('replies'), control.delayMs),
    ]
    const closed = this.#sockets.map(async (socket) => {
      socket.setNoDelay(true)
      socket.on('error', () => this.cut()) // refused or reset: the other side shall see it too
      await new Promise((resolve) => socket.on('close', resolve))
    })
    // Both: while one side's end is held back, the other one lives, and has to be released or cut.
    this.ended = Promise.all(closed)
  }

  flush(): void {
    for (const pipe of this.#pipes) pipe.flush()
  }

  cut(): void {
    for (const socket of this.#sockets) {
      // A reset after its end has been sent fails, and leaves a socket that nothing closes any more.
      if (socket.writableEnded) socket.destroy()
      else socket.resetAndDestroy()
    }
  }
}

/** Carries the bytes of one direction, and then its end. */
class Pipe {
  readonly #to: Socket
  readonly #isHeld: () => boolean
  readonly #waiting: (Buffer | 'end')[] = []
  /** When what was last delayed is due: nothing overtakes it. */
  #due = 0

  constructor(from: Socket, to: Socket, isHeld: () => boolean, delayMs: () => number) {
    this.#to = to
    this.#isHeld = isHeld
    const carry = (item: Buffer | 'end') => {
      this.#waiting.push(item)
      const now = performance.now()
      this.#due = Math.max(this.#due, now + delayMs())
      if (this.#due <= now) this.flush()
      else setTimeout(() => this.flush(1), this.#due - now)
    }
    from.on('data', carry)
    from.on('end', () => carry('end'))
    from.on('close', () => carry('end'))
  }

  flush(most = Number.POSITIVE_INFINITY): void {
    for (let i = 0; i < most && this.#waiting.length > 0 && !this.#isHeld(); i++) {
      const item = this.#waiting.shift() as Buffer | 'end'
      if (this.#to.destroyed) continue
      if (item === 'end') this.#to.end()
      else this.#to.write(item)
    }
  }
}
