import { setTimeout as sleep } from 'node:timers/promises'
import { Client } from 'pg'
import { now } from './clock.ts'
import { describeError } from './errors.ts'
import type { Note } from './journal.ts'
import type { Random } from './random.ts'
import { IDS, MODELS, randomGroup, randomKind, randomThing } from './things.ts'

export const PSQL = 'psql'

/** Another program, which knows nothing of a cache: plain SQL on a plain connection. */
export class Psql {
  readonly notes: Note[] = []
  readonly #client: Client
  readonly #random: Random
  readonly #pauseMs: number
  #stopping = false
  #running: Promise<void> | undefined

  constructor(url: string, random: Random, pauseMs: number) {
    this.#client = new Client({ connectionString: url })
    this.#random = random
    this.#pauseMs = pauseMs
  }

  async start(): Promise<void> {
    await this.#client.connect()
    this.#running = this.#run()
  }

  async stop(): Promise<void> {
    this.#stopping = true
    await this.#running
    await this.#client.end()
  }

  async #run(): Promise<void> {
    for (let n = 1; !this.#stopping; n++) {
      const op = `${PSQL}#${n}`
      const text = this.#statement(op)
      this.notes.push({ t: 'begin', op, at: now(), what: text })
      try {
        // Several statements in one query are one transaction.
        const result = await this.#client.query(text)
        const rows = [result].flat().reduce((sum, { rowCount }) => sum + (rowCount ?? 0), 0)
        this.notes.push({ t: 'end', op, at: now(), outcome: 'ok', rows })
      } catch (error) {
        this.notes.push({ t: 'end', op, at: now(), outcome: 'failed', rows: 0, error: describeError(error) })
      }
      await sleep(this.#random.next() * this.#pauseMs)
    }
  }

  #statement(op: string): string {
    const random = this.#random
    const table = random.pick(MODELS)
    const id = random.pick(IDS)
    const { slug, grp, kind } = randomThing(random, id)
    const text = (value: string | null) => (value === null ? 'null' : `'${value}'`)
    const where = `grp = ${grp} and kind is not distinct from ${text(kind)}`
    return random.pick([
      `update ${table} set grp = ${randomGroup(random)}, tag = '${op}' where id = ${id}`,
      `update ${table} set kind = ${text(randomKind(random))}, tag = '${op}' where ${where}`,
      `update ${table} set slug = ${text(slug)}, tag = '${op}' where id = ${id}`,
      `delete from ${table} where id = ${id} /* op ${op} */`,
      `insert into ${table} (id, slug, grp, kind, tag) values (${id}, ${text(slug)}, ${grp}, ${text(kind)}, '${op}')`,
      `update ${table} set tag = '${op}' where id = ${id}; update ${table} set grp = ${grp}, tag = '${op}' where id = ${id}`,
    ])
  }
}
