export const CONTENDERS = ['loadstone', 'dataloader', 'none'] as const
export type Contender = (typeof CONTENDERS)[number]

export type ToServer = 'report' | 'stop'

export type FromServer =
  | { readonly kind: 'ready'; readonly url: string; readonly slugs: readonly string[] }
  | ({ readonly kind: 'report' } & ServerReport)

/** What a server process has used since it was started. */
export interface ServerReport {
  readonly cpuMs: number
  readonly rssBytes: number
  readonly heapBytes: number
  /** Promises that were rejected, and nobody handled. */
  readonly rejections: number
}
