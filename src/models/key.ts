import { createHash } from 'node:crypto'

/** Longer values are hashed: a key is read with every lookup, and one 10 kB value must not cost 10 kB each time. */
const MAX_VALUES_LENGTH = 160

/** Stands for NULL; `escapeKeyPart` never returns it. */
const NULL_TEXT = '~'

// biome-ignore lint/suspicious/noControlCharactersInRegex: keys are shown in terminals, so none may hold a control character
const SPECIAL = /[%:,~#[\]{}*?\\\x00-\x20\x7f-\x9f]/
const SPECIALS = new RegExp(SPECIAL.source, 'g')

/**
 * A text as it stands in a cache key. The separators, blanks, control characters and what `SCAN MATCH` gives a
 * meaning to are percent-encoded, so the pieces of a key can be told apart, whatever they hold; and braces, so that no
 * value decides where in a Redis Cluster its key is.
 */
export function escapeKeyPart(text: string): string {
  if (!SPECIAL.test(text)) return text
  return text.replace(
    SPECIALS,
    (char) => `%${char.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`,
  )
}

/** The namespace of a further database of a cache. No cache has it: `~` is refused in its namespace. */
export function databaseNamespace(namespace: string, database: string): string {
  return `${namespace}~${database}`
}

/** What all cache keys of a model begin with: `namespace:model:`. */
export function modelPrefix(namespace: string, model: string): string {
  return `${escapeKeyPart(namespace)}:${escapeKeyPart(model)}:`
}

/** A key of a model under which nothing is ever stored. */
export function unusedKey(namespace: string, model: string): string {
  return `${modelPrefix(namespace, model)}~rights`
}

/** The key under which the relays of a namespace elect one. No model has it: `~` is escaped in names. */
export function relayKey(namespace: string): string {
  return `${escapeKeyPart(namespace)}:~relay`
}

const STALE_SUFFIX = '~stale'

/** Where what was at `key` is kept for a while after a write has marked it stale. No key ends like this: `~` is escaped. */
export function staleKeyOf(key: string): string {
  return key + STALE_SUFFIX
}

/** The key of which {@link staleKeyOf} made `key`; undefined: none. */
export function unstaleKeyOf(key: string): string | undefined {
  return key.endsWith(STALE_SUFFIX) ? key.slice(0, -STALE_SUFFIX.length) : undefined
}

/** The key of the marks of a namespace, see stores/marks.ts. */
export function marksKey(namespace: string): string {
  return `${escapeKeyPart(namespace)}:~marks`
}

/**
 * The cache key of the values `texts` (canonical, see canonical.ts) under `prefix`: injective, and at most
 * {@link MAX_VALUES_LENGTH} characters longer than the prefix.
 */
export function keyOf(prefix: string, texts: readonly (string | null)[]): string {
  let values = partOf(texts[0] as string | null)
  for (let i = 1; i < texts.length; i++) values += `,${partOf(texts[i] as string | null)}`
  // '#' is escaped in values, so a hash is never mistaken for a value.
  return (
    prefix +
    (values.length <= MAX_VALUES_LENGTH
      ? values
      : `#${createHash('sha256').update(values).digest('base64url')}`)
  )
}

function partOf(text: string | null): string {
  return text === null ? NULL_TEXT : escapeKeyPart(text)
}

/**
 * What {@link keyOf} was given, read back from a key that begins with `prefix`. Undefined: the values are hashed, or
 * keyOf did not make the key.
 */
export function textsOf(prefix: string, key: string): (string | null)[] | undefined {
  const texts = key
    .slice(prefix.length)
    .split(',')
    .map((part) => (part === NULL_TEXT ? null : unescapeKeyPart(part)))
  return keyOf(prefix, texts) === key ? texts : undefined
}

function unescapeKeyPart(part: string): string {
  if (!part.includes('%')) return part
  return part.replace(/%([0-9A-F]{2})/g, (_, code: string) => String.fromCharCode(Number.parseInt(code, 16)))
}
