import type { Event } from './machine.ts'
import type { Place } from './processes.ts'
import type { Property } from './properties.ts'
import type { Table } from './rows.ts'
import type { Scenario } from './scenario.ts'
import type { Store } from './store.ts'
import type { World } from './world.ts'

type Told<Type extends Event['type']> = Extract<Event, { type: Type }>

/** Keeps account of what callers were told, and checks it. Each check says which promises are broken. */
export class Promises {
  readonly #scenario: Scenario
  readonly #store: Store
  /** Per key, the writes that concern it. */
  readonly #concerning: readonly number[]
  readonly #checked: ReadonlySet<Property>

  constructor(scenario: Scenario, table: Table, store: Store) {
    this.#scenario = scenario
    this.#store = store
    this.#concerning = scenario.keys.map((key) => table.concerning(key))
    this.#checked = new Set(scenario.promises)
  }

  /** A read begins: what was seen or has returned by now, it has to show. */
  begins(world: World, p: number, caller: number): void {
    const committed = this.#scenario.mutation?.readsOldSnapshot ? world.committed : 0
    const own = world.own[p] as readonly number[]
    world.floors = world.floors.with(caller, { returned: world.returned, seen: world.seen, own, committed })
  }

  answered(world: World, { caller, key, shown, inside }: Told<'answered'>): readonly Property[] {
    const k = this.#scenario.keys.indexOf(key)
    const own = inside === undefined ? 0 : 1 << inside
    if (shown === undefined || shown & ~(world.committed | own)) return ['P5']
    const lacks = (floor: number) => (floor & (this.#concerning[k] as number) & ~shown) !== 0
    if (inside !== undefined) return lacks(own) ? ['P2'] : []
    const floors = world.floors[caller]
    if (!floors) throw new Error('an answer to a read that has not begun')
    if (this.#checked.has('P3s')) world.seen = world.seen.with(k, (world.seen[k] as number) | shown)
    const broken = { P2: floors.own, P3: floors.returned, P3s: floors.seen }
    return (['P2', 'P3', 'P3s'] as const).filter(
      (property) => this.#checked.has(property) && lacks(broken[property][k] as number),
    )
  }

  /** The only failure that a lookup may tell of is that of its own SQL. */
  failed(): readonly Property[] {
    return this.#scenario.faults.sqlError ? [] : ['ends']
  }

  wrote(world: World, p: number, { write, told }: Told<'wrote'>): readonly Property[] {
    const bit = 1 << write
    const isTrue =
      { committed: world.committed & bit, aborted: world.aborted & bit, unknown: bit }[told] !== 0
    if (told === 'committed') {
      const add = (floor: readonly number[]) =>
        floor.map((mask, k) => mask | (bit & (this.#concerning[k] as number)))
      if (this.#checked.has('P3')) world.returned = add(world.returned)
      if (this.#checked.has('P3s')) world.seen = add(world.seen)
      if (this.#checked.has('P2')) world.own = world.own.with(p, add(world.own[p] as readonly number[]))
    }
    return isTrue ? [] : ['told']
  }

  /** Of the cached values. */
  cached(world: World, places: readonly Place[]): readonly Property[] {
    const broken = new Set<Property>()
    const quiet = isQuiet(world, places)
    world.records.forEach((number, k) => {
      const { kind, shown } = this.#store.of(number)
      if (kind !== 'value' || !this.#store.isBelieved(number, world.session)) return
      const value = shown[k]
      if (value === undefined || value & ~world.committed) broken.add('P5')
      if (quiet && value !== (world.committed & (this.#concerning[k] as number))) broken.add('P1')
    })
    return [...broken]
  }

  /** Of a state from which nothing goes on. @param ended whether every call has ended */
  atEnd(world: World, places: readonly Place[], ended: boolean): readonly Property[] {
    return ended && isQuiet(world, places) ? [] : ['ends']
  }

  /** What the database says, as far as it concerns a key. */
  truth(world: World, k: number): number {
    return world.committed & (this.#concerning[k] as number)
  }
}

/** Whether nothing is under way: between two calls is quiet too, as the next call may never come. */
function isQuiet(world: World, places: readonly Place[]): boolean {
  const { flying, outbox, taken, deleting, late, replies } = world
  if (flying || outbox || taken || deleting || late.length > 0 || replies.size > 0) return false
  return places.every(({ resting }) => resting)
}
