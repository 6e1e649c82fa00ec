import { setTimeout as sleep } from 'node:timers/promises'
import { Client } from 'pg'
import { now } from './clock.ts'
import type { Note, Outcome } from './journal.ts'
import type { Random } from './random.ts'
import { IDS, MODELS, randomGroup, randomKind, randomThing } from './things.ts'

export const PSQL = 'psql'

/** A connection that may be lost. */
export function connectionTo(url: string): Client {
  const client = new Client({ connectionString: url })
  client.on('error', () => {})
  return client
}

/** Another program, which knows nothing of a cache: plain SQL on a plain connection. */
export class Psql {
  readonly notes: Note[] = []
  readonly #url: string
  readonly #random: Random
  readonly #pauseMs: number
  #client: Client | undefined
  #stopping = false
  #running: Promise<void> | undefined

  constructor(url: string, random: Random, pauseMs: number) {
    this.#url = url
    this.#random = random
    this.#pauseMs = pauseMs
  }

  start(): void {
    this.#running = this.#run()
  }

  async stop(): Promise<void> {
    this.#stopping = true
    await this.#running
    await this.#client?.end()
  }

  async #run(): Promise<void> {
    for (let n = 1; !this.#stopping; n++) {
      const op = `${PSQL}#${n}`
      const text = this.#statement(op)
      const client = await this.#connected()
      if (client) await this.#execute(client, op, text)
      await sleep(this.#random.next() * this.#pauseMs)
    }
  }

  async #connected(): Promise<Client | undefined> {
    if (this.#client) return this.#client
    const client = connectionTo(this.#url)
    try {
      await client.connect()
      this.#client = client
      return client
    } catch {
      return undefined // Postgres is down
    }
  }

  async #execute(client: Client, op: string, text: string): Promise<void> {
    this.notes.push({ t: 'begin', op, at: now(), what: text })
    const end = (outcome: Outcome, rows: number) =>
      this.notes.push({ t: 'end', op, at: now(), outcome, rows })
    try {
      // Several statements in one query are one transaction.
      const result = await client.query(text)
      end(
        'ok',
        [result].flat().reduce((sum, { rowCount }) => sum + (rowCount ?? 0), 0),
      )
    } catch (error) {
      const refused = (error as { severity?: string }).severity === 'ERROR'
      end(refused ? 'undone' : 'unknown', 0)
      if (!refused) this.#client = undefined
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
