import { PGlite } from '@electric-sql/pglite'
import { type Dialect, Kysely, PGliteDialect, PostgresDialect } from 'kysely'
import { type Cache, createModelCache, withInvalidation } from 'loadstone'
import type { RedisClient } from '../../src/stores/redis.ts'
import { createTestDatabase } from '../support/database.ts'
import { testRedis } from '../support/redis.ts'

export interface Tables {
  orgs: { id: number; name: string }
  teams: { id: number; org_id: number; name: string }
  users: { id: number; org_id: number | null; email: string; team_id: number | null; name: string }
  docs: { id: number; org_id: number; role: string; owner_id: number }
  members: { team_id: number; user_id: number }
  countries: { code: string }
}

/** No foreign keys: rows may well point at those of another tenant, as in a database where something went wrong. */
const SCHEMA = `
  create table orgs (id int primary key, name text not null);
  create table teams (id int primary key, org_id int not null, name text not null);
  create table users (id int primary key, org_id int, email text not null, team_id int, name text not null, unique (org_id, email));
  create table docs (id int primary key, org_id int not null, role text not null, owner_id int not null);
  create table members (team_id int not null, user_id int not null, primary key (team_id, user_id));
  create table countries (code text primary key);
  insert into countries values ('SE')`

export interface Tenancy {
  readonly db: Kysely<Tables>
  readonly cache: Cache<Tables>
  readonly models: ReturnType<typeof declare>
  /** SQL by another program, which knows nothing of the cache: triggers fire, and nobody clears yet. */
  elsewhere(statement: string): Promise<unknown>
  close(): Promise<void>
}

/** Organisations are the tenants; what a doc says can be seen by one role alone. */
export function declare(cache: Cache<Tables>) {
  const scopeBy = { tenant: 'org_id' } as const
  const Org = cache.model('orgs', {
    keyFields: [['id']],
    scopeBy: { tenant: 'id' },
    relations: { users: { many: 'users', on: { id: 'org_id' } } },
  })
  const Team = cache.model('teams', {
    keyFields: [['id']],
    filterFields: [['name']],
    scopeBy,
    relations: {
      users: { many: 'users', on: { id: 'team_id' } },
      members: { many: 'users', through: 'members', on: { id: 'team_id' }, to: { user_id: 'id' } },
    },
  })
  const User = cache.model('users', {
    keyFields: [['id'], ['email']],
    filterFields: [['team_id'], ['name'], ['org_id']],
    scopeBy,
    relations: { team: { one: 'teams', on: { team_id: 'id' } }, org: { one: 'orgs', on: { org_id: 'id' } } },
  })
  const Doc = cache.model('docs', {
    keyFields: [['id']],
    filterFields: [['owner_id']],
    scopeBy: { tenant: 'org_id', role: 'role' },
    consistency: 'strict',
  })
  const Member = cache.model('members', {
    keyFields: [['team_id', 'user_id']],
    filterFields: [['team_id'], ['user_id']],
  })
  const Country = cache.model('countries', { keyFields: [['code']] })
  return {
    ...{ Org, Team, User, Doc, Member, Country },
    Count: cache.count({ name: 'Count', model: User, keyFields: ['team_id'] }),
    Exists: cache.exists({ name: 'Exists', model: User, keyFields: ['name'] }),
    First: cache.queryset({ name: 'First', model: User, keyFields: ['name'], single: true }),
    Emails: cache.queryset({
      name: 'Emails',
      model: User,
      keyFields: ['team_id'],
      async load(keys, { db }) {
        const rows = await db.selectFrom('users').selectAll().orderBy('id').execute()
        return keys.map(({ team_id, org_id }) =>
          rows.filter((row) => row.team_id === Number(team_id) && row.org_id === Number(org_id)),
        )
      },
    }),
    /** One hop, by what is the key of the cache itself but for the tenant. */
    UsersOfTeam: cache.related({
      name: 'UsersOfTeam',
      model: Team,
      keyFields: ['id'],
      path: [{ model: User, on: { id: 'team_id' } }],
    }),
    /** Through a table that belongs to nobody. */
    MembersOfTeam: cache.related({
      name: 'MembersOfTeam',
      model: Team,
      keyFields: ['id'],
      path: [
        { model: Member, on: { id: 'team_id' } },
        { model: User, on: { user_id: 'id' } },
      ],
    }),
    /** Through rows of one tenant to those of another, if they were not told apart on the way. */
    TeammatesOf: cache.related({
      name: 'TeammatesOf',
      model: User,
      keyFields: ['id'],
      path: [
        { model: Team, on: { team_id: 'id' } },
        { model: User, on: { id: 'team_id' } },
      ],
    }),
    Owner: cache.polymorphic({ type: 'kind', id: 'ref', to: { user: User, team: Team } }),
  }
}

async function open(
  dialect: Dialect,
  store: { redis?: RedisClient; namespace: string },
  elsewhere: Tenancy['elsewhere'],
  close: () => Promise<unknown>,
): Promise<Tenancy> {
  await elsewhere(SCHEMA)
  const db = new Kysely<Tables>({ dialect: withInvalidation(dialect) })
  const cache = createModelCache<Tables>({ db, ...store, storeTimeout: '10s', relay: false })
  const models = declare(cache)
  await cache.install()
  return {
    db,
    cache,
    models,
    elsewhere,
    async close() {
      await cache.close()
      await close()
    },
  }
}

async function onServers(): Promise<Tenancy> {
  const { pool, drop } = await createTestDatabase()
  return open(new PostgresDialect({ pool }), testRedis(), (statement) => pool.query(statement), drop)
}

async function embedded(): Promise<Tenancy> {
  const pglite = await PGlite.create()
  const elsewhere = (statement: string) => pglite.exec(statement)
  return open(new PGliteDialect({ pglite }), { namespace: 'tenants' }, elsewhere, () => pglite.close())
}

export const PLACES: Readonly<Record<string, () => Promise<Tenancy>>> = {
  'Redis and Postgres': onServers,
  'in-process store and PGlite': embedded,
}
