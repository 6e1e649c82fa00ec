import type { Blocked, Event } from './machine.ts'
import type { Item, KeyName, Table } from './rows.ts'
import { type Scenario, writeOfToken } from './scenario.ts'
import type { Store } from './store.ts'
import type { Message } from './world.ts'

/** Tells what happened, for traces. */
export class Words {
  /** Of the callers, by their numbers. */
  readonly names: readonly string[]
  readonly #scenario: Scenario
  readonly #table: Table
  readonly #store: Store

  constructor(scenario: Scenario, table: Table, store: Store) {
    this.#scenario = scenario
    this.#table = table
    this.#store = store
    this.names = scenario.programs.flatMap(({ name, callers }) =>
      callers.map((_, i) => (callers.length > 1 ? `${name}${'abc'[i]}` : name)),
    )
  }

  /** Who makes these writes. */
  writers(mask: number): string {
    const callers = this.#scenario.programs.flatMap(({ callers: each }) => each)
    const names = callers.flatMap((actions, caller) =>
      actions.some((action) => 'write' in action && mask & (1 << action.write)) ? [this.names[caller]] : [],
    )
    return names.join(' and ')
  }

  message({ step }: Blocked, { key }: Message): string {
    const isWithdrawal = step.op === 'clear' && 'committed' in step && !step.committed
    return `${isWithdrawal ? 'withdraws its intent on' : step.op} ${this.#scenario.keys[key]}`
  }

  rows(rows: readonly Item[]): string {
    return `[${rows.map(({ id }) => id).join(' ')}]`
  }

  /** The answer for `key` that shows these writes. */
  answer(key: KeyName, shown: number | undefined): string {
    if (shown === undefined) return 'nonsense'
    const answer = this.#table.answer(key, shown)
    return answer && 'id' in answer ? this.rows([answer]) : this.rows(answer ?? [])
  }

  record(number: number, k: number): string {
    const { kind, tokens, shown } = this.#store.of(number)
    switch (kind) {
      case 'none':
        return 'nothing'
      case 'value':
        return this.answer(this.#scenario.keys[k] as KeyName, shown[k])
      case 'intents': {
        const writes = tokens.reduce((mask, token) => mask | (1 << writeOfToken(this.#scenario, token)), 0)
        return `intent of ${this.writers(writes)}`
      }
      case 'lease':
        return `lease of ${this.names[Number.parseInt(tokens[0] as string, 10)] ?? 'nobody any more'}`
    }
  }

  /** What callers are told. */
  events(events: readonly Event[]): string[] {
    return events.flatMap((event) => {
      switch (event.type) {
        case 'answered':
          return `${this.names[event.caller]} gets ${event.key} = ${this.answer(event.key, event.shown)}`
        case 'failed':
          return `${this.names[event.caller]}'s lookup of ${event.key} fails: ${event.error.message}`
        case 'wrote':
          return {
            committed: 'its call returns',
            aborted: 'its call fails',
            unknown: 'its call fails: outcome unknown',
          }[event.told]
        case 'fault':
          return `a fault: ${event.error.stack}`
        default:
          return []
      }
    })
  }
}
