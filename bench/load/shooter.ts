/** The load, in a process of its own: `node shooter.ts <job>`. Prints what autocannon measured as JSON. */
import autocannon from 'autocannon'
import type { Job, Shots } from './shots.ts'

const { url, slugs, connections, seconds } = JSON.parse(process.argv[2] as string) as Job

const QUERY =
  'query ($slug: String!) { event(slug: $slug) { title startsAt organiser { name } tickets { seat price holder { name org { name } } order { placedAt buyer { email } } } } }'

const result = await autocannon({
  url,
  connections,
  duration: seconds,
  // A request that takes longer is an error, and is counted.
  timeout: 5,
  requests: slugs.map((slug) => ({
    method: 'POST' as const,
    path: new URL(url).pathname,
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ query: QUERY, variables: { slug } }),
  })),
  // GraphQL tells errors with status 200.
  verifyBody: (body) => !String(body).includes('"errors"'),
})
const shots: Shots = {
  requests: result.requests.total,
  perSecond: result.requests.average,
  p50Ms: result.latency.p50,
  p99Ms: result.latency.p99,
  maxMs: result.latency.max,
  errors: result.errors + result.timeouts + result.non2xx + result.mismatches,
}
console.log(JSON.stringify(shots))
