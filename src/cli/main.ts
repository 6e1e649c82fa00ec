#!/usr/bin/env node
import { run } from './run.ts'

const { stdout, stderr, env } = process

// Whoever reads us may have enough: `loadstone doctor | head`.
for (const stream of [stdout, stderr]) stream.on('error', () => process.exit())

process.exitCode = await run(process.argv.slice(2), { stdout, stderr, env, cwd: process.cwd() })

// The connections of the application's own module stay open, and would keep the process alive. What was written must
// be out first: to a pipe, writes are not done when they return.
for (const stream of [stdout, stderr]) await new Promise<void>((done) => stream.write('', () => done()))
process.exit()
