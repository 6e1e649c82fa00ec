import type { Generated } from 'kysely'
import type { Random } from './random.ts'

/** Two models of one shape: one of the default level, one strict. */
export const MODELS = ['relaxed', 'strict'] as const
export type ModelName = (typeof MODELS)[number]

export interface ThingTable {
  id: number
  slug: string | null
  grp: number
  kind: string | null
  /** Counted up by every write of this id, deletes included: a trigger of the test does it. */
  version: Generated<number>
  /** Who wrote it: the name of the operation, with {@link UNDONE} behind it when the writer is going to undo it. */
  tag: string
}

export type Tables = Record<ModelName, ThingTable>

export interface Thing {
  readonly id: number
  readonly slug: string | null
  readonly grp: number
  readonly kind: string | null
  readonly version: number
  readonly tag: string
}

/** Ends the tag of what is going to be rolled back. Nobody may ever see it. */
export const UNDONE = '!'

export const META = {
  keyFields: [['id'], ['slug']],
  filterFields: [['grp'], ['grp', 'kind']],
} as const

/** What one cache key selects. */
export type Key = { readonly model: ModelName } & (
  | { readonly shape: 'id'; readonly values: { readonly id: number } }
  | { readonly shape: 'slug'; readonly values: { readonly slug: string } }
  | { readonly shape: 'grp'; readonly values: { readonly grp: number } }
  | { readonly shape: 'grp+kind'; readonly values: { readonly grp: number; readonly kind: string | null } }
)

// Few of everything, so that processes meet at the same keys all the time.
export const IDS = range(1, 16)
const SLUGS = range(1, 20).map((n) => `s${n}`)
const GROUPS = range(1, 4)
const KINDS = ['a', 'b', null]

export function keyName({ model, values }: Key): string {
  return `${model} ${Object.entries(values)
    .map(([field, value]) => `${field}=${value}`)
    .join(' ')}`
}

/** The names of all keys that a row is found by. */
export function keyNamesOf(
  model: ModelName,
  { id, slug, grp, kind }: Omit<Thing, 'version' | 'tag'>,
): string[] {
  const names = [`${model} id=${id}`, `${model} grp=${grp}`, `${model} grp=${grp} kind=${kind}`]
  if (slug !== null) names.push(`${model} slug=${slug}`)
  return names
}

/** Every key there can be. */
export function allKeys(model: ModelName): Key[] {
  return [
    ...IDS.map((id): Key => ({ model, shape: 'id', values: { id } })),
    ...SLUGS.map((slug): Key => ({ model, shape: 'slug', values: { slug } })),
    ...GROUPS.map((grp): Key => ({ model, shape: 'grp', values: { grp } })),
    ...GROUPS.flatMap((grp) =>
      KINDS.map((kind): Key => ({ model, shape: 'grp+kind', values: { grp, kind } })),
    ),
  ]
}

const KEYS = Object.fromEntries(MODELS.map((model) => [model, allKeys(model)])) as Record<ModelName, Key[]>

export function randomKey(random: Random): Key {
  return random.pick(KEYS[random.pick(MODELS)])
}

/** A row of this id with everything else at random; a slug may be that of another row. */
export function randomThing(random: Random, id: number): Omit<Thing, 'version' | 'tag'> {
  return {
    id,
    slug: random.chance(0.2) ? null : random.pick(SLUGS),
    grp: randomGroup(random),
    kind: randomKind(random),
  }
}

export function randomGroup(random: Random): number {
  return random.pick(GROUPS)
}

export function randomKind(random: Random): string | null {
  return random.pick(KINDS)
}

export function randomSlug(random: Random): string {
  return random.pick(SLUGS)
}

function range(first: number, last: number): number[] {
  return Array.from({ length: last - first + 1 }, (_, i) => first + i)
}
