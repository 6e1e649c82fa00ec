/** What a load came to, for those who joined it: the encoded value, none, not to be shared, or why it failed. */
export type FlightResult = Buffer | 'absent' | 'unshared' | Error

/** A load in flight, for one key under one lease: our own, or another process' that we wait for. */
export class Flight {
  /** Of the lease. */
  readonly token: string
  readonly result: Promise<FlightResult>
  settled: FlightResult | undefined = undefined
  /** Whether somebody else may be waiting for the result. */
  isWanted = true
  #resolve!: (result: FlightResult) => void

  constructor(token: string) {
    this.token = token
    this.result = new Promise((resolve) => {
      this.#resolve = resolve
    })
  }

  settle(result: FlightResult): void {
    if (this.settled !== undefined) return
    this.settled = result
    this.#resolve(result)
  }
}

/**
 * The loads in flight of this process. One may be joined only by who has just seen its very token in the store: then
 * no write has come between, and the answer is as fresh as a hit. A flight therefore lasts until its fill is through.
 * Another master, which may never have heard who took the lease away, shows it to nobody: it is of another epoch.
 */
export class Flights {
  readonly #byKey = new Map<string, Flight>()

  get size(): number {
    return this.#byKey.size
  }

  get(key: string, token: string): Flight | undefined {
    const flight = this.#byKey.get(key)
    return flight?.token === token ? flight : undefined
  }

  begin(key: string, token: string): Flight {
    const flight = new Flight(token)
    this.#byKey.set(key, flight)
    return flight
  }

  /** Ends a flight; one that came to nothing leaves those who joined to themselves. */
  end(key: string, flight: Flight): void {
    flight.settle('unshared')
    if (this.#byKey.get(key) === flight) this.#byKey.delete(key)
  }
}

/**
 * The loads without the store whose statement has not been sent yet. Those may be joined by anybody: the statement will
 * see whatever was committed before they asked. One that was sent may not, as nothing tells of a write in between.
 */
export class QueuedLoads {
  readonly #byKey = new Map<string, Flight>()

  /** The load to join for a key, if there is one. */
  join(key: string): Flight | undefined {
    const flight = this.#byKey.get(key)
    if (flight) flight.isWanted = true
    return flight
  }

  begin(key: string): Flight {
    const flight = new Flight('')
    flight.isWanted = false
    this.#byKey.set(key, flight)
    return flight
  }

  /** From now on nobody joins it: its statement is being sent, or never will be. */
  leave(key: string, flight: Flight): void {
    if (this.#byKey.get(key) === flight) this.#byKey.delete(key)
  }
}
