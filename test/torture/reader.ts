import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { type Cache, type ModelCache, runInLoop } from '../../src/index.ts'
import { now } from './clock.ts'
import { describeError } from './errors.ts'
import type { Journal } from './journal.ts'
import type { Random } from './random.ts'
import {
  allKeys,
  type Key,
  keyName,
  keyNamesOf,
  MODELS,
  type ModelName,
  randomKey,
  type Tables,
  type Thing,
} from './things.ts'
import type { Watch } from './watch.ts'

type ThingKey = { readonly id: number } | { readonly slug: string }
type ThingFilter = { readonly grp: number; readonly kind?: string | null }

export interface ReaderParts {
  readonly cache: Cache<Tables>
  readonly models: Readonly<Record<ModelName, ModelCache<ThingKey & object, ThingFilter & object, Thing>>>
  readonly journal: Journal
  readonly random: Random
  readonly watch: Watch
}

/** What a scope has looked up already: a lookup of the same key is as old as the first one. */
export class Asked {
  readonly #first = new Map<string, { readonly from: number; readonly things: readonly Thing[] }>()

  first(key: string): { readonly from: number; readonly things: readonly Thing[] } | undefined {
    return this.#first.get(key)
  }

  answered(key: string, from: number, things: readonly Thing[]): void {
    this.#first.set(key, { from, things })
  }

  /** The scope has written: it knows nothing of these keys any more. */
  forget(keys: readonly string[]): void {
    for (const key of keys) this.#first.delete(key)
  }
}

/** Reads through the cache, and writes down what it saw, and when. */
export class Reader {
  readonly #parts: ReaderParts

  constructor(parts: ReaderParts) {
    this.#parts = parts
  }

  async turn(): Promise<void> {
    const { random } = this.#parts
    const luck = random.next()
    if (luck < 0.5) await runInLoop(() => this.look(randomKey(random)))()
    else if (luck < 0.6)
      await this.look(randomKey(random)) // outside any scope
    else if (luck < 0.8) await this.#wave(random.int(2, 40))
    else if (luck < 0.9) await this.#pastTheStore()
    else await this.#twice()
  }

  /** One lookup. It never rejects: what went wrong is written down. */
  async look(key: Key, asked?: Asked): Promise<readonly Thing[] | undefined> {
    const { journal, watch } = this.#parts
    const name = keyName(key)
    const first = asked?.first(name)
    const asks = now()
    const from = first?.from ?? asks
    try {
      const things = await watch.over(`lookup of ${name}`, () => this.find(key))
      journal.note({
        t: 'read',
        key: name,
        from,
        to: now(),
        seen: things.map(({ id, version, tag }) => [id, version, tag]),
        ...(first && { memo: true }),
      })
      this.#inspect(key, things)
      if (first && !isDeepStrictEqual(first.things, things)) {
        watch.problem(
          'in one scope a key has one answer',
          `${name} was ${show(first.things)}, then ${show(things)}`,
        )
      }
      asked?.answered(name, from, things)
      return things
    } catch (error) {
      journal.note({ t: 'unread', key: name, from: asks, to: now(), error: describeError(error) })
      return undefined
    }
  }

  async find({ model, shape, values }: Key): Promise<readonly Thing[]> {
    const cache = this.#parts.models[model]
    if (shape === 'grp' || shape === 'grp+kind') return cache.filterAsync(values)
    const thing = await cache.getAsyncOrNone(values)
    return thing ? [thing] : []
  }

  /** Every key, in one wave. */
  async lookAtAll(): Promise<Record<string, readonly Thing[]>> {
    const keys = MODELS.flatMap(allKeys)
    const found = await runInLoop(() => Promise.all(keys.map((key) => this.find(key))))()
    return Object.fromEntries(keys.map((key, i) => [keyName(key), found[i] as readonly Thing[]]))
  }

  /** Many keys of both models at once. */
  async #wave(size: number): Promise<void> {
    const { random } = this.#parts
    const keys = new Map(
      Array.from({ length: size }, () => {
        const key = randomKey(random)
        return [keyName(key), key] as const
      }),
    )
    await runInLoop(() => Promise.all([...keys.values()].map((key) => this.look(key))))()
  }

  /** In a transaction lookups ask SQL, which knows of a commit before anybody else does. */
  async #pastTheStore(): Promise<void> {
    const { cache, random, watch, journal } = this.#parts
    const from = now()
    try {
      const lookups = () => Promise.all(Array.from({ length: 3 }, () => this.look(randomKey(random))))
      await watch.over('a transaction that reads', () => cache.transaction(lookups))
    } catch (error) {
      journal.note({ t: 'unread', key: 'cache.transaction', from, to: now(), error: describeError(error) })
    }
  }

  /** The same key again in one scope, from its memo; then in a scope inside it, which is fresh. */
  async #twice(): Promise<void> {
    const { random } = this.#parts
    const key = randomKey(random)
    await runInLoop(async () => {
      const asked = new Asked()
      await this.look(key, asked)
      await sleep(random.int(0, 10))
      await this.look(key, asked)
      await runInLoop(() => this.look(key))()
    })()
  }

  /** What needs no history to be wrong. */
  #inspect({ model, ...key }: Key, things: readonly Thing[]): void {
    const name = keyName({ model, ...key } as Key)
    const strangers = things.filter((thing) => !keyNamesOf(model, thing).includes(name))
    if (strangers.length > 0)
      this.#parts.watch.problem('a lookup finds what it was asked for', `${name} found ${show(things)}`)
    const ids = things.map(({ id }) => id)
    if (
      !isDeepStrictEqual(
        ids,
        [...new Set(ids)].sort((a, b) => a - b),
      )
    ) {
      this.#parts.watch.problem('a list is in order, each row once', `${name} found ${show(things)}`)
    }
  }
}

function show(things: readonly Thing[]): string {
  return JSON.stringify(things)
}
