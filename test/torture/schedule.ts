import { Random } from './random.ts'

/** How a network fault ends: with the connections broken, what was under way lost, or as if nothing had been. */
type Ending = 'cut' | 'release'

export type Fault =
  /** SIGKILL at any moment. */
  | { readonly kind: 'kill'; readonly worker: number }
  /** SIGKILL at the next step of a write: around its intents, or between its COMMIT and its clear. */
  | {
      readonly kind: 'kill-at'
      readonly worker: number
      readonly step: 'intend' | 'clear'
      readonly after: boolean
    }
  /** SIGSTOP, and SIGCONT. */
  | { readonly kind: 'freeze'; readonly worker: number; readonly ms: number }
  /** SIGKILL; on the same port again, empty, `ms` later. */
  | { readonly kind: 'redis-restart'; readonly ms: number }
  | { readonly kind: 'redis-flush' }
  | { readonly kind: 'redis-pause'; readonly ms: number }
  /** Crashes at once, and recovers `ms` later. */
  | { readonly kind: 'postgres-restart'; readonly ms: number }
  | { readonly kind: 'cut'; readonly of: Server; readonly worker: number }
  /** Postgres is cut off `ms` after a transaction was about to send its COMMIT. */
  | { readonly kind: 'cut-at-commit'; readonly worker: number; readonly ms: number }
  | {
      readonly kind: 'delay'
      readonly of: Server
      readonly worker: number
      readonly ms: number
      readonly byMs: number
      readonly ending: Ending
    }
  /** A black hole: connections stay open, and one direction carries nothing. */
  | {
      readonly kind: 'hole'
      readonly of: Server
      readonly worker: number
      readonly ms: number
      readonly direction: 'requests' | 'replies'
      readonly ending: Ending
    }

export type Server = 'redis' | 'postgres'

export type Planned = Fault & {
  /** ms after the start of its phase */
  readonly at: number
}

/** Faults come for so long, then there is time for everything to be as promised again. */
const CHAOS_MS = 8000
export const CALM_MS = 4500
const LONGEST_MS = 1000

/** The faults of a run, phase by phase with a calm after each: every kind comes, in any order, again and again. */
export function planFaults(seed: number, totalMs: number, workers: number): Planned[][] {
  const random = new Random(seed)
  let deck: Fault[] = []
  return Array.from({ length: Math.max(1, Math.round(totalMs / (CHAOS_MS + CALM_MS))) }, () => {
    const phase: Planned[] = []
    for (let at = random.int(200, 800); at < CHAOS_MS; ) {
      if (deck.length === 0) deck = random.shuffle(deckOf(random, workers))
      const fault = deck.pop() as Fault
      phase.push({ ...fault, at })
      const lasts = 'ms' in fault ? fault.ms : 0
      // Sometimes the next fault comes before this one is over.
      at += random.chance(0.3) ? random.int(20, 150) : lasts + random.int(50, 350)
    }
    return phase
  })
}

function deckOf(random: Random, workers: number): Fault[] {
  const worker = () => random.int(0, workers - 1)
  const ms = () => (random.chance(0.5) ? random.int(30, 250) : random.int(250, LONGEST_MS))
  const ending = (): Ending => (random.chance(0.6) ? 'cut' : 'release')
  const network = (of: Server): Fault[] => [
    { kind: 'cut', of, worker: worker() },
    { kind: 'delay', of, worker: worker(), ms: ms(), byMs: random.int(3, 60), ending: ending() },
    { kind: 'hole', of, worker: worker(), ms: ms(), direction: 'requests', ending: ending() },
    { kind: 'hole', of, worker: worker(), ms: ms(), direction: 'replies', ending: ending() },
  ]
  const killAt = (step: 'intend' | 'clear'): Fault => ({
    kind: 'kill-at',
    worker: worker(),
    step,
    after: random.chance(0.4),
  })
  return [
    { kind: 'kill', worker: worker() },
    { kind: 'kill', worker: worker() },
    killAt('clear'),
    killAt('intend'),
    { kind: 'cut-at-commit', worker: worker(), ms: random.int(0, 10) },
    { kind: 'cut-at-commit', worker: worker(), ms: random.int(0, 40) },
    { kind: 'freeze', worker: worker(), ms: ms() },
    { kind: 'redis-restart', ms: random.int(0, 400) },
    { kind: 'redis-flush' },
    { kind: 'redis-pause', ms: ms() },
    { kind: 'postgres-restart', ms: random.int(0, 200) },
    ...network('redis'),
    ...network('postgres'),
  ]
}
