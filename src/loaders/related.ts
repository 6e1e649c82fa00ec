import { ModelError, OptionError } from '../errors.ts'
import { type Step, stepValues } from '../models/relation.ts'
import type { Shape } from '../models/shape.ts'
import { type Ask, type Asking, together } from './asking.ts'
import type { Reader } from './reader.ts'

type Row = Readonly<Record<string, unknown>>

/** A relation whose models have been found. */
export interface Related {
  readonly name: string
  /** The model it is declared on. */
  readonly model: string
  readonly first: FoundStep
  /** What leads on from the rows of a table in between. */
  readonly second: FoundStep | undefined
}

interface FoundStep extends Step {
  readonly reader: Reader
  readonly shape: () => Shape
}

/** The relations of one model. */
export class RelatedModels {
  readonly #reader: Reader
  readonly #found = new Map<string, Related>()

  constructor(reader: Reader) {
    this.#reader = reader
  }

  /**
   * @param option that named it
   * @throws OptionError for a relation that is not declared, ModelError when the other model cannot be looked up by it
   */
  find(option: string, name: unknown): Related {
    const known = this.#found.get(name as string)
    if (known) return known
    const { name: model, relations } = this.#reader.definition
    const relation = relations.get(name as string)
    if (!relation) {
      const declared = [...relations.keys()].join(', ') || 'none is declared'
      throw new OptionError(option, `made of the relations of model '${model}' (${declared})`, name)
    }
    const [first, second] = relation.steps
    const related = {
      name: relation.name,
      model,
      first: this.#findStep(relation.name, first, second),
      second: second && this.#findStep(relation.name, second, undefined),
    }
    this.#found.set(relation.name, related)
    return related
  }

  /** @param next what has to be in its rows */
  #findStep(relation: string, step: Step, next: Step | undefined): FoundStep {
    const { name } = this.#reader.definition
    const { table, kind, fields } = step
    const reader = this.#reader.parts.readers.get(table)
    const targets = fields.map(([, to]) => to)
    const list = kind === 'key' ? 'keyFields' : 'filterFields'
    const shown = `[${targets.map((field) => `'${field}'`).join(', ')}]`
    const problem = (text: string) => new ModelError(name, `relation '${relation}': ${text}`)
    if (!reader)
      throw problem(
        `table '${table}' has no model in this cache; declare cache.model('${table}', { ... }) with ${list} ${shown}`,
      )
    const { definition } = reader
    const { columns } = definition
    const isWhole = columns === undefined || next?.fields.every(([from]) => columns.includes(from))
    if (!isWhole)
      throw problem(`model '${table}' has only the columns ${columns.join(', ')}; declare it without columns`)
    const shape = (kind === 'key' ? definition.keyShapes : definition.filterShapes).find(
      (each) => each.asked.length === targets.length && each.asked.every((field) => targets.includes(field)),
    )
    if (!shape) throw problem(`model '${table}' has no ${list} ${shown}; add them to its ${list}`)
    return { ...step, reader, shape: () => shape }
  }
}

/** What a lookup finds, each row of it as a new object that has its relations too. */
export function* withRelations(parent: Ask, relations: readonly Related[]): Asking<unknown> {
  const [found, columns] = yield* together<unknown>([
    askedFor(parent),
    together(relations.map((relation) => relatedOfFound(parent, relation))),
  ]) as Asking<[unknown, unknown[][]]>
  const rows = rowsOf(found).map((row, i) => {
    const whole: Record<string, unknown> = { ...row }
    relations.forEach(({ name }, n) => {
      whole[name] = columns[n]?.[i]
    })
    return whole
  })
  return Array.isArray(found) ? rows : (rows[0] ?? null)
}

function* askedFor(ask: Ask): Asking<unknown> {
  const [answer] = yield [ask]
  return answer
}

/** A relation of every row that the lookup finds. */
function* relatedOfFound(parent: Ask, relation: Related): Asking<unknown[]> {
  const { first, name, model } = relation
  const values = knownValues(parent, first)
  const early = values && { values, ask: askFor(first, values) }
  const [found, answer] = yield early ? [parent, early.ask] : [parent]
  const rows = rowsOf(found)
  if (rows[0] && Object.hasOwn(rows[0], name))
    throw new ModelError(model, `relation '${name}' is named as a column is; give it another name`)
  return yield* together(
    rows.map((row) => relatedOf(row, relation, early && { values: early.values, answer })),
  )
}

/** The values that a step starts from, as far as the lookup's own key tells them before there is a row. */
function knownValues({ reader, values }: Ask, { fields }: Step): Row | undefined {
  const { normalize } = reader.definition
  const given = values as Row
  const known: Record<string, unknown> = {}
  for (const [from, to] of fields) {
    const value = given[from]
    if (value === undefined || value === null || normalize[from]) return undefined
    known[to] = value
  }
  return known
}

/**
 * A relation of a row: a row or null, or rows.
 *
 * @param early an answer that was asked for before the row was there
 */
export function* relatedOf(
  row: Row,
  { name, model, first, second }: Related,
  early?: { readonly values: Row; readonly answer: unknown },
): Asking<unknown> {
  const values = stepValues(model, name, first, row)
  if (!values) return first.kind === 'key' ? null : []
  // The row may have the value in another form than the key that found it, and that form may be another key elsewhere.
  const isEarly = early && first.fields.every(([, to]) => early.values[to] === values[to])
  const [found] = isEarly ? [early.answer] : yield [askFor(first, values)]
  if (!second) return found
  const asks = rowsOf(found).flatMap((link) => {
    const next = stepValues(second.reader.definition.name, name, second, link)
    return next ? [askFor(second, next)] : []
  })
  const targets = asks.length > 0 ? yield asks : []
  return targets.filter((target) => target !== null)
}

function askFor({ reader, shape }: FoundStep, values: object): Ask {
  return { reader, shape, values, onAbsent: 'null' }
}

function rowsOf(found: unknown): readonly Row[] {
  if (found === null || found === undefined) return []
  return Array.isArray(found) ? found : [found as Row]
}
