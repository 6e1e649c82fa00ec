import type { ValueType } from '../models/codec.ts'
import type { TableInfo } from '../models/column.ts'
import type { CustomDefinition } from '../models/custom.ts'
import { type BoundModel, bindModel, customForm, type ModelDefinition, storedForm } from '../models/model.ts'
import type { Shape } from '../models/shape.ts'
import type { Catalog } from '../sources/source.ts'

/** A declared model, and what it is bound to once the database has been asked about it. */
export interface Binding {
  definition: ModelDefinition
  bound: BoundModel | undefined
  binding: Promise<BoundModel> | undefined
}

export function newBinding(definition: ModelDefinition): Binding {
  return { definition, bound: undefined, binding: undefined }
}

/** The number that the database gives a stored form; undefined while it gives none. */
export type SchemaNumber = (name: string, form: string, atLeast: number) => Promise<number | undefined>

/**
 * Binds the models declared on one database to their tables, when one of them is first used. All that are not bound
 * yet, those of the cache's other databases too, are bound together, so that the lookups of a first `Promise.all` over
 * several models still become one wave.
 */
export class Binder {
  readonly #namespace: string
  readonly #catalog: Catalog
  readonly #all: Set<Binder>
  readonly #valueTypes: readonly ValueType[]
  readonly #schemaNumber: SchemaNumber
  readonly #bindings = new Map<string, Binding>()

  /** @param all those of the cache; this one is added */
  constructor(
    namespace: string,
    catalog: Catalog,
    valueTypes: readonly ValueType[],
    schemaNumber: SchemaNumber,
    all: Set<Binder>,
  ) {
    this.#namespace = namespace
    this.#catalog = catalog
    this.#all = all.add(this)
    this.#valueTypes = valueTypes
    this.#schemaNumber = schemaNumber
  }

  get bindings(): readonly Binding[] {
    return [...this.#bindings.values()]
  }

  get(model: string): ModelDefinition | undefined {
    return this.#bindings.get(model)?.definition
  }

  add(binding: Binding): void {
    this.#bindings.set(binding.definition.name, binding)
  }

  /** Has a model declared anew, with more than before. */
  extend(binding: Binding, extended: (definition: ModelDefinition) => ModelDefinition): void {
    binding.definition = extended(binding.definition)
    binding.bound = undefined
  }

  /** @throws ModelError when the table does not fit the model, SourceError when the database cannot be asked */
  async bind(binding: Binding): Promise<BoundModel> {
    if (binding.bound) return binding.bound
    const mine = this.#start(binding)
    const others = [...this.#all].flatMap((binder) => binder.#startAll())
    // Each failure concerns only its own model, but all go on together.
    await Promise.allSettled([mine, ...others])
    return mine
  }

  #startAll(): Promise<BoundModel>[] {
    return this.bindings.filter(({ bound }) => !bound).map((each) => this.#start(each))
  }

  /** Binds every declared model. Rejects what the first that cannot be bound rejects with. */
  async bindAll(): Promise<BoundModel[]> {
    return Promise.all(this.bindings.map((binding) => this.bind(binding)))
  }

  /** Binds what can be bound by now; what cannot is told by its own lookups. */
  async bindWhatFits(): Promise<void> {
    if (this.bindings.some(({ bound }) => !bound))
      await Promise.allSettled(this.bindings.map((each) => this.bind(each)))
  }

  /** Has all models bound anew at their next use: the database may number their stored forms otherwise now. */
  unbindAll(): void {
    for (const binding of this.#bindings.values()) binding.bound = undefined
  }

  /** Has the model bound anew at its next use: its table has changed. */
  unbind(model: BoundModel): void {
    const binding = this.#bindings.get(model.definition.name)
    if (binding?.bound === model) binding.bound = undefined
  }

  #start(binding: Binding): Promise<BoundModel> {
    if (binding.bound) return Promise.resolve(binding.bound)
    binding.binding ??= this.#bind(binding).finally(() => {
      binding.binding = undefined
    })
    return binding.binding
  }

  async #bind(binding: Binding): Promise<BoundModel> {
    const { definition } = binding
    const { name, version, customShapes } = definition
    const table = await this.#catalog.describe(definition)
    const numberOf = async (of: string, form: string, atLeast: number) =>
      (await this.#schemaNumber(of, form, atLeast)) ?? atLeast
    const schema = await numberOf(name, storedForm(definition, table), version)
    const schemas = new Map<Shape, number>()
    for (const shape of customShapes) {
      const custom = shape.custom as NonNullable<Shape['custom']>
      const form = customForm(shape.fields, custom, await this.#rowForm(custom, definition, table))
      // '~' keeps it apart from the forms of a table of that name.
      schemas.set(shape, await numberOf(`~${custom.name}`, form, custom.version))
    }
    const bound = bindModel(this.#namespace, definition, table, schema, this.#valueTypes, schemas)
    // A shape that was added meanwhile is not in it.
    if (binding.definition !== definition) return this.#bind(binding)
    binding.bound = bound
    return bound
  }

  /** The stored form of the rows that a custom cache consists of. */
  async #rowForm({ load }: CustomDefinition, owner: ModelDefinition, table: TableInfo): Promise<string> {
    if (load.kind === 'first') return storedForm(owner, table)
    const last = load.kind === 'related' ? load.path.at(-1)?.definition() : undefined
    return last ? storedForm(last, await this.#catalog.describe(last)) : ''
  }
}
