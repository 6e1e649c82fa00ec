import type { Program } from './machine.ts'
import type { Property } from './properties.ts'
import type { Write } from './rows.ts'
import type { Scenario } from './scenario.ts'
import type { Faults } from './world.ts'

export interface Named extends Scenario {
  readonly name: string
}

const RELAY: Program = { name: 'relay', callers: [[{ relay: true }]] }
const once: Program['callers'][number] = [{ read: ['A'] }]
const twice: Program['callers'][number] = [{ read: ['A'] }, { read: ['A'] }]
const R1: Program = { name: 'R1', callers: [twice] }
const R2: Program = { name: 'R2', callers: [once] }
const W1: Program = { name: 'W1', callers: [[{ write: 0 }]] }
const W2: Program = { name: 'W2', callers: [[{ write: 1 }]] }

/** W1 adds a row to list A, W2 takes another one away. */
const LIST: Pick<Scenario, 'keys' | 'initial' | 'writes'> = {
  keys: ['A'],
  initial: [{ id: 9, list: 'A' }],
  writes: [{ insert: { id: 1, list: 'A' } }, { remove: 9 }],
}
const ONE_WRITE = { ...LIST, writes: LIST.writes.slice(0, 1) }

export const TWO_AND_TWO = { ...LIST, programs: [R1, R2, W1, W2, RELAY] }
export const ONE_READER = { ...LIST, programs: [R1, W1, W2, RELAY] }
export const ONE_WRITER = { ...ONE_WRITE, programs: [R1, R2, W1, RELAY] }
export const ONE_AND_ONE = { ...ONE_WRITE, programs: [R1, W1, RELAY] }

export const NEVER: Faults = {}
/** With everything that may happen while the store keeps what it has and the database is reached. */
const MILD: Faults = { rollback: 1, slow: true, crash: 1, unknown: 1, loss: 1 }

/** A read after a write call; lost messages may break it, until the relay has seen to it. */
export const DEFAULT: readonly Property[] = ['P3']
export const STRICT: readonly Property[] = ['P3', 'P3s']

export function named(name: string, faults: Faults, scenario: Omit<Scenario, 'faults'>): Named {
  return { name, faults, ...scenario }
}

export const withDefault = (promises = DEFAULT) => ({ level: 'default', promises }) as const
export const withStrict = (promises = STRICT) => ({ level: 'strict', promises }) as const

/** A row that moves from list A to list B, a new one in B, readers that ask for both lists in one wave. */
const RAB: Program = { name: 'R1', callers: [[{ read: ['A', 'B'] }]] }
const RB: Program = { name: 'R2', callers: [[{ read: ['B'] }]] }
const MOVES: readonly Write[] = [{ move: { id: 1, list: 'B' } }, { insert: { id: 2, list: 'B' } }]
const TWO_KEYS = {
  keys: ['A', 'B'],
  initial: [{ id: 1, list: 'A' }],
  writes: MOVES,
  programs: [RAB, RB, W1, W2, RELAY],
} satisfies Partial<Scenario>
const TWO_KEYS_ONE_READER = { ...TWO_KEYS, programs: [RAB, W1, W2, RELAY] }
const TWO_KEYS_ONE_WRITER = { ...TWO_KEYS, writes: MOVES.slice(0, 1), programs: [RAB, RB, W1, RELAY] }
const TWO_KEYS_ONE_AND_ONE = { ...TWO_KEYS, writes: MOVES.slice(0, 1), programs: [RAB, W1, RELAY] }

/** The row by its key beside its list: a wave of two statements, whose values are filled together or one by one. */
const RA1: Program = { name: 'R1', callers: [[{ read: ['A', '#1'] }]] }
const TWO_SHAPES = {
  keys: ['A', '#1'],
  initial: [{ id: 1, list: 'A' }],
  writes: MOVES.slice(0, 1),
  programs: [RA1, { name: 'R2', callers: [[{ read: ['#1'] }]] }, W1, RELAY],
} satisfies Partial<Scenario>
const TWO_SHAPES_ONE_AND_ONE = { ...TWO_SHAPES, programs: [RA1, W1, RELAY] }

const PP: Program = { name: 'P', callers: [once, once] }
/** Two requests of one process, which may join each other's loads, and a reader elsewhere. */
const ONE_PROCESS = {
  ...ONE_WRITE,
  programs: [{ name: 'P', callers: [twice, once] }, R2, W1, RELAY],
}
export const SMALL_PROCESS = { ...ONE_WRITE, programs: [PP, R2, W1, RELAY] }
const PROCESS_ALONE = { ...ONE_WRITE, programs: [PP, W1, RELAY] }

/** A row by its primary key, that is not there at first; the other write names no keys. */
const ONE_ROW = {
  keys: ['#1'],
  initial: [],
  writes: [{ insert: { id: 1, list: 'A' } }, { insert: { id: 2, list: 'A' }, bulk: true }],
  programs: [
    { name: 'R1', callers: [[{ read: ['#1'] }, { read: ['#1'] }]] },
    { name: 'R2', callers: [[{ read: ['#1'] }]] },
    W1,
    W2,
    RELAY,
  ],
} satisfies Partial<Scenario>

/** A request that writes and reads, and reads beside that. */
export const ONE_SCOPE = {
  ...LIST,
  programs: [
    {
      name: 'S',
      scope: true,
      callers: [
        [{ write: 0 }, { read: ['A'] }],
        [{ read: ['A'] }, { read: ['A'] }],
      ],
    },
    W2,
    RELAY,
  ],
} satisfies Partial<Scenario>

/** Lookups in a transaction, before its COMMIT. */
export const INSIDE = {
  ...ONE_WRITE,
  programs: [{ name: 'W1', callers: [[{ read: ['A'], inside: 0 }, { write: 0 }]] }, R1, RELAY],
} satisfies Partial<Scenario>

/** Every run of these keeps its promises. */
export const CONFIGURATIONS: readonly Named[] = [
  named('no faults', NEVER, { ...withDefault(), ...TWO_AND_TWO }),
  named('rollback', { rollback: 1 }, { ...withDefault(), ...TWO_AND_TWO }),
  named('leases run out', { slow: true }, { ...withDefault(), ...TWO_AND_TWO }),
  named('crash', { crash: 1 }, { ...withDefault(), ...TWO_AND_TWO }),
  named(
    'crash, relay too',
    { crash: 1, relayCrash: 1 },
    { ...withDefault(), ...ONE_READER, deletesLater: true },
  ),
  named('unknown outcome', { unknown: 1 }, { ...withDefault(), ...TWO_AND_TWO }),
  named('lost message', { loss: 1 }, { ...withDefault([]), ...TWO_AND_TWO }),
  named('SQL fails', { sqlError: 1 }, { ...withDefault(), ...ONE_READER }),
  named('flush, eviction', { flush: 1, evict: 1 }, { ...withDefault(), ...ONE_READER }),
  named('restart, empty', { restart: 1 }, { ...withDefault(), ...ONE_READER }),
  named('failover', { failover: 1 }, { ...withDefault(), ...ONE_READER }),
  named('failover', { failover: 1 }, { ...withDefault(), ...ONE_WRITER }),
  named('mild', MILD, { ...withDefault([]), ...ONE_READER }),
  named('two keys', NEVER, { ...withDefault(), ...TWO_KEYS_ONE_READER }),
  named('two keys', NEVER, { ...withDefault(), ...TWO_KEYS_ONE_WRITER }),
  named('two keys, lost message', { loss: 1 }, { ...withDefault([]), ...TWO_KEYS_ONE_AND_ONE }),
  named('two shapes', { slow: true }, { ...withDefault(), ...TWO_SHAPES }),
  named('one process', { slow: true }, { ...withDefault(), ...ONE_PROCESS }),
  named('one process, failover', { failover: 1 }, { ...withDefault(), ...PROCESS_ALONE }),
  named('one process, slow SQL', NEVER, { ...withDefault(), ...SMALL_PROCESS, slowSql: true }),
  named('a row, bulk write', { slow: true }, { ...withDefault(), ...ONE_ROW }),
  named('one scope', { rollback: 1, slow: true }, { ...withDefault(['P2']), ...ONE_SCOPE }),
  named('in a transaction', { rollback: 1 }, { ...withDefault(), ...INSIDE }),

  named('no faults', NEVER, { ...withStrict(), ...TWO_AND_TWO }),
  named('rollback', { rollback: 1 }, { ...withStrict(), ...ONE_READER }),
  named('leases run out', { slow: true }, { ...withStrict(), ...ONE_READER }),
  named('leases run out', { slow: true }, { ...withStrict(), ...ONE_WRITER }),
  named('crash', { crash: 1 }, { ...withStrict(), ...ONE_READER, deletesLater: true }),
  named('crash', { crash: 1 }, { ...withStrict(), ...ONE_WRITER }),
  named('unknown outcome', { unknown: 1 }, { ...withStrict(), ...ONE_READER }),
  named('unknown outcome', { unknown: 1 }, { ...withStrict(), ...ONE_WRITER }),
  named('lost message', { loss: 1 }, { ...withStrict(), ...ONE_READER }),
  named('lost message', { loss: 1 }, { ...withStrict(), ...ONE_WRITER }),
  named('intents run out early', { late: true }, { ...withStrict(['P3']), ...ONE_READER }),
  named('intents early, lost message', { late: true, loss: 1 }, { ...withStrict(['P3']), ...ONE_AND_ONE }),
  named('flush, eviction', { flush: 1, evict: 1 }, { ...withStrict(['P3']), ...ONE_READER }),
  named('restart, empty', { restart: 1 }, { ...withStrict(['P3']), ...ONE_READER }),
  named('restart, lost message', { restart: 1, loss: 1 }, { ...withStrict(['P3']), ...ONE_AND_ONE }),
  named('failover', { failover: 1 }, { ...withStrict(['P3']), ...ONE_READER }),
  named('failover, WAIT', { failover: 1 }, { ...withStrict(), ...ONE_AND_ONE, waitsForReplica: true }),
  named('two keys', NEVER, { ...withStrict(), ...TWO_KEYS_ONE_AND_ONE }),
  named('two shapes', NEVER, { ...withStrict(), ...TWO_SHAPES_ONE_AND_ONE }),
  named('one process', NEVER, { ...withStrict(), ...SMALL_PROCESS }),
  named('a row, bulk write', { slow: true }, { ...withStrict(), ...ONE_ROW }),
  named('goes on without the store', { loss: 1 }, { level: 'proceed', promises: DEFAULT, ...ONE_AND_ONE }),
]

/** Too large for every run: EXPLORE=deep. */
export const DEEP_CONFIGURATIONS: readonly Named[] = [
  named('mild', MILD, { ...withDefault([]), ...TWO_AND_TWO, deletesLater: true }),
  named(
    'crash, relay too',
    { crash: 1, relayCrash: 1 },
    { ...withDefault(), ...TWO_AND_TWO, deletesLater: true },
  ),
  named('two lost messages', { loss: 2 }, { ...withDefault([]), ...TWO_AND_TWO }),
  named('failover', { failover: 1 }, { ...withDefault(), ...TWO_AND_TWO }),
  named(
    'failover, crash, lost message',
    { failover: 1, crash: 1, loss: 1, slow: true },
    { ...withDefault([]), ...ONE_READER },
  ),
  named('two keys, crash', { crash: 1 }, { ...withDefault(), ...TWO_KEYS }),
  named('two looks', { slow: true }, { ...withDefault(), ...TWO_AND_TWO, looks: 2 }),
  named('rollback', { rollback: 1 }, { ...withStrict(), ...TWO_AND_TWO }),
  named('crash', { crash: 1 }, { ...withStrict(), ...TWO_AND_TWO, deletesLater: true }),
  named('unknown outcome', { unknown: 1 }, { ...withStrict(), ...TWO_AND_TWO }),
  named('lost message', { loss: 1 }, { ...withStrict(), ...TWO_AND_TWO }),
  named('mild', MILD, { ...withStrict(), ...ONE_READER }),
  named('mild', MILD, { ...withStrict(), ...ONE_WRITER }),
  named('flush', { flush: 1 }, { ...withStrict(['P3']), ...TWO_AND_TWO }),
  named('restart, empty', { restart: 1 }, { ...withStrict(['P3']), ...TWO_AND_TWO }),
  named('failover', { failover: 1 }, { ...withStrict(['P3']), ...TWO_AND_TWO }),
  named('failover, WAIT', { failover: 1 }, { ...withStrict(), ...TWO_AND_TWO, waitsForReplica: true }),
  named('failover, WAIT', { failover: 1 }, { ...withStrict(), ...ONE_WRITER, waitsForReplica: true }),
  named('two keys', NEVER, { ...withStrict(), ...TWO_KEYS }),
  named('two keys, lost message', { loss: 1 }, { ...withStrict(), ...TWO_KEYS_ONE_WRITER }),
  named('two shapes', NEVER, { ...withStrict(), ...TWO_SHAPES }),
  named('one process', { slow: true }, { ...withStrict(), ...ONE_PROCESS }),
  named('one process, lost message', { loss: 1 }, { ...withStrict(), ...SMALL_PROCESS }),
  named('one process, slow SQL', { slow: true }, { ...withStrict(), ...ONE_PROCESS, slowSql: true }),
  named('one process, failover', { failover: 1 }, { ...withDefault(), ...SMALL_PROCESS, slowSql: true }),
]
