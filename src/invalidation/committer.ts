import { CompiledQuery } from 'kysely'
import { InstallError } from '../errors.ts'
import { type Commit, type CommitStep, commitTransaction, UnknownOutcome } from './commit.ts'
import { INTERNAL, outboxExists, type RunRaw, readOutcome, readOwnRows } from './outbox-rows.ts'
import { clearTouched, type InvalidationParty } from './party.ts'
import { resolveTouched } from './resolve.ts'

/** A transaction that is about to be committed, on its own connection. */
export interface OpenTransaction {
  run: RunRaw
  readonly isSerializable: boolean
  /** Which run of the server it is in. */
  serverRun(): Promise<string>
  commit(): Promise<void>
  rollback(): Promise<void>
}

type Step = CommitStep<InvalidationParty>

export interface CommitHub {
  /** The caches that are told of commits. */
  readonly parties: ReadonlySet<InvalidationParty>
  /** Whether the outbox is known to be there. */
  installed: boolean
}

/** Drives the write path: asks the database and the stores for what a {@link Commit} yields. */
export class Committer {
  readonly #hub: CommitHub

  constructor(hub: CommitHub) {
    this.#hub = hub
  }

  /** Whether anybody is to be told of commits. */
  get needed(): boolean {
    return this.#hub.parties.size > 0
  }

  /** Rejects what COMMIT rejected with; StrictWriteError, CommitOutcomeUnknownError or InstallError. */
  async commit(transaction: OpenTransaction): Promise<void> {
    const hub = this.#hub
    // Asked again with every write as long as it is missing: it may be installed at any time.
    hub.installed ||= await isInstalled(transaction.run)
    if (!hub.installed) return transaction.commit()
    const parties = [...hub.parties]
    try {
      await new CommitRun(transaction, parties).drive(commitTransaction(parties))
    } catch (error) {
      if (!isMissing(error)) throw error
      hub.installed = false
      throw new InstallError(
        'the outbox was removed while this process ran; rolled back, run the transaction again',
        {
          cause: error,
          transient: true,
        },
      )
    }
  }
}

async function isInstalled(run: RunRaw): Promise<boolean> {
  try {
    return await outboxExists(run)
  } catch (error) {
    if (isAborted(error)) return false
    throw error
  }
}

class CommitRun {
  readonly #transaction: OpenTransaction
  readonly #parties: readonly InvalidationParty[]
  /** When and on which connection the last intents were taken, per party. */
  readonly #intended = new Map<InvalidationParty, { readonly session: unknown; readonly at: number }>()
  #serverRun = ''

  constructor(transaction: OpenTransaction, parties: readonly InvalidationParty[]) {
    this.#transaction = transaction
    this.#parties = parties
  }

  async drive(commit: Commit<InvalidationParty>): Promise<void> {
    let resume = () => commit.next()
    for (;;) {
      const { done, value: step } = resume()
      if (done) return
      try {
        const answer = (await this.#perform(step)) as never
        resume = () => commit.next(answer)
      } catch (error) {
        resume = () => commit.throw(error)
      }
    }
  }

  async #perform(step: Step): Promise<unknown> {
    switch (step.op) {
      case 'ownRows':
        return this.#ownRows(step.strict)
      case 'intend':
        return this.#intend(step.party, step.keys, step.token)
      case 'commit':
        return this.#commit(step)
      case 'rollback':
        return this.#transaction.rollback()
      case 'outcome':
        return readOutcome((this.#parties[0] as InvalidationParty).db, step.xid, this.#serverRun)
      case 'resolve':
        return resolveTouched(this.#transaction.run, step.touched)
      case 'clear':
        return this.#clear(step)
      case 'inForce':
        return this.#inForce(step.party)
      case 'forget':
        return step.party.forget(step.touched)
      case 'delete':
        return step.party.deleteSoon(step.rows)
      case 'sleep':
        return new Promise((resolve) => setTimeout(resolve, step.ms))
    }
  }

  async #ownRows(strict: boolean) {
    const { run, serverRun, isSerializable } = this.#transaction
    try {
      // What deferred constraint triggers write must get its intents too, so they run now and not in COMMIT.
      if (strict) await run(rawInternal('set constraints all immediate'))
      // Who reads all of the outbox has read what every other writer writes there, and Postgres would refuse one of them.
      if (isSerializable) await run(rawInternal('set local enable_seqscan = off'))
      this.#serverRun = await serverRun()
      return await readOwnRows(run)
    } catch (error) {
      // COMMIT of a failed transaction is a rollback, and says so itself.
      if (isAborted(error)) return { xid: null, rows: [] }
      throw error
    }
  }

  async #intend(party: InvalidationParty, keys: readonly string[], token: string): Promise<void> {
    // Taken before the trip: the store's clock starts later than ours, so we never think it longer in force than it is.
    const at = Date.now()
    this.#intended.set(party, { session: await party.store.intend(keys, token, party.intentTtlMs), at })
  }

  async #commit({ intents }: Extract<Step, { op: 'commit' }>): Promise<void> {
    const renew = () => {
      for (const { party, keys, token } of intents) {
        // A renewal that fails leaves the intents as they were, until their deadline.
        this.#intend(party, keys, token).catch(() => undefined)
      }
    }
    const everyMs = Math.min(...intents.map(({ party }) => party.intentTtlMs)) / 3
    const timer = intents.length > 0 ? setInterval(renew, everyMs) : undefined
    try {
      await this.#transaction.commit()
    } catch (error) {
      throw isDefinite(error) ? error : new UnknownOutcome(error)
    } finally {
      clearInterval(timer)
    }
  }

  async #clear({ party, touched, token, committed }: Extract<Step, { op: 'clear' }>): Promise<void> {
    const cleared = clearTouched(party.store, touched, token, committed)
    try {
      await cleared
      if (committed) party.counters.cleared += touched.keys.length + (touched.stale?.size ?? 0)
    } catch (error) {
      if (committed) party.counters.deferred++
      throw error
    }
  }

  #inForce(party: InvalidationParty): boolean {
    const intended = this.#intended.get(party)
    return (
      intended !== undefined &&
      intended.session === party.store.session &&
      Date.now() - intended.at < party.intentTtlMs
    )
  }
}

function rawInternal(text: string): CompiledQuery {
  return CompiledQuery.raw(`${INTERNAL} ${text}`)
}

/** Whether the server itself said no, and lived to say so. Then nothing was committed. */
function isDefinite(error: unknown): boolean {
  if (!(error instanceof Error)) return false
  // Kysely's word for a COMMIT that the server answered with ROLLBACK.
  if (error.name === 'AbortedTransactionError' || error.constructor.name === 'AbortedTransactionError')
    return true
  return (error as { severity?: unknown }).severity === 'ERROR'
}

/** "relation loadstone.outbox does not exist" */
function isMissing(error: unknown): boolean {
  return (
    error instanceof Error &&
    /\bloadstone\b/.test(error.message) &&
    (error as { code?: unknown } & Error).code === '42P01'
  )
}

/** "current transaction is aborted, commands ignored until end of transaction block" */
function isAborted(error: unknown): boolean {
  return (error as { code?: unknown } | null)?.code === '25P02'
}
