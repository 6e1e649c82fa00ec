import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import type { Server as RunningServer } from '../servers/server.ts'
import { now } from './clock.ts'
import type { Fleet, Slot } from './fleet.ts'
import type { Fault, Planned } from './schedule.ts'

/** A fault that was, from its first moment until all was well again. */
export interface FaultWindow {
  readonly kind: string
  /** In words, for histories. */
  readonly what: string
  /** The worker it was done to; undefined: it concerned all. */
  readonly worker: string | undefined
  readonly from: number
  readonly to: number
}

/** How long a fault waits for its moment, ms. */
const COMES_WITHIN_MS = 1500

/** Does faults to a fleet and its Redis, and writes down when. */
export class Saboteur {
  readonly windows: FaultWindow[] = []
  readonly #fleet: Fleet
  readonly #redis: RunningServer
  readonly #postgres: RunningServer
  /** Faults of the servers themselves take turns. */
  #serverTurn: Promise<void> = Promise.resolve()

  constructor(fleet: Fleet, redis: RunningServer, postgres: RunningServer) {
    this.#fleet = fleet
    this.#redis = redis
    this.#postgres = postgres
  }

  /** Does all of the plan, in its time. Resolves when all is over. */
  async run(plan: readonly Planned[], start: number): Promise<void> {
    const running: Promise<void>[] = []
    for (const fault of plan) {
      await sleep(Math.max(0, start + fault.at - now()))
      running.push(this.#do(fault))
    }
    await Promise.all(running)
  }

  async #do(fault: Fault): Promise<void> {
    const slot = 'worker' in fault ? (this.#fleet.slots[fault.worker] as Slot) : undefined
    const what = describe(fault, slot)
    if (!('worker' in fault)) {
      this.#serverTurn = this.#serverTurn.then(() =>
        this.#during(fault, what, undefined, () => this.#toServer(fault)),
      )
      return this.#serverTurn
    }
    await this.#during(fault, what, slot?.name, () => this.#toWorker(fault, slot as Slot))
  }

  async #during(
    fault: Fault,
    what: string,
    worker: string | undefined,
    run: () => Promise<void>,
  ): Promise<void> {
    const kind = kindOf(fault)
    const from = now()
    // Known from the start, so that a history of a run that breaks off has it.
    const at = this.windows.push({ kind, what, worker, from, to: Number.POSITIVE_INFINITY }) - 1
    await run()
    this.windows[at] = { kind, what, worker, from, to: now() }
  }

  async #toServer(fault: Exclude<Fault, { worker: number }>): Promise<void> {
    if (fault.kind === 'postgres-restart') {
      await this.#postgres.kill()
      await sleep(fault.ms)
      await this.#postgres.restart()
    } else if (fault.kind === 'redis-pause') {
      this.#redis.pause()
      await sleep(fault.ms)
      this.#redis.resume()
    } else if (fault.kind === 'redis-restart') {
      await this.#redis.kill()
      await sleep(fault.ms)
      await this.#redis.restart()
    } else {
      const redis = new Redis(this.#redis.url)
      await redis.flushall()
      redis.disconnect()
    }
  }

  async #toWorker(fault: Extract<Fault, { worker: number }>, slot: Slot): Promise<void> {
    const worker = await this.#fleet.working(slot)
    switch (fault.kind) {
      case 'kill-at':
        // A worker that does not write in time is killed anyway.
        worker.expected = true
        worker.tell({ type: 'die', step: fault.step, after: fault.after })
        await Promise.race([worker.exited, sleep(COMES_WITHIN_MS, undefined, { ref: false })])
        worker.signal('SIGKILL')
        await this.#fleet.working(slot)
        break
      case 'kill':
        worker.expected = true
        worker.signal('SIGKILL')
        await worker.exited
        await this.#fleet.working(slot)
        break
      case 'freeze':
        worker.signal('SIGSTOP')
        await sleep(fault.ms)
        worker.signal('SIGCONT')
        break
      case 'cut':
        slot[fault.of].cut()
        break
      case 'cut-at-commit': {
        const committing = worker.reply('committing', COMES_WITHIN_MS)
        worker.tell({ type: 'tell-commit' })
        // None in time, or the worker was killed: cut off it is, anyway.
        await committing.catch(() => undefined)
        await sleep(fault.ms)
        slot.postgres.cut()
        break
      }
      case 'delay':
        slot[fault.of].delay(fault.byMs)
        await sleep(fault.ms)
        if (fault.ending === 'cut') slot[fault.of].cut()
        slot[fault.of].delay(0)
        break
      case 'hole':
        slot[fault.of].hold(fault.direction)
        await sleep(fault.ms)
        if (fault.ending === 'cut') slot[fault.of].cut()
        slot[fault.of].release()
        break
    }
  }
}

/** Names the server that a network fault is about. */
export function kindOf(fault: Fault): string {
  if (fault.kind === 'cut-at-commit') return `postgres-${fault.kind}`
  return 'of' in fault ? `${fault.of}-${fault.kind}` : fault.kind
}

function describe(fault: Fault, slot: Slot | undefined): string {
  switch (fault.kind) {
    case 'kill':
      return `kill -9 of ${slot?.name}`
    case 'kill-at':
      return `kill -9 of ${slot?.name} ${fault.after ? 'after' : 'before'} its next ${fault.step}`
    case 'freeze':
      return `${slot?.name} is frozen for ${fault.ms} ms`
    case 'redis-restart':
      return `Redis is killed, and starts empty ${fault.ms} ms later`
    case 'postgres-restart':
      return `Postgres crashes, and recovers ${fault.ms} ms later`
    case 'redis-flush':
      return 'FLUSHALL'
    case 'redis-pause':
      return `Redis is frozen for ${fault.ms} ms`
    case 'cut':
      return `${slot?.name} loses its connections to ${fault.of}`
    case 'cut-at-commit':
      return `${slot?.name} loses its connections to postgres ${fault.ms} ms after its next transaction`
    case 'delay':
      return `${slot?.name}: ${fault.of} ${fault.byMs} ms away for ${fault.ms} ms, then ${fault.ending}`
    case 'hole':
      return `${slot?.name}: ${fault.direction} of ${fault.of} held for ${fault.ms} ms, then ${fault.ending}`
  }
}
