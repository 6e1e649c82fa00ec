import { setTimeout as sleep } from 'node:timers/promises'
import { type ControlledTransaction, type Kysely, sql, type Transaction } from 'kysely'
import { type Cache, CommitOutcomeUnknownError, runInLoop } from '../../src/index.ts'
import { now } from './clock.ts'
import { describeError } from './errors.ts'
import type { Journal, Outcome } from './journal.ts'
import type { Random } from './random.ts'
import { Asked, type Reader } from './reader.ts'
import {
  IDS,
  type Key,
  keyNamesOf,
  MODELS,
  type ModelName,
  randomGroup,
  randomKey,
  randomKind,
  randomSlug,
  randomThing,
  type Tables,
  type Thing,
  type ThingTable,
  UNDONE,
} from './things.ts'
import type { Watch } from './watch.ts'

/** The two tables are alike; to Kysely each looks like this. */
type OneTable = Kysely<{ thing: ThingTable }>

export interface WriterParts {
  readonly db: Kysely<Tables>
  readonly cache: Cache<Tables>
  readonly reader: Reader
  readonly journal: Journal
  readonly random: Random
  readonly watch: Watch
  /** Told when a transaction is about to be committed. */
  committing(): void
  /** Begins the names of its operations. */
  readonly who: string
}

/** A row as a write left it; what a delete returns is the row that was. */
interface Touched {
  readonly model: ModelName
  readonly thing: Thing
  readonly deleted: boolean
}

type Executor = Kysely<Tables> | Transaction<Tables>

/** What a writer throws into its own transaction to have it rolled back. */
class Undo extends Error {}

/** What an operation is given: its name, which is the tag of all it writes, and whom to tell before COMMIT. */
interface Operation {
  readonly tag: string
  readonly asked: Asked
  committing(): void
}

/** Writes at random, in all ways there are, and writes down what became of it. */
export class Writer {
  readonly #parts: WriterParts
  #operations = 0

  constructor(parts: WriterParts) {
    this.#parts = parts
  }

  async turn(): Promise<void> {
    const { random } = this.#parts
    const luck = random.next()
    if (luck < 0.4)
      await this.#operate('lone write', ({ tag }) => this.#step(this.#parts.db, this.#pick(), tag))
    else if (luck < 0.48) await this.#operate('write of a list', (op) => this.#moveList(op))
    else if (luck < 0.54) await this.#operate('raw write', (op) => this.#raw(op))
    else if (luck < 0.68) await this.#operate('transaction', (op) => this.#transaction(op))
    else if (luck < 0.82) await this.#operate('cache.transaction', (op) => this.#cacheTransaction(op))
    else if (luck < 0.9) await this.#operate('transaction with a savepoint', (op) => this.#savepoint(op))
    else if (luck < 0.95) await this.#operate('raw transaction', (op) => this.#rawTransaction(op))
    else await this.#operate('transaction that is rolled back', (op) => this.#undone(op))
  }

  /** Runs one write in a scope of its own, which may have read before, and may read afterwards. */
  async #operate(what: string, write: (operation: Operation) => Promise<readonly Touched[]>): Promise<void> {
    const { random, reader, journal, watch, cache, who } = this.#parts
    const tag = `${who}#${++this.#operations}`
    await runInLoop(async () => {
      const asked = new Asked()
      if (random.chance(0.3)) await reader.look(randomKey(random), asked)
      const { deferred } = cache.stats()
      let outcome: Outcome = 'ok'
      let touched: readonly Touched[] = []
      let failure: string | undefined
      journal.noteForSure({ t: 'begin', op: tag, at: now(), what })
      try {
        const committing = () => {
          journal.noteForSure({ t: 'commit', op: tag, at: now() })
          this.#parts.committing()
        }
        touched = await watch.over(`${what} ${tag}`, () => write({ tag, asked, committing }))
      } catch (error) {
        outcome = outcomeOf(error)
        failure = describeError(error)
      }
      journal.note({
        t: 'end',
        op: tag,
        at: now(),
        outcome,
        rows: touched.length,
        ...(cache.stats().deferred > deferred && { deferred: true }),
        ...(failure !== undefined && { error: failure }),
      })
      for (const { model, thing } of touched) asked.forget(keyNamesOf(model, thing))
      if (random.chance(0.6)) await this.#readBack(touched, asked)
    })()
  }

  /** In the scope that wrote, all keys of a row at once: all of them have to show it. */
  async #readBack(touched: readonly Touched[], asked: Asked): Promise<void> {
    if (touched.length === 0) return
    const { random, reader } = this.#parts
    const { model, thing } = random.pick(touched)
    const { id, slug, grp, kind } = thing
    const keys: Key[] = [
      { model, shape: 'id', values: { id } },
      { model, shape: 'grp', values: { grp } },
      { model, shape: 'grp+kind', values: { grp, kind } },
    ]
    if (slug !== null) keys.push({ model, shape: 'slug', values: { slug } })
    await Promise.all(keys.map((key) => reader.look(key, asked)))
  }

  #pick(): { model: ModelName; id: number } {
    const { random } = this.#parts
    return { model: random.pick(MODELS), id: random.pick(IDS) }
  }

  /** Rows in one order everywhere, so that transactions rarely wait for each other in a circle. */
  #picks(most: number): { model: ModelName; id: number }[] {
    const { random } = this.#parts
    const picks = Array.from({ length: random.int(1, most) }, () => this.#pick())
    return picks.sort((a, b) => a.model.localeCompare(b.model) || a.id - b.id)
  }

  /** One statement on one row. */
  async #step(
    db: Executor,
    { model, id }: { model: ModelName; id: number },
    tag: string,
  ): Promise<Touched[]> {
    const { random } = this.#parts
    const table = db as unknown as OneTable
    const name = model as 'thing'
    const luck = random.next()
    if (luck < 0.15) {
      const rows = await table
        .deleteFrom(name)
        .where('id', '=', id)
        .modifyEnd(sql.raw(`/* op ${tag} */`))
        .returningAll()
        .execute()
      return rows.map((thing) => ({ model, thing, deleted: true }))
    }
    if (luck < 0.35) {
      const { slug, grp, kind } = randomThing(random, id)
      const insert = table.insertInto(name).values({ id, slug, grp, kind, tag }).returningAll()
      const upsert = insert.onConflict((conflict) => conflict.column('id').doUpdateSet({ grp, kind, tag }))
      const rows = await (luck < 0.3 ? upsert : insert).execute()
      return rows.map((thing) => ({ model, thing, deleted: false }))
    }
    const change = random.pick([
      {},
      { grp: randomGroup(random) },
      { grp: randomGroup(random) },
      { kind: randomKind(random) },
      { slug: randomSlug(random) },
      { slug: null },
    ])
    const rows = await table
      .updateTable(name)
      .set({ ...change, tag })
      .where('id', '=', id)
      .returningAll()
      .execute()
    return rows.map((thing) => ({ model, thing, deleted: false }))
  }

  /** Moves all that is in one list to another: from key to key. */
  async #moveList({ tag }: Operation): Promise<Touched[]> {
    const { random, db } = this.#parts
    const model = random.pick(MODELS)
    const rows = await (db as unknown as OneTable)
      .updateTable(model as 'thing')
      .set({ grp: randomGroup(random), tag })
      .where('grp', '=', randomGroup(random))
      .where('kind', 'is not distinct from', randomKind(random))
      .returningAll()
      .execute()
    return rows.map((thing) => ({ model, thing, deleted: false }))
  }

  /** As an application writes SQL by itself, the write in a WITH included. */
  async #raw({ tag }: Operation): Promise<Touched[]> {
    const { random, db } = this.#parts
    const { model, id } = this.#pick()
    const update = sql`update ${sql.table(model)} set kind = ${randomKind(random)}, tag = ${tag} where id = ${id} returning *`
    const query = random.chance(0.5) ? update : sql`with written as (${update}) select * from written`
    const { rows } = await (query as ReturnType<typeof sql<Thing>>).execute(db)
    return rows.map((thing) => ({ model, thing, deleted: false }))
  }

  async #steps(db: Executor, tag: string, most: number): Promise<Touched[]> {
    const touched: Touched[] = []
    for (const pick of this.#picks(most)) {
      touched.push(...(await this.#step(db, pick, tag)))
      await this.#linger()
    }
    return lastOfEach(touched)
  }

  async #transaction({ tag, committing }: Operation): Promise<Touched[]> {
    const { random, db, reader } = this.#parts
    return db.transaction().execute(async (trx) => {
      const touched = await this.#steps(trx, tag, 4)
      const [first] = touched
      // Through the store as everybody: what this transaction wrote is not there yet.
      if (first && random.chance(0.3)) await reader.look(idKey(first))
      committing()
      return touched
    })
  }

  async #cacheTransaction({ tag, committing }: Operation): Promise<Touched[]> {
    const { random, cache, reader } = this.#parts
    return cache.transaction(async (trx) => {
      const touched = await this.#steps(trx, tag, 4)
      for (const each of touched) await this.#seesItsOwn(each)
      const written = new Set(touched.map((each) => `${each.model} ${each.thing.id}`))
      const other = this.#pick()
      if (!written.has(`${other.model} ${other.id}`)) {
        await reader.look({ model: other.model, shape: 'id', values: { id: other.id } })
      }
      if (random.chance(0.1)) throw new Undo()
      committing()
      return touched
    })
  }

  async #seesItsOwn(each: Touched): Promise<void> {
    const [found] = await this.#parts.reader.find(idKey(each))
    const { thing, deleted } = each
    if (deleted ? !found : found?.version === thing.version && found.tag === thing.tag) return
    this.#parts.watch.problem(
      'a transaction sees what it has written',
      `${each.model} ${thing.id}: wrote ${deleted ? 'its delete' : JSON.stringify(thing)}, saw ${JSON.stringify(found)}`,
    )
  }

  async #savepoint({ tag, committing }: Operation): Promise<Touched[]> {
    const { db } = this.#parts
    const trx = await db.startTransaction().execute()
    try {
      const before = await this.#steps(trx, tag, 2)
      const inside: ControlledTransaction<Tables, ['undo']> = await trx.savepoint('undo').execute()
      await this.#steps(inside, tag + UNDONE, 2).catch((error: unknown) => {
        // A slug that is taken, say: going back to the savepoint heals the transaction.
        if ((error as { severity?: string }).severity !== 'ERROR') throw error
      })
      const after = await inside.rollbackToSavepoint('undo').execute()
      const touched = lastOfEach([...before, ...(await this.#steps(after, tag, 2))])
      committing()
      await trx.commit().execute()
      return touched
    } finally {
      if (!trx.isCommitted && !trx.isRolledBack)
        await trx
          .rollback()
          .execute()
          .catch(() => undefined)
    }
  }

  /** BEGIN and COMMIT by hand. */
  async #rawTransaction({ tag, committing }: Operation): Promise<Touched[]> {
    return this.#parts.db.connection().execute(async (connection) => {
      await sql`begin`.execute(connection)
      try {
        const touched = await this.#steps(connection, tag, 3)
        committing()
        await sql`commit`.execute(connection)
        return touched
      } catch (error) {
        await sql`rollback`.execute(connection).catch(() => undefined)
        throw error
      }
    })
  }

  async #undone({ tag }: Operation): Promise<Touched[]> {
    return this.#parts.db.transaction().execute(async (trx) => {
      await this.#steps(trx, tag + UNDONE, 3)
      throw new Undo()
    })
  }

  async #linger(): Promise<void> {
    const { random } = this.#parts
    if (random.chance(0.3)) await sleep(random.int(0, 15))
  }
}

function outcomeOf(error: unknown): Outcome {
  if (error instanceof Undo) return 'undone'
  return error instanceof CommitOutcomeUnknownError ? 'unknown' : 'failed'
}

function idKey({ model, thing }: Touched): Key {
  return { model, shape: 'id', values: { id: thing.id } }
}

/** Of a row that was written twice, what it is now. */
function lastOfEach(touched: readonly Touched[]): Touched[] {
  return [...new Map(touched.map((each) => [`${each.model} ${each.thing.id}`, each])).values()]
}
