import { sql } from 'kysely'
import { batch, runInLoop, ScopeDimensionError } from 'loadstone'
import { afterAll, describe, expect, test } from 'vitest'
import { insidesOf } from '../../src/cache.ts'
import { randomFrom } from '../support/mutations.ts'
import { closeRedis } from '../support/redis.ts'
import { PLACES, type Tables, type Tenancy } from './tenants.ts'

const SEED = Number(process.env.FUZZ_SEED ?? 20_261_121)
/** Rounds of writes, and then of scopes side by side. */
const ROUNDS = Number(process.env.FUZZ_ROUNDS ?? 4)
const SCOPES = 40
const TENANTS = [1, 2, 3, 4]
const ROLES = ['admin', 'user']
const TEAMS = 6
const USERS = 20
const DOCS = 12
const EMAILS = 8

afterAll(closeRedis)

type Rows = { readonly [Table in keyof Tables]: Tables[Table][] }
type Random = (below: number) => number

const pick = <T>(random: Random, items: readonly T[]): T => items[random(items.length)] as T

/** A statement that writes rows of any tenant, and often hands one over to another. */
function randomWrite(random: Random): string {
  const org = pick(random, TENANTS)
  const user = 1 + random(USERS)
  const team = 1 + random(TEAMS)
  const name = `n${random(4)}`
  const email = `e${random(EMAILS)}@x`
  return pick(random, [
    `insert into users values (${user}, ${org}, '${email}', ${team}, '${name}') on conflict do nothing`,
    `update users set org_id = ${org}, email = 'u' || id || '@x' where id = ${user}`,
    `update users set team_id = ${team} where id = ${user}`,
    `update users set name = '${name}' where id = ${user}`,
    `update users set org_id = case when random() < 0.1 then null else org_id end where team_id = ${team}`,
    `delete from users where id = ${user}`,
    `insert into teams values (${team}, ${org}, '${name}') on conflict (id) do update set org_id = ${org}`,
    `insert into docs values (${1 + random(DOCS)}, ${org}, '${pick(random, ROLES)}', ${user})
      on conflict (id) do update set role = excluded.role, org_id = excluded.org_id`,
    `insert into members values (${team}, ${user}) on conflict do nothing`,
    `delete from members where team_id = ${team}`,
    `update orgs set name = '${name}' where id = ${org}`,
  ])
}

async function readAll({ db }: Tenancy): Promise<Rows> {
  const [orgs, teams, users, docs, members, countries] = await Promise.all([
    db.selectFrom('orgs').selectAll().orderBy('id').execute(),
    db.selectFrom('teams').selectAll().orderBy('id').execute(),
    db.selectFrom('users').selectAll().orderBy('id').execute(),
    db.selectFrom('docs').selectAll().orderBy('id').execute(),
    db.selectFrom('members').selectAll().orderBy('team_id').orderBy('user_id').execute(),
    db.selectFrom('countries').selectAll().execute(),
  ])
  return { orgs, teams, users, docs, members, countries }
}

interface Asked {
  readonly what: string
  readonly answer: Promise<unknown>
  /** As the rows of this tenant alone have it. */
  readonly expected: unknown
}

/** A lookup of any kind, and what it has to come to for a tenant that has these rows. */
function randomLookup(random: Random, { models }: Tenancy, mine: Rows): Asked {
  const {
    Org,
    Team,
    User,
    Doc,
    Count,
    Exists,
    First,
    Emails,
    UsersOfTeam,
    MembersOfTeam,
    TeammatesOf,
    Owner,
  } = models
  const id = 1 + random(USERS)
  const team_id = 1 + random(TEAMS)
  const email = `e${random(EMAILS)}@x`
  const name = `n${random(4)}`
  const org = pick(random, TENANTS)
  const doc = 1 + random(DOCS)
  const user = mine.users.find((row) => row.id === id) ?? null
  const team = mine.teams.find((row) => row.id === team_id) ?? null
  const inTeam = mine.users.filter((row) => row.team_id === team_id)
  const teamOf = mine.teams.find((row) => row.id === user?.team_id) ?? null
  const orgOf = mine.orgs.find((row) => row.id === user?.org_id) ?? null
  const named = mine.users.filter((row) => row.name === name)
  const ids = mine.members.filter((row) => row.team_id === team_id).map(({ user_id }) => user_id)
  const members = mine.users.filter((row) => ids.includes(row.id))
  const kinds: Record<string, () => Omit<Asked, 'what'>> = {
    get: () => ({ answer: User.cache.getAsyncOrNone({ id }), expected: user }),
    'get by email': () => ({
      answer: User.cache.getAsyncOrNone({ email }),
      expected: mine.users.find((row) => row.email === email) ?? null,
    }),
    query: () => ({
      answer: User.cache
        .getQuery({ id })
        .resolveAsync()
        .catch(() => null),
      expected: user,
    }),
    filter: () => ({ answer: User.cache.filterAsync({ team_id }), expected: inTeam }),
    'filter by tenant': () => ({
      answer: User.cache.filterAsync({ org_id: org }),
      expected: mine.users.filter((row) => row.org_id === org),
    }),
    tenant: () => ({
      answer: Org.cache.getAsyncOrNone({ id: org }),
      expected: mine.orgs.find((row) => row.id === org) ?? null,
    }),
    'with one': () => ({
      answer: User.cache.getAsyncOrNone({ id }, { with: ['team', 'org'] }),
      expected: user && { ...user, team: teamOf, org: orgOf },
    }),
    'with many': () => ({
      answer: Team.cache.getAsyncOrNone({ id: team_id }, { with: ['users', 'members'] }),
      expected: team && { ...team, users: inTeam, members },
    }),
    docs: () => ({
      answer: Doc.cache.filterAsync({ owner_id: id }),
      expected: mine.docs.filter((row) => row.owner_id === id),
    }),
    doc: () => ({
      answer: Doc.cache.getAsyncOrNone({ id: doc }),
      expected: mine.docs.find((row) => row.id === doc) ?? null,
    }),
    count: () => ({ answer: Count(team_id).resolveAsync(), expected: inTeam.length }),
    exists: () => ({ answer: Exists(name).resolveAsync(), expected: named.length > 0 }),
    first: () => ({ answer: First(name).resolveAsync(), expected: named[0] ?? null }),
    load: () => ({ answer: Emails(team_id).resolveAsync(), expected: inTeam }),
    related: () => ({ answer: UsersOfTeam(team_id).resolveAsync(), expected: team ? inTeam : [] }),
    through: () => ({ answer: MembersOfTeam(team_id).resolveAsync(), expected: team ? members : [] }),
    mates: () => ({
      answer: TeammatesOf(id).resolveAsync(),
      expected: teamOf ? mine.users.filter((row) => row.team_id === teamOf.id) : [],
    }),
    polymorphic: () => ({ answer: Owner.lookup({ kind: 'user', ref: id }), expected: user }),
    batch: () => ({
      answer: batch(
        { a: User.cache.getQuery({ id }), b: [User.cache.filterQuery({ team_id })] },
        { errors: 'null' },
      ),
      expected: { a: user, b: [inTeam] },
    }),
    refresh: () => ({ answer: User.cache.refresh({ id }), expected: user }),
    'cache only': () => ({
      answer: User.cache
        .getQuery({ id })
        .resolveAsync({ onlyCache: true })
        .then((row) => row ?? null),
      expected: expect.toBeOneOf([user, null]),
    }),
  }
  const what = pick(random, Object.keys(kinds))
  const { answer, expected } = (kinds[what] as () => Omit<Asked, 'what'>)()
  return { what: `${what} of user ${id}, team ${team_id}, ${email}, ${name}`, answer, expected }
}

/** The rows in an answer, wherever they stand. */
function rowsIn(answer: unknown): { org_id?: unknown; role?: unknown }[] {
  if (typeof answer !== 'object' || answer === null) return []
  const inside = Object.values(answer).flatMap(rowsIn)
  return Object.hasOwn(answer, 'org_id') ? [answer, ...inside] : inside
}

describe.each(Object.entries(PLACES))('random tenants on %s', (_, open) => {
  test(`never see a row of another one, seed ${SEED}`, { timeout: 120_000 }, async () => {
    const place = await open()
    const random = randomFrom(SEED)
    const { cache, db, elsewhere } = place
    await elsewhere(`insert into orgs select i, 'org ' || i from generate_series(1, ${TENANTS.length}) i;
      insert into teams select i, 1 + i % ${TENANTS.length}, 'n' || i % 4 from generate_series(1, ${TEAMS}) i;
      insert into users select i, 1 + i % ${TENANTS.length}, 'e' || i / ${TENANTS.length} || '@x', 1 + i % ${TEAMS}, 'n' || i % 4
        from generate_series(1, ${USERS}) i;
      insert into docs select i, 1 + i % ${TENANTS.length}, case when i % 3 = 0 then 'admin' else 'user' end, i from generate_series(1, ${DOCS}) i;
      insert into members select 1 + i % ${TEAMS}, i from generate_series(1, ${USERS}) i`)
    let answers = 0
    let rows = 0
    let refused = 0

    /** Scopes side by side, each some turns long. */
    const scopes = (all: Rows | undefined) =>
      Promise.all(
        Array.from({ length: SCOPES }, async () => {
          const tenant = pick(random, TENANTS)
          const role = pick(random, ROLES)
          const mine: Rows = {
            orgs: [],
            countries: [],
            members: all?.members ?? [],
            ...(all && { orgs: all.orgs.filter(({ id }) => id === tenant) }),
            teams: all?.teams.filter(({ org_id }) => org_id === tenant) ?? [],
            users: all?.users.filter(({ org_id }) => org_id === tenant) ?? [],
            docs: all?.docs.filter((row) => row.org_id === tenant && row.role === role) ?? [],
          }
          const turn = async () => {
            for (let turns = 1 + random(3); turns > 0; turns--) {
              const asked = Array.from({ length: 1 + random(6) }, () => randomLookup(random, place, mine))
              for (const { what, answer, expected } of asked) {
                const found = await answer
                answers++
                for (const row of rowsIn(found)) {
                  rows++
                  if (Number(row.org_id) !== tenant)
                    expect.fail(`${what}: ${JSON.stringify(row)} for ${tenant}`)
                  if (row.role !== undefined && row.role !== role) expect.fail(`${what}: of another role`)
                }
                if (all) expect(found, `${what}, for ${tenant}`).toEqual(expected)
              }
              if (random(4) === 0) await new Promise((next) => setImmediate(next))
            }
          }
          if (random(10) === 0) {
            // Nobody's scope, in between.
            const nobody = runInLoop(() => place.models.User.cache.filterAsync({ team_id: 1 }), {
              scopeBy: { role },
            })
            await expect(nobody()).rejects.toBeInstanceOf(ScopeDimensionError)
            refused++
          }
          const scopeBy = { tenant: pick(random, [tenant, `${tenant}`, BigInt(tenant)]), role }
          // Some inherit their tenant, and some are inside another tenant's scope.
          const nesting = random(3)
          if (nesting === 0) await runInLoop(runInLoop(turn), { scopeBy })()
          else if (nesting === 1) {
            await runInLoop(runInLoop(turn, { scopeBy }), {
              scopeBy: { tenant: pick(random, TENANTS), role: 'user' },
            })()
          } else await runInLoop(turn, { scopeBy })()
        }),
      )
    const write = async () => {
      const statement = randomWrite(random)
      // A new email may be another one's already: then nothing was written.
      const done = random(2) === 0 ? elsewhere(statement) : sql.raw(statement).execute(db)
      await done.catch((error: unknown) => {
        if (!/duplicate key/.test(String(error))) throw error
      })
    }
    for (let round = 0; round < ROUNDS; round++) {
      for (let writes = random(12); writes > 0; writes--) await write()
      while ((await insidesOf(cache).relay.turn(0)) > 0);
      // At quiet: right, to the row. Then with writes in between: of the tenant, whatever else.
      await scopes(await readAll(place))
      await cache.idle()
      await Promise.all([scopes(undefined), ...Array.from({ length: 6 }, write)])
      await cache.idle()
    }
    expect(cache.stats().hits).toBeGreaterThan(ROUNDS * SCOPES)
    expect(answers).toBeGreaterThan(ROUNDS * SCOPES * 2)
    expect(rows).toBeGreaterThan(answers / 8)
    expect(refused).toBeGreaterThan(0)
    await place.close()
  })
})
