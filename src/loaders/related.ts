import { ModelError, OptionError } from '../errors.ts'
import { type Step, stepValues } from '../models/relation.ts'
import type { Shape } from '../models/shape.ts'
import { type Ask, type Asking, resumed, together } from './asking.ts'
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
  /** Looks up the rows at its end. */
  readonly target: Reader
}

/** The relations that rows are to come with, each with those that its own rows are to come with. */
export interface Wanted extends ReadonlyMap<Related, Wanted> {}

type WantedTree = Map<Related, WantedTree>

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
    const [step, next] = relation.steps
    const first = this.#findStep(relation.name, step, next)
    const second = next && this.#findStep(relation.name, next, undefined)
    const related = { name: relation.name, model, first, second, target: (second ?? first).reader }
    this.#found.set(relation.name, related)
    return related
  }

  /**
   * Finds the relations that a list names, `['team']`, and those of their own rows, `[{ team: ['org'] }]`. One that is
   * named twice has what both ask for.
   *
   * @param option that is the list
   * @throws OptionError for what is no such list, or a relation that is not declared; ModelError as `find`
   */
  wanted(option: string, list: unknown): Wanted {
    return this.#addWanted(option, list, new Map())
  }

  #addWanted(option: string, list: unknown, wanted: WantedTree): WantedTree {
    if (!Array.isArray(list))
      throw new OptionError(option, "a list of relations, such as ['team'] or [{ team: ['org'] }]", list)
    for (const item of list) {
      const isNesting = typeof item === 'object' && item !== null
      for (const [name, nested] of isNesting ? Object.entries(item) : [[item, []]]) {
        const relation = this.find(option, name)
        const more = wanted.get(relation) ?? new Map()
        wanted.set(relation, relation.target.related.#addWanted(`${option}.${name}`, nested, more))
      }
    }
    return wanted
  }

  /** @throws ModelError when one of the relations does not lead to a model that can be looked up by it */
  findAll(): void {
    for (const name of this.#reader.definition.relations.keys()) this.find('relations', name)
  }

  /** @param next what has to be in its rows */
  #findStep(relation: string, step: Step, next: Step | undefined): FoundStep {
    const { name } = this.#reader.definition
    const { table, kind, fields } = step
    const reader = this.#reader.database.readers.get(table)
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

/**
 * Checks that models are there, and that their relations lead somewhere.
 *
 * @param readerOf undefined for what is no model of the cache
 * @throws OptionError, ModelError
 */
export function linkModels(models: object, readerOf: (model: object) => Reader | undefined): void {
  if (typeof models !== 'object' || models === null)
    throw new OptionError('link', 'an object of models, such as { User, Team }', models)
  for (const [name, model] of Object.entries(models)) {
    const reader = readerOf(model)
    if (!reader) throw new OptionError(`link.${name}`, 'a model of this cache', model)
    reader.related.findAll()
  }
}

/** What a lookup finds, each row of it with the relations that are wanted, as a new object. */
export function* withRelations(parent: Ask, wanted: Wanted): Asking<unknown> {
  if (wanted.size === 0) return (yield [parent])[0]
  const relations = [...wanted]
  const [found, columns] = yield* together<unknown>([
    askedFor(parent),
    together(relations.map(([relation, nested]) => relatedOfFound(parent, relation, nested))),
  ]) as Asking<[unknown, unknown[][]]>
  const rows = rowsOf(found).map((row, i) => {
    const whole: Record<string, unknown> = { ...row }
    relations.forEach(([{ name }], n) => {
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
function* relatedOfFound(parent: Ask, relation: Related, nested: Wanted): Asking<unknown[]> {
  const { first, name, model } = relation
  const known = knownValues(parent, first)
  const early = known && { values: known, asking: relatedBy(known, relation, nested) }
  const begun = early?.asking.next()
  const [found, ...answers] = yield begun && !begun.done ? [parent, ...begun.value] : [parent]
  const rows = rowsOf(found)
  if (rows[0] && Object.hasOwn(rows[0], name))
    throw new ModelError(model, `relation '${name}' is named as a column is; give it another name`)
  return yield* relatedOfRows(rows, relation, nested, early && { ...early, answers })
}

/** What was asked for before there was a row to tell it, and the first answers. */
interface Early {
  readonly values: Row
  readonly asking: Asking<unknown>
  readonly answers: readonly unknown[]
}

/** A relation of each of some rows. Those that lead to the same have it asked for once, and share it. */
function* relatedOfRows(
  rows: readonly Row[],
  relation: Related,
  nested: Wanted,
  early: Early | undefined,
): Asking<unknown[]> {
  const { name, model, first } = relation
  const fields = first.fields.map(([, to]) => to)
  const askings: Asking<unknown>[] = []
  const places = new Map<string, number>()
  let earlyPlace: number | undefined
  const placeOf = (values: Row): number => {
    // The row may have the value in another form than the key that found it, and that form may be another key elsewhere.
    if (early && fields.every((field) => early.values[field] === values[field])) {
      earlyPlace ??= askings.push(resumed(early.asking, early.answers)) - 1
      return earlyPlace
    }
    const same = sameText(fields.map((field) => values[field]))
    const known = same === undefined ? undefined : places.get(same)
    if (known !== undefined) return known
    const place = askings.push(relatedBy(values, relation, nested)) - 1
    if (same !== undefined) places.set(same, place)
    return place
  }
  const placeOfRow = rows.map((row) => {
    const values = stepValues(model, name, first, row)
    return values && placeOf(values)
  })
  const answers = yield* together(askings)
  return placeOfRow.map((place) => (place === undefined ? nothingOf(relation) : answers[place]))
}

/** A text that only the same values have; undefined where it is not known cheaply which are the same. */
function sameText(values: readonly unknown[]): string | undefined {
  const arePlain = values.every((value) => ['string', 'number', 'boolean', 'bigint'].includes(typeof value))
  return arePlain ? JSON.stringify(values.map((value) => [typeof value, String(value)])) : undefined
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

/** A relation of a row that is at hand, and what its own rows are to come with: a row or null, or rows. */
export function* relatedOf(row: Row, relation: Related, nested: Wanted): Asking<unknown> {
  const { name, model, first } = relation
  const values = stepValues(model, name, first, row)
  return values ? yield* relatedBy(values, relation, nested) : nothingOf(relation)
}

function nothingOf({ first }: Related): unknown {
  return first.kind === 'key' ? null : []
}

/** What the values of its first step lead to. */
function* relatedBy(values: Row, { name, first, second }: Related, nested: Wanted): Asking<unknown> {
  if (!second) return yield* withRelations(askFor(first, values), nested)
  const [links] = yield [askFor(first, values)]
  const asks = rowsOf(links).flatMap((link) => {
    const next = stepValues(first.reader.definition.name, name, second, link)
    return next ? [askFor(second, next)] : []
  })
  const targets = yield* together(asks.map((ask) => withRelations(ask, nested)))
  return targets.filter((target) => target !== null)
}

function askFor({ reader, shape }: FoundStep, values: object): Ask {
  return { reader, shape, values, onAbsent: 'null' }
}

function rowsOf(found: unknown): readonly Row[] {
  if (found === null || found === undefined) return []
  return Array.isArray(found) ? found : [found as Row]
}
