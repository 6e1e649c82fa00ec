import type { ColumnInfo, TableInfo } from '../../src/models/column.ts'
import { type BoundModel, bindModel, defineModel } from '../../src/models/model.ts'
import type { Shape } from '../../src/models/shape.ts'
import type { Target } from '../../src/models/target.ts'
import type { OutboxRow } from '../../src/models/touched.ts'

export const NAMESPACE = 'explore'

/** A row of the one table there is. */
export interface Item {
  readonly id: number
  readonly list: string
}

/**
 * What a transaction writes. Each has a row of its own, so transactions never wait for each other, commit in any
 * order, and each can be told in an answer by whether its row is there.
 */
export type Write = ({ readonly insert: Item } | { readonly move: Item } | { readonly remove: number }) & {
  /** The trigger gave up listing keys: the whole model is touched. */
  readonly bulk?: true
}

/** `A`: the rows of list A. `#1`: the row with id 1. */
export type KeyName = string

export type Answer = readonly Item[] | Item | null

const column = (name: string, type: string): ColumnInfo => ({
  field: name,
  name,
  type,
  sqlType: type,
  labels: undefined,
  deterministic: true,
  nullable: false,
})

const COLUMNS = [column('id', 'int4'), column('list', 'text')]

const TABLE: TableInfo = {
  schema: 'public',
  name: 'items',
  columns: COLUMNS,
  byField: new Map(COLUMNS.map((each) => [each.field, each])),
  dates: { date: 'none', timestamp: 'none' },
}

const DEFINITION = defineModel('items', { keyFields: [['id']], filterFields: [['list']] })

export const ITEMS: BoundModel = bindModel(NAMESPACE, DEFINITION, TABLE, 1, [])

/** The shape and values of a lookup for `key`. */
export function lookupOf(key: KeyName): { shape: Shape; values: Readonly<Record<string, unknown>> } {
  return key.startsWith('#')
    ? { shape: DEFINITION.keyShapes[0] as Shape, values: { id: Number(key.slice(1)) } }
    : { shape: DEFINITION.filterShapes[0] as Shape, values: { list: key } }
}

export function targetOf(key: KeyName): Target {
  return ITEMS.targets.get(lookupOf(key).shape) as Target
}

export function addressOf(key: KeyName) {
  return targetOf(key).addressOf(lookupOf(key).values)
}

/** The table under every set of committed writes. Sets are bit masks: bit `w` for write `w`. */
export class Table {
  readonly writes: readonly Write[]
  readonly #initial: readonly Item[]
  readonly #answers = new Map<string, Answer>()
  /** Per key, which of the writes that concern it an answer shows. */
  readonly #shown = new Map<KeyName, ReadonlyMap<string, number>>()

  constructor(initial: readonly Item[], writes: readonly Write[]) {
    this.#initial = initial.map((row) => Object.freeze({ ...row }))
    this.writes = writes
  }

  /** What SQL answers for `key` when `committed` are visible. */
  answer(key: KeyName, committed: number): Answer {
    const name = `${key} ${committed}`
    let answer = this.#answers.get(name)
    if (answer === undefined) {
      const rows = this.#rows(committed)
      answer = key.startsWith('#')
        ? (rows.find(({ id }) => `#${id}` === key) ?? null)
        : rows.filter(({ list }) => list === key)
      this.#answers.set(name, answer)
    }
    return answer
  }

  /** The writes that change what SQL answers for `key`. */
  concerning(key: KeyName): number {
    const before = JSON.stringify(this.answer(key, 0))
    return this.writes.reduce(
      (mask, _, w) => (JSON.stringify(this.answer(key, 1 << w)) === before ? mask : mask | (1 << w)),
      0,
    )
  }

  /** Which of the writes that concern `key` an answer shows; undefined: the table never looked like that. */
  shownBy(key: KeyName, answer: unknown): number | undefined {
    let shown = this.#shown.get(key)
    if (!shown) {
      shown = this.#waysToShow(key)
      this.#shown.set(key, shown)
    }
    return shown.get(JSON.stringify(answer))
  }

  /** What the trigger writes into the outbox. */
  outboxRow(w: number): OutboxRow {
    const write = this.writes[w] as Write
    const { columns, shapes } = {
      columns: COLUMNS.map(({ name, type }) => [name, type] as const),
      shapes: DEFINITION.shapes.map(
        ({ name, fields }) =>
          [name, ...fields.map((field) => COLUMNS.findIndex((each) => each.field === field))] as const,
      ),
    }
    const images = [this.#rowOf(write, 0), this.#rowOf(write, 1 << w)].filter((row) => row !== undefined)
    const rows = images.map(({ id, list }) => [String(id), list])
    const touched = write.bulk ? null : { columns, shapes, rows }
    return { namespace: NAMESPACE, xid: String(w), id: String(w), model: DEFINITION.name, touched }
  }

  #rowOf(write: Write, committed: number): Item | undefined {
    const id = 'insert' in write ? write.insert.id : 'move' in write ? write.move.id : write.remove
    return this.#rows(committed).find((row) => row.id === id)
  }

  #rows(committed: number): Item[] {
    const rows = new Map(this.#initial.map((row) => [row.id, row]))
    this.writes.forEach((write, w) => {
      if (!(committed & (1 << w))) return
      if ('insert' in write) rows.set(write.insert.id, Object.freeze(write.insert))
      else if ('move' in write) rows.set(write.move.id, Object.freeze(write.move))
      else rows.delete(write.remove)
    })
    return [...rows.values()].sort((a, b) => a.id - b.id)
  }

  #waysToShow(key: KeyName): ReadonlyMap<string, number> {
    const concerning = this.concerning(key)
    const answers = new Map<string, number>()
    for (let mask = 0; mask < 1 << this.writes.length; mask++) {
      if (mask & ~concerning) continue
      const text = JSON.stringify(this.answer(key, mask))
      if (answers.has(text)) throw new Error(`two states of the table look the same through ${key}: ${text}`)
      answers.set(text, mask)
    }
    return answers
  }
}
