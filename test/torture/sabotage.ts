import { createHash } from 'node:crypto'
import { Relay } from '../../src/invalidation/relay.ts'
import { RedisStore } from '../../src/stores/redis.ts'
import { FILL } from '../../src/stores/scripts.ts'

/** Ways to break the protocol, to see that the checks notice. */
const BREAKS = {
  /** A commit clears nothing. */
  'no-clear'() {
    Object.assign(RedisStore.prototype, { clear: async () => undefined })
  },
  /** A write returns before its clear. */
  'late-clear'() {
    const { clear } = RedisStore.prototype
    Object.assign(RedisStore.prototype, {
      async clear(this: RedisStore, ...args: Parameters<RedisStore['clear']>) {
        setTimeout(() => clear.apply(this, args).catch(() => undefined), 20)
      },
    })
  },
  /** A fill does not look whether its lease is still there. */
  'no-lease'() {
    const source = FILL.source.replace("redis.pcall('GET', key) == lease", 'true')
    if (source === FILL.source) throw new Error('no-lease: the script is another one now')
    Object.assign(FILL, { source, sha: createHash('sha1').update(source).digest('hex') })
  },
  /** Strict writes announce nothing. */
  'no-intent'() {
    Object.assign(RedisStore.prototype, {
      async intend(this: RedisStore) {
        return this.session
      },
    })
  },
  /** Nobody applies what its writer did not. */
  'no-relay'() {
    Object.assign(Relay.prototype, { start: () => undefined })
  },
}

export type Sabotage = keyof typeof BREAKS
export const SABOTAGES = Object.keys(BREAKS) as Sabotage[]

export function isSabotage(name: string): name is Sabotage {
  return name in BREAKS
}

/** Breaks the Loadstone that this process has loaded. */
export function sabotage(how: Sabotage | undefined): void {
  if (how) BREAKS[how]()
}
