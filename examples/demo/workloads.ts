import { createGraphqlServer } from '../graphql/server.ts'
import { createApp } from '../route-handler/app.ts'
import type { Models } from '../shop/open-shop.ts'
import { type Mail, queueOf, runWorker } from '../worker/worker.ts'
import type { Counts } from './measure.ts'

/** One of the examples, run for real, and what it must cost. */
export interface Workload {
  readonly name: string
  readonly title: string
  /** What is asked, for people: lines of 76 characters at most. */
  readonly asks: readonly string[]
  /** The example over these models. */
  start(models: Models): Run
  readonly plain: Counts
  readonly cold: Counts
  readonly warm: Counts
}

export interface Run {
  /** Does it once. Resolves to the answer. */
  once(): Promise<unknown>
  stop(): Promise<void>
}

const NO_TRIPS = { waves: 0, mget: 0, acquire: 0, fill: 0 }

const page: Workload = {
  name: 'page',
  title: 'A page: Promise.all in a Fastify route',
  asks: [
    'GET /events/amber-harbour-nights: the event; then its organiser, admins,',
    'people invited and tickets; then the guest on each of 50 seats.',
  ],
  start(models) {
    const app = createApp(models)
    return {
      async once() {
        const response = await app.inject('/events/amber-harbour-nights')
        if (response.statusCode !== 200) throw new Error(response.body)
        return response.json()
      },
      stop: () => app.close(),
    }
  },
  plain: { lookups: 55, ...NO_TRIPS, statements: 55 },
  cold: { lookups: 55, waves: 3, mget: 3, acquire: 3, fill: 3, statements: 5 },
  warm: { lookups: 55, waves: 3, mget: 3, acquire: 0, fill: 0, statements: 0 },
}

const query = /* GraphQL */ `{
  event(slug: "amber-harbour-nights") {
    title
    organiser { name }
    tickets {
      seat
      order { placedAt }
      holder { name org { name } }
    }
  }
}`

const graphql: Workload = {
  name: 'graphql',
  title: 'A GraphQL query: nested resolvers in GraphQL Yoga',
  asks: ['{ event { organiser tickets { order holder { org } } } }, with 50 tickets.'],
  start(models) {
    const yoga = createGraphqlServer(models)
    return {
      async once() {
        const response = await yoga.fetch('http://localhost/graphql', {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({ query }),
        })
        const { data, errors } = (await response.json()) as { data: unknown; errors?: unknown }
        if (errors) throw new Error(JSON.stringify(errors))
        return data
      },
      stop: async () => yoga.dispose(),
    }
  },
  plain: { lookups: 153, ...NO_TRIPS, statements: 153 },
  cold: { lookups: 153, waves: 4, mget: 4, acquire: 4, fill: 4, statements: 6 },
  warm: { lookups: 153, waves: 4, mget: 4, acquire: 0, fill: 0, statements: 0 },
}

const worker: Workload = {
  name: 'worker',
  title: 'A worker: 100 receipts to mail, 25 jobs a turn',
  asks: ['Per job: the order; then its buyer, event and tickets; then the organiser.'],
  start(models) {
    return {
      async once() {
        const mails: Mail[] = []
        const take = queueOf(Array.from({ length: 100 }, (_, i) => i + 1))
        await runWorker({ models, take, send: (mail) => void mails.push(mail) })
        return mails
      },
      stop: async () => {},
    }
  },
  plain: { lookups: 500, ...NO_TRIPS, statements: 500 },
  cold: { lookups: 500, waves: 12, mget: 12, acquire: 12, fill: 12, statements: 20 },
  warm: { lookups: 500, waves: 12, mget: 12, acquire: 0, fill: 0, statements: 0 },
}

export const WORKLOADS: readonly Workload[] = [page, graphql, worker]
