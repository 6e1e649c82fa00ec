import type { UserRow } from './data.ts'

/**
 * One way to get rows out of a cache, to be compared with the others. To add one, write `contenders/<name>.ts` with a
 * {@link Prepare}, and name it in `contenders/index.ts`. It should be written as its own documentation tells users to.
 *
 * Ids and organisations are numbers, as an application has them: making cache keys of them is part of the work.
 * What comes back must be right, see check.ts, except that a Date may have become its JSON text.
 */
export interface Contender {
  /** One request that looks up users by id. Rows in the order of the ids. */
  rows(ids: readonly number[]): Promise<readonly (Row | null)[]>
  /** One request that looks up the same ids in each of the five tables. Rows in the order of TABLES, then of the ids. */
  mixed(ids: readonly number[]): Promise<readonly (Row | null)[]>
  /** One request that looks up lists of users by org_id, each ordered by id. */
  lists(orgs: readonly number[]): Promise<readonly (readonly Row[])[]>
  /** Enters a request that has looked up these users already, and stays in it. */
  known?(ids: readonly number[]): Promise<KnownRows>
  /** Begins and ends so many requests that look up nothing. */
  emptyRequests?(count: number): void
  /** Resolves when nothing is under way any more; what was not awaited, such as filling the cache, included. */
  idle(): Promise<void>
  close(): Promise<void>
}

/** A row as it comes from the driver, or as JSON gives it back. */
export type Row = { readonly [Column in keyof UserRow]: UserRow[Column] | string }

/** Lookups that the request's own memory answers. */
export interface KnownRows {
  /** A lookup as usual for each id, all awaited together. */
  load(ids: readonly number[]): Promise<readonly (Row | null)[]>
  /** Looks without a promise, where there is such a thing. */
  peek?(ids: readonly number[]): readonly (Row | null | undefined)[]
}

export interface Environment {
  readonly databaseUrl: string
  /** A Redis database of its own. */
  readonly redisUrl: string
}

export type Prepare = (environment: Environment) => Promise<Contender>
