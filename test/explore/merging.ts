import type { Place } from './processes.ts'
import type { Store } from './store.ts'
import type { World } from './world.ts'

/**
 * Makes states the same that differ only in what can never matter again: which lease it was that nobody can fill or
 * join any more, late fills that will be refused, and what no later read is compared with. `selfcheck.test.ts`
 * compares with what is found without it.
 */
export function merge(
  world: World,
  places: readonly Place[],
  store: Store,
  callers: readonly (readonly number[])[],
): void {
  if (world.late.length > 0) {
    const isLost = ({ text, key }: World['late'][number]) =>
      text.startsWith('fill ') && !store.holds(world.records, key, text.split(' ')[1] as string)
    world.late = world.late.filter((message) => !isLost(message))
  }
  const isKnown = (token: string) =>
    places.some(({ leases }) => leases.includes(token)) || world.late.some(({ text }) => text.includes(token))
  world.records = store.settled(world.records, isKnown)
  if (world.replica) world.replica = store.settled(world.replica, isKnown)
  if (places.every(({ readsLeft }) => readsLeft === 0)) {
    const none = world.records.map(() => 0)
    world.returned = none
    world.seen = none
    world.own = world.own.map(() => none)
  }
  for (const [p, numbers] of callers.entries()) {
    const { waiting } = places[p] as Place
    for (const caller of numbers) {
      if (world.floors[caller] && !waiting.includes(caller))
        world.floors = world.floors.with(caller, undefined)
    }
  }
}
