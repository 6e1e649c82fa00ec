import { runInLoop } from 'loadstone'
import type { Models } from '../shop/open-shop.ts'

/** "Mail a receipt for this order." */
export interface Job {
  readonly orderId: number
}

export interface Mail {
  readonly to: string
  readonly subject: string
  readonly text: string
}

/** Where jobs come from: here an array, elsewhere BullMQ, SQS or a table. Empty means there are none left. */
export type Take = (count: number) => readonly Job[] | Promise<readonly Job[]>

export interface WorkerOptions {
  readonly models: Models
  readonly take: Take
  readonly send: (mail: Mail) => void | Promise<void>
  /** How many jobs to work on side by side. Default 25. */
  readonly jobsPerTurn?: number
}

/** Works the queue off. Resolves to how many jobs had something to send. */
export async function runWorker({ models, take, send, jobsPerTurn = 25 }: WorkerOptions): Promise<number> {
  // A scope per turn, never one around the loop: what a scope has seen, it sees to its end. A worker that runs for
  // weeks in one scope would mail last week's prices, and its memory would grow.
  const turn = runInLoop(async (jobs: readonly Job[]) => {
    const mails = await Promise.all(jobs.map((job) => receipt(models, job)))
    const written = mails.filter((mail) => mail !== undefined)
    for (const mail of written) await send(mail)
    return written.length
  })

  let sent = 0
  for (let jobs = await take(jobsPerTurn); jobs.length > 0; jobs = await take(jobsPerTurn)) {
    sent += await turn(jobs)
  }
  return sent
}

/** One job, written as if it were alone. Next to 24 others it costs no more round trips. */
async function receipt({ Event, Order, Org, Ticket, User }: Models, job: Job): Promise<Mail | undefined> {
  const order = await Order.cache.getAsyncOrNone({ id: job.orderId })
  if (!order) return undefined // cancelled since the job was queued

  const [buyer, event, tickets] = await Promise.all([
    User.cache.getAsync({ id: order.user_id }),
    Event.cache.getAsync({ id: order.event_id }),
    Ticket.cache.filterAsync({ order_id: order.id }),
  ])
  const organiser = await Org.cache.getAsync({ id: event.org_id })

  const cents = tickets.reduce((sum, { price }) => sum + Math.round(Number(price) * 100), 0)
  const seats = tickets.map(({ seat }) => seat).join(', ')
  return {
    to: buyer.email,
    subject: `Your order ${order.id} with ${organiser.name}`,
    text: `Dear ${buyer.first_name}, ${event.title}, seats ${seats}: ${(cents / 100).toFixed(2)} EUR.`,
  }
}

/** A queue in memory. */
export function queueOf(orderIds: readonly number[]): Take {
  const jobs = orderIds.map((orderId) => ({ orderId }))
  return (count) => jobs.splice(0, count)
}
