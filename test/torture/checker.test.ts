import { describe, expect, test } from 'vitest'
import { check } from './checker.ts'
import type { FaultWindow } from './faults.ts'
import { tell } from './history.ts'
import type { Note, Outcome, Seen } from './journal.ts'
import { narrate } from './narrate.ts'
import { SEED, type Written } from './tables.ts'
import type { ModelName } from './things.ts'

/** Histories by hand. Times are ms; the row 1 is there from the start, in group 1, as v1. */
class Story {
  readonly #notes = new Map<string, Note[]>()
  readonly #written: Written[]
  readonly #faults: FaultWindow[] = []
  readonly #model: ModelName

  constructor(model: ModelName = 'relaxed') {
    this.#model = model
    this.#written = [this.#version(1, SEED, 1)]
  }

  /** A write that moves the row to a group, or deletes it. */
  write(
    version: number,
    [from, to]: readonly [number, number],
    {
      op = 'w1.1#1',
      grp = 1,
      outcome = 'ok',
      committed = true,
      deferred = false,
    }: {
      op?: string
      grp?: number | null
      outcome?: Outcome | 'killed'
      committed?: boolean
      deferred?: boolean
    } = {},
  ): this {
    this.#note(op, { t: 'begin', op, at: from, what: 'write' })
    if (outcome !== 'killed') {
      this.#note(op, { t: 'end', op, at: to, outcome, rows: 1, ...(deferred && { deferred: true }) })
    }
    if (committed) this.#written.push(this.#version(version, op, grp))
    return this
  }

  read(who: string, key: string, [from, to]: readonly [number, number], ...seen: Seen[]): this {
    return this.#note(who, { t: 'read', key: `${this.#model} ${key}`, from, to, seen })
  }

  fault(kind: string, [from, to]: readonly [number, number]): this {
    this.#faults.push({ kind, what: kind, worker: undefined, from, to })
    return this
  }

  get verdict(): string[] {
    const history = this.#history()
    return check(history).violations.map(({ promise }) => promise)
  }

  tell(): string {
    const history = this.#history()
    return check(history)
      .violations.map((each) => narrate(history, each))
      .join('\n')
  }

  #history() {
    const processes = [...this.#notes].map(([who, notes]) => ({ who, notes }))
    return tell(0, processes, this.#written, this.#faults)
  }

  #note(who: string, note: Note): this {
    const name = who.replace(/#.*/, '')
    this.#notes.set(name, [...(this.#notes.get(name) ?? []), note])
    return this
  }

  #version(version: number, op: string, grp: number | null): Written {
    const thing = grp === null ? null : { id: 1, slug: 's1', grp, kind: 'a', version, tag: op }
    return { model: this.#model, id: 1, version, xid: `${version}`, op, thing }
  }
}

const RETURNED = 'a read that begins after a write returned sees it, or newer'
const LINEAR = 'of a strict model, nobody sees the new and then the old'
const RELAYED = "what anybody has seen, all see within the relay's time"
const UNCOMMITTED = 'uncommitted data is never seen'
const OLD: Seen = [1, 1, SEED]
const NEW: Seen = [1, 2, 'w1.1#1']

describe('a write that has returned', () => {
  test('must be seen by a read that begins then', () => {
    expect(new Story().write(2, [10, 20]).read('w2.1', 'id=1', [21, 22], OLD).verdict).toEqual([RETURNED])
    expect(new Story().write(2, [10, 20]).read('w2.1', 'id=1', [21, 22], NEW).verdict).toEqual([])
  })

  test('need not be seen by one that began before', () => {
    expect(new Story().write(2, [10, 20]).read('w2.1', 'id=1', [19, 30], OLD).verdict).toEqual([])
  })

  test('must be seen to have left a list, and to have come into another', () => {
    const story = () => new Story().write(2, [10, 20], { grp: 2 })
    expect(story().read('w2.1', 'grp=1', [21, 22], OLD).verdict).toEqual([RETURNED])
    expect(story().read('w2.1', 'grp=1', [21, 22]).verdict).toEqual([])
    expect(story().read('w2.1', 'grp=2', [21, 22]).verdict).toEqual([RETURNED])
    expect(story().read('w2.1', 'grp=2', [21, 22], NEW).verdict).toEqual([])
  })

  test('does not speak for lists that it did not touch', () => {
    const story = new Story().write(2, [10, 50], { grp: 2 }).write(3, [15, 20], { op: 'w2.1#1', grp: 3 })
    // v2, which takes it out of group 1, has not returned yet.
    expect(story.read('w3.1', 'grp=1', [21, 22], OLD).verdict).toEqual([])
  })

  test('may be followed by one that has not returned', () => {
    const story = new Story().write(2, [10, 20]).write(3, [21, 40], { op: 'w2.1#1', grp: null })
    expect(story.read('w3.1', 'id=1', [25, 30]).verdict).toEqual([])
  })

  test('need not be seen at once when its clear was deferred, but after the time of the relay', () => {
    const story = () => new Story().write(2, [10, 20], { deferred: true })
    expect(story().read('w2.1', 'id=1', [21, 22], OLD).verdict).toEqual([])
    expect(story().read('w2.1', 'id=1', [9000, 9001], OLD).verdict).toEqual([RELAYED])
    expect(
      story().fault('redis-pause', [1000, 8000]).read('w2.1', 'id=1', [9000, 9001], OLD).verdict,
    ).toEqual([])
  })

  test('must be seen of a strict model even when its clear was deferred, unless Redis forgot its intents', () => {
    const story = () =>
      new Story('strict').write(2, [10, 20], { deferred: true }).read('w2.1', 'id=1', [21, 22], OLD)
    expect(story().verdict).toEqual([RETURNED])
    expect(story().fault('redis-flush', [12, 13]).verdict).toEqual([])
  })
})

describe('a version that somebody has seen', () => {
  const seenByOne = (model: ModelName, op = 'w1.1#1') =>
    new Story(model)
      .write(2, [10, 100], { op })
      .read('w2.1', 'id=1', [30, 40], [1, 2, op])
      .read('w3.1', 'id=1', [41, 42], OLD)

  test('must be seen by all, of a strict model', () => {
    expect(seenByOne('strict').verdict).toEqual([LINEAR])
    expect(seenByOne('relaxed').verdict).toEqual([])
  })

  test('need not be when Redis forgot its intents, or when psql wrote it', () => {
    expect(seenByOne('strict').fault('redis-restart', [20, 25]).verdict).toEqual([])
    expect(seenByOne('strict', 'psql#1').verdict).toEqual([])
  })

  test('of a killed writer must be seen by all in the end', () => {
    const story = new Story().write(2, [10, 0], { outcome: 'killed' }).read('w2.1', 'id=1', [30, 40], NEW)
    expect(story.read('w3.1', 'id=1', [9000, 9001], OLD).verdict).toEqual([RELAYED])
  })
})

describe('what was never committed', () => {
  test('must not be seen', () => {
    const story = new Story().write(2, [10, 20], { outcome: 'undone', committed: false })
    expect(story.read('w2.1', 'id=1', [15, 16], [1, 2, 'w1.1#1!']).verdict).toEqual([UNCOMMITTED])
  })

  test('must not be seen where another version has its number', () => {
    const story = new Story().write(2, [10, 20])
    expect(story.read('w2.1', 'id=1', [15, 16], [1, 2, 'w9.1#1']).verdict).toEqual([UNCOMMITTED])
  })

  test('nor what is committed later', () => {
    const story = new Story().write(2, [10, 20])
    expect(story.read('w2.1', 'id=1', [5, 9], NEW).verdict).toEqual([UNCOMMITTED])
  })
})

describe('what a call tells of its write', () => {
  test('must be true', () => {
    expect(new Story().write(2, [10, 20], { outcome: 'undone' }).verdict).toEqual([
      'a write that rejects was rolled back',
    ])
    expect(new Story().write(2, [10, 20], { committed: false }).verdict).toEqual([
      'a write that resolves was committed',
    ])
    expect(new Story().write(2, [10, 20], { outcome: 'unknown' }).verdict).toEqual([])
    expect(new Story().write(2, [10, 20], { outcome: 'unknown', committed: false }).verdict).toEqual([])
  })
})

test('the history of a violation tells what happened to the key, in the order of time', () => {
  const story = new Story().write(2, [10, 20]).fault('redis-flush', [12, 13])
  expect(story.read('w2.1', 'id=1', [21, 22], OLD).tell().split('\n')).toEqual([
    `VIOLATED: ${RETURNED}`,
    '  w2.1 saw v1 of relaxed 1 under relaxed id=1, and v2 by w1.1#1 was known',
    '  history of relaxed 1 under relaxed id=1; s since the start',
    '     0.0000  seed   seed begins: seed',
    "     0.0000  seed   seed returned 'ok': v1 grp=1 kind=a slug=s1",
    '     0.0100  w1.1   w1.1#1 begins: write',
    '     0.0120  faults redis-flush',
    '     0.0130  faults over: redis-flush',
    "     0.0200  w1.1   w1.1#1 returned 'ok': v2 grp=1 kind=a slug=s1",
    '     0.0220  w2.1   read, begun 0.0010 s ago: v1 by seed   <<<<',
  ])
})
