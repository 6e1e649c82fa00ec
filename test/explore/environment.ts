import type { Place, Process } from './processes.ts'
import { writeOfToken } from './scenario.ts'
import type { State, Transitions } from './transitions.ts'
import type { Budget, World } from './world.ts'

/** All that happens without a process taking a step: processes die, the database decides, the store forgets. */
export class Environment {
  readonly #to: Transitions

  constructor(transitions: Transitions) {
    this.#to = transitions
  }

  happens(state: State): void {
    state.places.forEach((place, p) => {
      if (this.#to.processes[p]?.isRelay) this.#relayDies(state, place, p)
      else this.#writerDies(state, place, p)
    })
    this.#database(state)
    this.#network(state)
    this.#runsOut(state)
    this.#forgets(state)
  }

  #relayDies(state: State, place: Place, p: number): void {
    if (state.world.budget.relayCrash === 0 || place.resting) return
    this.#to.happens(state, true, (draft) => {
      draft.what = 'relay: dies; another one takes over'
      draft.world.spend('relayCrash')
      draft.world.taken = 0
      draft.world.forgetReplies(p)
      draft.places[p] = (this.#to.processes[p] as Process).start.to
    })
  }

  #writerDies(state: State, place: Place, p: number): void {
    const { budget, deleting, dead } = state.world
    const { program, writes: mine, dead: deadPlace } = this.#to.processes[p] as Process
    if (budget.crash === 0 || dead & (1 << p)) return
    const dies = (how: string, sent: number) =>
      this.#to.happens(state, true, (draft) => {
        draft.what = () => `${program.name}: ${how}`
        draft.world.spend('crash')
        draft.world.forgetReplies(p)
        draft.world.dies(p, mine, sent)
        draft.places[p] = deadPlace
      })
    const writing = place.blocked.find(({ action }) => 'write' in action)
    if (writing?.step.op === 'commit' && 'write' in writing.action) {
      dies('sends COMMIT and dies', 1 << writing.action.write)
    }
    if ((writing && !writing.first) || deleting & mine) dies('dies', 0)
  }

  #database(state: State): void {
    const { flying, deleting, taken } = state.world
    const { scenario, words } = this.#to
    scenario.writes.forEach((_, w) => {
      const bit = 1 << w
      if (flying & bit) {
        this.#to.happens(state, false, (draft) => {
          draft.what = () => `database: the COMMIT of ${words.writers(bit)} is applied`
          draft.world.commit(bit)
        })
        this.#to.happens(state, false, (draft) => {
          draft.what = () => `database: ${words.writers(bit)} is rolled back`
          draft.world.abort(bit)
        })
      }
      if (deleting & bit & ~taken) {
        this.#to.happens(state, false, (draft) => {
          draft.what = () => `${words.writers(bit)}: its outbox rows are deleted`
          draft.world.release(bit)
        })
      }
    })
  }

  #network(state: State): void {
    for (const message of state.world.late) {
      this.#to.happens(state, false, (draft) => {
        const { world } = draft
        const [op] = message.text.split(' ')
        draft.what = () => `network: the late ${op} of ${this.#to.scenario.keys[message.key]} arrives`
        world.late = world.late.filter((each) => each !== message)
        world.run(message)
      })
    }
  }

  #runsOut(state: State): void {
    const { records, committed, aborted } = state.world
    const { scenario, store, words } = this.#to
    const { faults, keys } = scenario
    // Where nothing goes wrong, no intent is left over.
    if (Object.keys(faults).length === 0) return
    records.forEach((number, k) => {
      const { kind, tokens } = store.of(number)
      if (kind === 'lease' && faults.slow) {
        this.#to.happens(state, true, (draft) => {
          draft.what = () => `store: the lease on ${keys[k]} runs out`
          draft.world.put(k, 0)
        })
      }
      if (kind !== 'intents') return
      for (const token of tokens) {
        const bit = 1 << writeOfToken(scenario, token)
        const ended = ((committed | aborted) & bit) !== 0
        if (!ended && !faults.late) continue
        this.#to.happens(state, true, (draft) => {
          draft.what = () =>
            `store: the intent of ${words.writers(bit)} on ${keys[k]} runs out${ended ? '' : ' early'}`
          draft.world.put(k, store.without(number, token))
          if (!ended) draft.world.lapsed |= bit
        })
      }
    })
  }

  #forgets(state: State): void {
    const { records, replica, budget } = state.world
    const { keys } = this.#to.scenario
    const empty = keys.map(() => 0)
    records.forEach((number, k) => {
      if (number === 0 || budget.evict === 0) return
      this.#to.happens(state, true, (draft) => {
        draft.what = () => `store: evicts ${keys[k]}`
        draft.world.spend('evict')
        draft.world.put(k, 0)
      })
    })
    if (budget.flush > 0 && records.some((number) => number !== 0)) {
      this.#to.happens(state, true, (draft) => {
        draft.what = 'store: forgets everything'
        draft.world.spend('flush')
        draft.world.records = empty
      })
    }
    if (budget.restart > 0) this.#newMaster(state, 'restart', 'comes back empty, as a new master', empty)
    if (!replica || budget.failover === 0) return
    if (replica.join() !== records.join()) {
      this.#to.happens(state, true, (draft) => {
        draft.what = 'store: the replica catches up'
        draft.world.replica = draft.world.records
      })
    }
    this.#newMaster(state, 'failover', 'the replica becomes the master', replica)
  }

  #newMaster(state: State, fault: keyof Budget, how: string, records: World['records']): void {
    this.#to.happens(state, true, (draft) => {
      const { world } = draft
      draft.what = `store: ${how}`
      world.spend(fault)
      world.session++
      world.records = records
      world.replica = undefined
      // Connections to the old master are gone, and what was on its way with them.
      world.late = []
    })
  }
}
