import { expect, test } from 'vitest'
import { StoreUnavailableError } from '../../src/errors.ts'
import { clearTouched } from '../../src/invalidation/party.ts'
import { staleKeyOf } from '../../src/models/key.ts'
import { MemoryStore } from '../../src/stores/memory.ts'

/** A store of which one server is away: that of a key which cannot be cleared. */
class HalfStore extends MemoryStore {
  override async clear(keys: readonly string[], token: string | null, committed: boolean): Promise<void> {
    await super.clear(
      keys.filter((key) => !key.startsWith('away')),
      token,
      committed,
    )
    if (keys.some((key) => key.startsWith('away'))) throw new StoreUnavailableError('one server is away')
  }
}

test('what cannot be cleared is told, and does not keep the rest from being cleared', async () => {
  const store = new HalfStore()
  const keys = ['here', 'stale', 'model:1', 'model:2']
  const { lease } = await store.acquire(keys, [0, 0, 0, 0], 60_000)
  await store.fill(
    lease,
    keys.map((key) => ({ key, schema: 0, payload: 'absent', ttlMs: 60_000 })),
  )
  const touched = { keys: ['away', 'here'], stale: new Map([['stale', 60_000]]), prefixes: ['model:'] }
  await expect(clearTouched(store, touched, null, true)).rejects.toThrow('one server is away')
  expect(await store.getMany(keys)).toEqual([null, null, null, null])
  expect(await store.getMany([staleKeyOf('stale')])).not.toEqual([null])
})
