import type { Backends } from './backends.ts'

export interface Fault {
  readonly name: string
  begin(backends: Backends): Promise<void> | void
  end(backends: Backends): Promise<void> | void
}

/** What happens to Redis while the load goes on. */
export const FAULTS: readonly Fault[] = [
  {
    name: 'Redis refuses connections',
    begin({ proxy }) {
      proxy.leadTo(1)
      proxy.cut()
    },
    end: ({ proxy, redis }) => proxy.leadTo(redis.port),
  },
  {
    name: 'Redis is silent',
    begin: ({ proxy }) => proxy.hold(),
    end: ({ proxy }) => proxy.release(),
  },
  {
    name: 'Redis answers after 500 ms',
    begin: ({ proxy }) => proxy.delay(250),
    end: ({ proxy }) => proxy.delay(0),
  },
  {
    name: 'Redis is restarted, and empty',
    async begin({ redis }) {
      await redis.kill()
      await redis.restart()
    },
    end: () => undefined,
  },
]
