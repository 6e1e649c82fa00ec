import { UnknownOutcome } from '../../src/invalidation/commit.ts'
import type { Lease } from '../../src/stores/store.ts'
import type { Outcome } from './machine.ts'
import type { Item, KeyName } from './rows.ts'
import { type At, type Draft, maskOf, type Transitions, UNAVAILABLE } from './transitions.ts'
import type { Message, Replies } from './world.ts'

const SQL_FAILS: Outcome = { text: 'SQL fails', error: new Error('SQL fails') }
const REFUSED: Outcome = { text: 'refused', error: new Error('refused') }
const UNKNOWN: Outcome = { text: 'unknown', error: new UnknownOutcome(new Error('the connection broke')) }

/** What the steps that a process waits with can come to. */
export class ProcessSteps {
  readonly #to: Transitions

  constructor(transitions: Transitions) {
    this.#to = transitions
  }

  /** All that can become of a blocked step. */
  take(at: At): void {
    const { op } = at.blocked.step
    switch (op) {
      case 'getMany':
      case 'acquire':
      case 'intend':
      case 'clear':
        this.#ask(at)
        break
      case 'fill':
        this.#fill(at)
        break
      case 'select':
        this.#select(at)
        break
      case 'sleep':
        this.#wakeUp(at)
        break
      case 'tasks':
        this.#goOnWithoutOthers(at)
        break
      case 'commit':
        this.#commit(at)
        this.#renew(at)
        break
      case 'outcome':
        this.#giveUp(at)
        break
      case 'take':
        this.#takeRows(at)
        break
      case 'delete':
        this.#deleteRows(at)
        break
      default:
        throw new Error(`nobody takes the step ${op}`)
    }
  }

  #wakeUp(at: At): void {
    this.#to.step(at, (draft) => {
      draft.what = 'wakes up'
      this.#to.resume(draft, at, { text: `in ${draft.world.session}` })
    })
  }

  #goOnWithoutOthers(at: At): void {
    this.#to.step(at, (draft) => {
      draft.what = 'fills what it has, and waits on'
      this.#to.resume(draft, at, { text: 'some', value: false })
    })
  }

  // ---- the database ---------------------------------------------------------------------------------

  #select(at: At): void {
    const { step, action, caller, thread } = at.blocked
    if (step.op !== 'select') return
    const { table, words, scenario } = this.#to
    const { world } = at.state
    const snapshot = world.repliesTo(at.p, thread)?.byKey[0]
    if (scenario.slowSql && snapshot === undefined) {
      this.#to.step(at, (draft) => {
        draft.what = 'SQL takes its snapshot'
        draft.world.awaitReplies(at.p, thread, { session: world.session, byKey: [world.committed] })
      })
      return
    }
    const old = scenario.mutation?.readsOldSnapshot ? world.floors[caller]?.committed : undefined
    const inside = 'read' in action && action.inside !== undefined ? 1 << action.inside : 0
    const visible = (snapshot ?? old ?? world.committed) | inside
    const keys = step.keys.map(([text]): KeyName => (step.shape.kind === 'key' ? `#${text}` : String(text)))
    const lists = keys.map((key): readonly Item[] => {
      const answer = table.answer(key, visible)
      return answer === null ? [] : 'id' in answer ? [answer] : answer
    })
    this.#to.step(at, (draft) => {
      const says = () => keys.map((key, i) => `${key} = ${words.rows(lists[i] as Item[])}`)
      draft.what = () => `SQL says ${says().join(' and ')}`
      const text = lists.map((rows) => rows.map(({ id, list }) => id + list).join()).join(';')
      this.#to.resume(draft, at, { text, value: lists })
    })
    this.#to.fails(at, 'sqlError', (draft) => {
      draft.what = 'SQL fails'
      this.#to.resume(draft, at, SQL_FAILS)
    })
  }

  #commit(at: At): void {
    const { action } = at.blocked
    const bit = 'write' in action ? 1 << action.write : 0
    this.#to.step(at, (draft) => {
      draft.what = 'COMMIT'
      draft.world.commit(bit)
      this.#to.resume(draft, at, { text: '' })
    })
    this.#to.fails(at, 'rollback', (draft) => {
      draft.what = 'COMMIT is refused'
      draft.world.abort(bit)
      this.#to.resume(draft, at, REFUSED)
    })
    this.#to.fails(at, 'unknown', (draft) => {
      draft.what = 'sends COMMIT, its connection breaks'
      draft.world.flying |= bit
      this.#to.resume(draft, at, UNKNOWN)
    })
  }

  /** While COMMIT is under way, the intents are renewed. It is of interest only where one is not there any more. */
  #renew(at: At): void {
    const { step, action } = at.blocked
    if (step.op !== 'commit' || !('write' in action)) return
    const { records } = at.state.world
    const tokensAt = (key: number) => this.#to.store.of(records[key] as number).tokens
    for (const { party, keys, token } of step.intents) {
      const renewal = { ...at.blocked, step: { op: 'intend', party, keys, token } as const }
      const messages = this.#to.store.messagesOf(renewal)
      if (messages.every(({ key }) => tokensAt(key).includes(token))) continue
      this.#to.step(at, (draft) => {
        const { world } = draft
        draft.what = 'renews its intents'
        for (const message of messages) world.run(message)
        world.intendedIn = world.intendedIn.with(action.write, world.session)
        world.lapsed &= ~(1 << action.write)
      })
    }
  }

  /** Asking again changes nothing but the number of questions left, so either the writer learns it by then or never. */
  #giveUp(at: At): void {
    const { p, blocked } = at
    this.#to.step(at, (draft) => {
      draft.what = 'gives up asking what became of its COMMIT'
      const asks = () =>
        draft.places[p]?.blocked.some(
          ({ thread, step }) => thread === blocked.thread && step.op === 'outcome',
        )
      while (asks()) this.#to.resume(draft, at, { text: 'in progress', value: 'in progress' })
    })
  }

  #takeRows(at: At): void {
    const { world } = at.state
    const rows = world.outbox & ~world.taken
    if (rows === 0) return
    const { scenario, table, words } = this.#to
    this.#to.step(at, (draft) => {
      draft.what = () => `takes the outbox rows of ${words.writers(rows)}`
      draft.world.taken |= rows
      const value = scenario.writes.flatMap((_, w) => (rows & (1 << w) ? [table.outboxRow(w)] : []))
      this.#to.resume(draft, at, { text: `rows ${rows}`, value })
    })
  }

  #deleteRows(at: At): void {
    const { step } = at.blocked
    if (step.op !== 'delete') return
    this.#to.step(at, (draft) => {
      draft.what = 'deletes the rows it took'
      draft.world.release(maskOf(step.rows))
      this.#to.resume(draft, at, { text: '' })
    })
  }

  // ---- the store ------------------------------------------------------------------------------------

  #fill(at: At): void {
    const { step } = at.blocked
    if (step.op !== 'fill') return
    if (this.#to.store.canFill(step.lease, at.state.world.session)) {
      this.#ask(at)
      return
    }
    this.#to.step(at, (draft) => {
      draft.what = 'does not fill in another session'
      this.#to.resume(draft, at, UNAVAILABLE)
    })
  }

  /** A step that asks the store, key by key: no two keys change together. */
  #ask(at: At): void {
    const { state, p, blocked } = at
    const { step, thread } = blocked
    const { store, words } = this.#to
    const { records, session } = state.world
    const messages = store.messagesOf(blocked)
    const replies = state.world.repliesTo(p, thread) ?? { session, byKey: messages.map(() => undefined) }
    messages.forEach((message, i) => {
      if (replies.byKey[i] !== undefined) return
      const { record, reply } = message.run(records[message.key] as number, session)
      const finds = step.op === 'getMany' || (step.op === 'acquire' && reply !== 0)
      this.#to.step(at, (draft) => {
        const after = finds ? reply : record
        draft.what = () =>
          `${words.message(blocked, message)}${finds ? ': finds' : ' ->'} ${words.record(after, message.key)}`
        draft.world.run(message)
        const byKey = replies.byKey.with(i, reply)
        if (byKey.includes(undefined)) draft.world.awaitReplies(p, thread, { ...replies, byKey })
        else this.#reply(draft, at, byKey as number[])
      })
      this.#lose(at, messages, i, replies)
    })
  }

  /** The store has answered for every key. */
  #reply(draft: Draft, at: At, replies: readonly number[]): void {
    const { world } = draft
    const { session } = world
    const { store, scenario } = this.#to
    const { step, action, leaseToken } = at.blocked
    const records = replies.map((number) => store.of(number).record)
    const names = replies.map((number) => {
      const { kind } = store.of(number)
      // Whose intents they are is all the same.
      return kind === 'intents' ? kind : number
    })
    switch (step.op) {
      case 'getMany':
        this.#to.resume(draft, at, { text: names.join(), value: records })
        break
      case 'acquire': {
        const lease: Lease = { token: leaseToken, session }
        this.#to.resume(draft, at, { text: `${names} in ${session}`, value: { lease, records } })
        break
      }
      case 'intend':
        if ('write' in action) world.intendedIn = world.intendedIn.with(action.write, session)
        if (scenario.waitsForReplica && world.replica) world.replica = world.records
        this.#to.resume(draft, at, { text: '', value: session })
        break
      default:
        this.#to.resume(draft, at, { text: '', value: 0 })
    }
  }

  /** A message never gets there; or its reply gets lost; or it comes late. What was sent beside it comes late. */
  #lose(at: At, messages: readonly Message[], lost: number, { byKey }: Replies): void {
    const { step } = at.blocked
    const message = messages[lost] as Message
    for (const fate of fatesOf(step.op)) {
      this.#to.fails(at, 'loss', (draft) => {
        draft.what = () => `${this.#to.words.message(at.blocked, message)} ${fate}`
        if (fate === 'is done, its reply is lost') draft.world.run(message)
        if (fate === 'comes late') draft.world.delay([message])
        if (step.op !== 'getMany') {
          draft.world.delay(messages.filter((_, i) => i !== lost && byKey[i] === undefined))
        }
        this.#to.resume(draft, at, UNAVAILABLE)
      })
    }
  }
}

type Fate = 'is lost' | 'is done, its reply is lost' | 'comes late'

/** Who only reads leaves no trace, and nobody looks at what becomes of a fill. */
function fatesOf(op: string): readonly Fate[] {
  if (op === 'getMany') return ['is lost']
  if (op === 'fill') return ['is lost', 'comes late']
  return ['is lost', 'is done, its reply is lost', 'comes late']
}
