import type { BoundModel } from '../models/model.ts'
import type { Source } from './source.ts'

/** The rows of several databases: each model's from its own. */
export class RoutedSource implements Source {
  readonly #sources: Map<string, Source>

  constructor(sources: Iterable<readonly [namespace: string, source: Source]> = []) {
    this.#sources = new Map(sources)
  }

  add(namespace: string, source: Source): void {
    this.#sources.set(namespace, source)
  }

  /** The same, but for one database. */
  with(namespace: string, source: Source): RoutedSource {
    return new RoutedSource([...this.#sources, [namespace, source]])
  }

  select(...args: Parameters<Source['select']>): ReturnType<Source['select']> {
    return this.#of(args[0]).select(...args)
  }

  count(...args: Parameters<Source['count']>): ReturnType<Source['count']> {
    return this.#of(args[0]).count(...args)
  }

  related(...args: Parameters<Source['related']>): ReturnType<Source['related']> {
    return this.#of(args[0]).related(...args)
  }

  rowsWhere(...args: Parameters<Source['rowsWhere']>): ReturnType<Source['rowsWhere']> {
    return this.#of(args[0]).rowsWhere(...args)
  }

  dbOf(model: BoundModel): unknown {
    return this.#of(model).dbOf(model)
  }

  #of({ namespace }: BoundModel): Source {
    return this.#sources.get(namespace) as Source
  }
}
