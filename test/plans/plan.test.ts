import { NotFoundError, OptionError, PlanError, runInLoop } from 'loadstone'
import { expectTrips } from 'loadstone/testing'
import { afterAll, afterEach, beforeEach, describe, expect, expectTypeOf, test } from 'vitest'
import { PLACES, type Portal } from '../customs/portal.ts'
import { closeRedis } from '../support/redis.ts'

const COLD = { mget: 1, acquire: 1, fill: 1 }

afterAll(closeRedis)

/** The ways of a page about an event; `calls` are the nodes whose ways were gone, in order. */
function declarePage({ cache, models: { Event, User, Team, EventTag, Tag } }: Portal) {
  const calls: string[] = []
  const went = <Result>(node: string, result: Result) => {
    calls.push(node)
    return result
  }
  const TagIds = cache.queryset({
    name: 'TagIds',
    model: EventTag,
    keyFields: ['event_id'],
    loadOne: async ({ event_id }, { db }) =>
      (await db.selectFrom('event_tags').select('tag_id').where('event_id', '=', event_id).execute()).map(
        ({ tag_id }) => tag_id,
      ),
  })
  const page = cache
    .plan<{ eventId: number; eventSlug: string; ownerId: number | null }>()
    .node('event', ['eventSlug'], ({ eventSlug }) => went('event', Event.cache.getQuery({ slug: eventSlug })))
    .way('event', ['eventId'], ({ eventId }) => went('event', Event.cache.getQuery({ id: eventId })))
    .way('eventId', ['event'], ({ event }) => went('eventId', event.id), { cost: 0 })
    .way('ownerId', ['event'], ({ event }) => went('ownerId', event.owner_id), { cost: 0 })
    .node('owner', ['ownerId'], ({ ownerId }) => went('owner', User.cache.getQuery({ id: ownerId })))
    .node('teamId', ['owner'], ({ owner }) => went('teamId', owner.team_id), { cost: 0 })
    .node('team', ['teamId'], ({ teamId }) => went('team', Team.cache.getQuery({ id: teamId })))
    .node('mates', ['teamId'], ({ teamId }) => went('mates', User.cache.filterQuery({ team_id: teamId })), {
      onNull: () => [],
    })
    .node('tagIds', ['eventId'], ({ eventId }) => went('tagIds', TagIds(eventId)))
    .node('tags', ['tagIds'], ({ tagIds }) =>
      went('tags', Promise.all(tagIds.map((id) => Tag.cache.getAsync({ id })))),
    )
  return { page, calls }
}

describe.each(Object.entries(PLACES))('on %s', (_place, openPortal) => {
  let portal: Portal
  beforeEach(async () => {
    portal = await openPortal()
  })
  afterEach(() => portal.close())

  async function open() {
    const declared = declarePage(portal)
    await portal.cache.install()
    return declared
  }

  const inScope = <Result>(fn: () => Promise<Result>) => runInLoop(fn)()

  test('the nodes of one level are one wave, and each is gone to once', async () => {
    const { page, calls } = await open()
    const read = () =>
      inScope(() => page.resolve({ eventSlug: 'event-1' }, ['owner', 'tags', 'team', 'mates']))
    // Wave 2: the owner and the ids of the tags. Wave 3: team, mates and tags.
    const found = await expectTrips(portal.cache, { mget: 3, acquire: 3, fill: 3, select: 5, load: 1 }, read)
    expect(found).toMatchObject({
      owner: { id: 1 },
      tags: [{ id: 1 }, { id: 2 }],
      team: { id: 1 },
      mates: [{ id: 1 }, { id: 2 }],
    })
    expect([...calls].sort()).toEqual(
      ['event', 'eventId', 'mates', 'owner', 'ownerId', 'tagIds', 'tags', 'team', 'teamId'].sort(),
    )
    expect(await expectTrips(portal.cache, { mget: 3 }, read)).toEqual(found)
  })

  test('other things given, other ways', async () => {
    const { page, calls } = await open()
    const both = { eventId: 1, eventSlug: 'event-1' }
    expect(await inScope(() => page.resolve(both, ['tagIds', 'eventSlug']))).toEqual({
      tagIds: [1, 2],
      eventSlug: 'event-1',
    })
    expect(calls.splice(0)).toEqual(['tagIds'])
    await inScope(() => page.resolve({ eventId: 1 }, ['event', 'tagIds']))
    expect(calls.splice(0)).toEqual(['event', 'tagIds'])
    // A node that the caller has is not gone to.
    const { event } = await page.resolve({ eventId: 1 }, ['event'])
    calls.splice(0)
    await expectTrips(portal.cache, { ...COLD, select: 1 }, () => page.resolve({ event }, ['owner']))
    expect(calls.splice(0)).toEqual(['ownerId', 'owner'])
  })

  test('several plans of one tick share their waves and, in a scope, their lookups', async () => {
    const { page } = await open()
    const read = () =>
      inScope(() =>
        Promise.all([
          ...[1, 2, 3].map((eventId) => page.resolve({ eventId }, ['owner'])),
          page.resolve({ eventId: 1 }, ['owner']),
        ]),
      )
    const found = await expectTrips(portal.cache, { mget: 2, acquire: 2, fill: 2, select: 2 }, read)
    expect(found.map(({ owner }) => owner?.id)).toEqual([1, 2, 3, 1])
    expect(found[3]?.owner).toBe(found[0]?.owner)
  })

  test('a node whose input is null is null, or what its way says; nothing is looked up for it', async () => {
    const { page, calls } = await open()
    const wanted = ['owner', 'team', 'mates'] as const
    // Event 4 has no owner.
    expect(
      await expectTrips(portal.cache, { ...COLD, select: 1 }, () => page.resolve({ eventId: 4 }, wanted)),
    ).toEqual({ owner: null, team: null, mates: [] })
    expect(calls).toEqual(['event', 'ownerId'])
    expect(await expectTrips(portal.cache, {}, () => page.resolve({ ownerId: null }, wanted))).toEqual({
      owner: null,
      team: null,
      mates: [],
    })
  })

  test('a way that fails fails the plan with its own error; what follows is not looked up', async () => {
    const { page, calls } = await open()
    const failing = page.resolve({ eventSlug: 'none' }, ['owner', 'tags'])
    await expect(failing).rejects.toBeInstanceOf(NotFoundError)
    expect(calls).toEqual(['event'])
    const thrown = new RangeError('mine')
    const throwing = page
      .node('odd', ['eventId'], (): number => {
        throw thrown
      })
      .resolve({ eventId: 404 }, ['event', 'odd'])
    await expect(throwing).rejects.toBe(thrown)
  })
})

describe('a plan', () => {
  let portal: Portal
  beforeEach(async () => {
    portal = await (PLACES['in-process store and PGlite'] as () => Promise<Portal>)()
    return () => portal.close()
  })

  test('explains itself', () => {
    const { page } = declarePage(portal)
    expect(page.explain(['eventSlug'], ['owner', 'tags', 'mates'])).toBe(
      [
        'owner, tags, mates from eventSlug: 3 waves, 5 lookups',
        '  wave 1  event ← eventSlug (way 1 of 2)',
        '  then    eventId ← event',
        '          ownerId ← event',
        '  wave 2  owner ← ownerId',
        '          tagIds ← eventId',
        '  then    teamId ← owner',
        '  wave 3  mates ← teamId',
        '          tags ← tagIds',
      ].join('\n'),
    )
    expect(page.explain(['ownerId'], ['owner'])).toBe(
      'owner from ownerId: 1 wave, 1 lookup\n  wave 1  owner ← ownerId',
    )
    expect(page.explain(['owner'], ['owner'])).toBe('owner from owner: 0 waves, 0 lookups')
  })

  test('says what cannot be reached, and what would help, before it looks anything up', async () => {
    const { page } = declarePage(portal)
    const { error } = await page.resolve({ ownerId: 1 }, ['owner', 'tags', 'event']).then(
      () => ({ error: undefined }),
      (error: unknown) => ({ error }),
    )
    expect(error).toBeInstanceOf(PlanError)
    expect(error).toMatchObject({
      code: 'ERR_PLAN',
      given: ['ownerId'],
      unreachable: [
        { node: 'tags', missing: [['eventSlug']] },
        { node: 'event', missing: [['eventSlug']] },
      ],
    })
    expect(portal.cache.stats().lookups).toBe(0)
  })

  test('says so for two parameters, other names, and cycles', () => {
    const plan = portal.cache
      .plan<{ a: number; b: number; c: number; m: number; n: number }>()
      .node('sum', ['a', 'b'], ({ a, b }) => a + b)
      .way('sum', ['c'], ({ c }) => c)
      .node('twice', ['sum'], ({ sum }) => 2 * sum)
      .way('m', ['n'], ({ n }) => n)
      .way('n', ['m'], ({ m }) => m)
    expect(() => plan.explain(['a'], ['twice'])).toThrow(
      "plan: 'twice' cannot be reached from a: give b, or c",
    )
    expect(() => plan.explain([], ['twice'])).toThrow('from nothing: give c, or a and b')
    expect(() => plan.explain(['a'], ['m'])).toThrow("'m' cannot be reached: all its ways come from itself")
    expect(() => plan.explain([], ['nope' as 'm'])).toThrow(/there is no node 'nope', there are sum, a, b, c/)
    expect(plan.explain(['n'], ['m'])).toContain('m ← n')
  })

  test('takes fewer waves before fewer lookups, then the lower cost', () => {
    const plan = portal.cache
      .plan<{ p: number }>()
      .node('a', ['p'], ({ p }) => p)
      .node('b', ['a'], ({ a }) => a)
      .way('b', ['p'], ({ p }) => p, { cost: 5 })
      .node('c', ['p'], ({ p }) => p, { cost: 3 })
      .way('c', ['p'], ({ p }) => p, { cost: 2 })
    expect(plan.explain(['p'], ['b'])).toContain('1 wave, 5 lookups')
    expect(plan.explain(['p'], ['a', 'c'])).toContain('c ← p (way 2 of 2)')
  })

  test('takes a dearer way where its inputs are needed anyway', () => {
    const plan = portal.cache
      .plan<{ p: number }>()
      .node('a', ['p'], ({ p }) => p, { cost: 3 })
      .node('helper', ['p'], ({ p }) => p)
      .node('b', ['helper'], ({ helper }) => helper)
      .way('b', ['a'], ({ a }) => a)
    expect(plan.explain(['p'], ['b'])).toContain('b ← helper')
    expect(plan.explain(['p'], ['a', 'b'])).toContain('b ← a')
  })

  test('is not changed by what is added to it', async () => {
    const base = portal.cache.plan<{ p: number }>().node('a', ['p'], ({ p }) => p + 1)
    const more = base.node('b', ['a'], ({ a }) => a + 1)
    expect(await more.resolve({ p: 1 }, ['b', 'p'])).toEqual({ b: 3, p: 1 })
    expect(() => base.explain(['p'], ['b' as 'a'])).toThrow(PlanError)
  })

  test('needs no parameters', async () => {
    const plan = portal.cache.plan().node('one', [], () => 1)
    expect(await plan.resolve({}, ['one'])).toEqual({ one: 1 })
    expect(plan.explain([], ['one'])).toContain('wave 1  one ← nothing')
  })

  test('leaves names alone that it does not know, and what is undefined', async () => {
    const { page } = declarePage(portal)
    await portal.cache.install()
    const given = { eventId: 1, eventSlug: undefined, utm: 'x' }
    expect((await page.resolve(given, ['event'])).event).toMatchObject({ id: 1 })
  })

  test('that is declared wrongly is refused at once, by name', () => {
    const plan = portal.cache.plan<{ p: number }>().node('a', ['p'], ({ p }) => p)
    const bad = (...args: unknown[]) =>
      expect(() => (plan.node as (...args: unknown[]) => void).apply(plan, args))
    bad('', ['p'], () => 1).toThrow(OptionError)
    bad('a', ['p'], () => 1).toThrow(/'node' must be a name that has no way yet/)
    bad('b', 'p', () => 1).toThrow(/'b.inputs'/)
    bad('b', ['b'], () => 1).toThrow(/'b.inputs' must be without the node itself/)
    bad('b', ['p'], 1).toThrow(/'b.way' must be a function/)
    bad('b', ['p'], () => 1, { cost: -1 }).toThrow(/'b.cost'/)
    bad('b', ['p'], () => 1, { onNull: [] }).toThrow(/'b.onNull'/)
    bad('b', ['p'], () => 1, { price: 1 }).toThrow(/'b.price' must be left out/)
  })

  test('is typed node by node', () => {
    const { page } = declarePage(portal)
    const resolve = () => page.resolve({ eventSlug: 'x' }, ['event', 'owner', 'mates', 'tagIds'])
    type Found = Awaited<ReturnType<typeof resolve>>
    expectTypeOf<keyof Found>().toEqualTypeOf<'event' | 'owner' | 'mates' | 'tagIds'>()
    expectTypeOf<Found['event']['slug']>().toEqualTypeOf<string>()
    expectTypeOf<null>().toExtend<Found['owner']>()
    expectTypeOf<Found['mates'][number]['email']>().toEqualTypeOf<string>()
    expectTypeOf<Found['tagIds']>().toEqualTypeOf<number[] | null>()
    const declare = () => {
      // @ts-expect-error no such node
      void page.resolve({ eventId: 1 }, ['nope'])
      // @ts-expect-error a text is no id
      void page.resolve({ eventId: '1' }, ['event'])
      // @ts-expect-error declared already
      page.node('event', ['eventId'], () => 1)
      // @ts-expect-error another type than the first way gives
      page.way('event', ['eventId'], () => 1)
      // @ts-expect-error ownerId may be null, event may not
      page.way('event', ['ownerId'], () => portal.models.Event.cache.getQuery({ id: 1 }))
      page.way('event', ['ownerId'], () => portal.models.Event.cache.getQuery({ id: 1 }), {
        onNull: () => ({ id: 0, slug: '', title: '', owner_id: null }),
      })
    }
    expect(declare).toBeTypeOf('function')
  })
})
