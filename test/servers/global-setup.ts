import type { TestProject } from 'vitest/node'
import { provisionServers } from './provision.ts'

declare module 'vitest' {
  export interface ProvidedContext {
    redisUrl: string
    databaseUrl: string
  }
}

/** Runs once, before all test files: one Redis and one Postgres for the whole run. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const { redisUrl, databaseUrl, stop } = await provisionServers()
  project.provide('redisUrl', redisUrl)
  project.provide('databaseUrl', databaseUrl)
  return stop
}
