/** What is promised. The names are those of the protocol's table of properties. */
export const PROPERTIES = {
  P1: 'at quiet every cached value equals the database',
  P2: 'a scope sees its own returned writes',
  P3: 'a read that starts after a write call returned sees it or newer',
  P3s: 'a read that starts after any read or write returned sees what that saw, or newer',
  P5: 'nothing uncommitted is answered or cached',
  told: 'a write call tells the truth about its COMMIT',
  ends: 'every call ends, lookups with an answer, and the outbox is drained',
} as const

export type Property = keyof typeof PROPERTIES

/** What is promised at each level whatever goes wrong, and what else only sometimes. */
export const ALWAYS: readonly Property[] = ['P1', 'P5', 'told', 'ends']
