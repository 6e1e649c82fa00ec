import { randomBytes } from 'node:crypto'
import { Client, Pool } from 'pg'
import { inject } from 'vitest'

export interface TestDatabase {
  url: string
  pool: Pool
  /** Ends the pool and drops the database, whoever is still connected to it. */
  drop(): Promise<void>
}

/** A new, empty database on the run's Postgres. */
export async function createTestDatabase(): Promise<TestDatabase> {
  const name = `test_${randomBytes(6).toString('hex')}`
  // template0 has no sessions, ever; were somebody connected to template1, CREATE DATABASE would fail.
  await administer(`create database ${name} template template0`)

  const url = new URL(inject('databaseUrl'))
  url.pathname = `/${name}`
  const pool = new Pool({ connectionString: url.href })
  // Connections are lost when their database is dropped, and in fault tests on purpose; pg tells each client of it,
  // whether it is idle in the pool or in use.
  pool.on('error', () => {})
  pool.on('connect', (client) => client.on('error', () => {}))
  return {
    url: url.href,
    pool,
    async drop() {
      await pool.end()
      await administer(`drop database ${name} with (force)`)
    },
  }
}

async function administer(statement: string): Promise<void> {
  const client = new Client({ connectionString: inject('databaseUrl') })
  await client.connect()
  try {
    await client.query(statement)
  } finally {
    await client.end()
  }
}
