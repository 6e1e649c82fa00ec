import type { ServerCounts } from './servers.ts'

export function duration(ns: number): string {
  if (ns < 1_000) return `${Math.round(ns)} ns`
  return ns < 1e6 ? `${digits(ns / 1e3)} µs` : `${digits(ns / 1e6)} ms`
}

export function digits(value: number): string {
  return value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)
}

/** `1 mget, 2 evalsha (in them 200 get, 200 set), 1 SQL` */
export function counted({ commands, statements }: ServerCounts): string {
  const scripts = commands.has('evalsha')
  const sent: string[] = []
  const inScripts: string[] = []
  for (const [name, count] of [...commands].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const inside = scripts && !['evalsha', 'eval', 'mget'].includes(name)
    ;(inside ? inScripts : sent).push(`${number(count)} ${name}`)
  }
  sent.sort((a, b) => Number(b.endsWith('mget')) - Number(a.endsWith('mget')))
  const redis = sent.join(', ') + (inScripts.length > 0 ? ` (in them ${inScripts.join(', ')})` : '')
  return [redis, statements > 0 ? `${number(statements)} SQL` : ''].filter(Boolean).join(', ') || 'nothing'
}

function number(count: number): string {
  return Number.isInteger(count) ? String(count) : count.toFixed(1)
}

/** Lines of at most `width`; all but the first begin with `indent` blanks. */
export function wrapped(text: string, width: number, indent: number): string {
  const lines = ['']
  for (const word of text.split(' ')) {
    const line = lines.at(-1) as string
    if (line.trim() !== '' && line.length + word.length + 1 > width) lines.push(' '.repeat(indent) + word)
    else lines[lines.length - 1] = line === '' ? word : `${line} ${word}`
  }
  return lines.join('\n')
}
