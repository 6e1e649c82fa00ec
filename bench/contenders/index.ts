import type { Prepare } from '../contender.ts'

/** Loaded one at a time, each in a process of its own. The first one is what the others are measured against. */
export const CONTENDERS = {
  'floor-raw': async () => (await import('./floor-raw.ts')).prepare,
  'floor-loader': async () => (await import('./floor-loader.ts')).prepare,
  loadstone: async () => (await import('./loadstone.ts')).prepare,
} satisfies Record<string, () => Promise<Prepare>>

export type ContenderName = keyof typeof CONTENDERS
