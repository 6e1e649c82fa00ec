import { spawnSync } from 'node:child_process'
import { chmodSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { directoryWith, type Machine, pathDirectories, thisMachine } from './machine.ts'

/** Debian's names of the packages the tests can need. */
export type ServerPackage = 'redis-server' | 'postgresql'

const POLICY = '/usr/sbin/policy-rc.d'

/**
 * Installs the packages with apt where that needs no question (root on Debian or a relative of it), and elsewhere
 * fails with the commands for the reader to choose from.
 */
export function installServers(packages: readonly ServerPackage[], machine: Machine = thisMachine()): void {
  if (packages.length === 0) return
  if (!canUseApt(machine)) throw new Error(howToInstall(packages))
  console.log(`Not installed: ${packages.join(', ')}. Installing with apt-get, once...`)
  withoutServiceStart(() => {
    aptGet('update')
    aptGet('install', '-y', '--no-install-recommends', ...packages)
  })
}

function canUseApt(machine: Machine): boolean {
  const hasApt = directoryWith(['apt-get'], pathDirectories(machine)) !== undefined
  return machine.platform === 'linux' && machine.uid === 0 && hasApt
}

function howToInstall(packages: readonly ServerPackage[]): string {
  return `The tests run on real servers, and these are not installed: ${packages.join(', ')}.
Install them with one of
  apt:    sudo apt-get update && sudo apt-get install -y redis-server postgresql
  brew:   brew install redis postgresql@17
or start them with Docker and say where they are:
  docker run -d -p 6379:6379 redis:7
  docker run -d -p 5432:5432 -e POSTGRES_HOST_AUTH_METHOD=trust postgres:17 -c wal_level=logical -c max_prepared_transactions=10
  export REDIS_URL=redis://127.0.0.1:6379 DATABASE_URL=postgres://postgres@127.0.0.1:5432/postgres`
}

/**
 * Debian starts a service as soon as its package is unpacked; the tests start their own servers, so nothing shall
 * take 5432 and 6379. A `policy-rc.d` that exits with 101 is Debian's way to say so. The machine's own is put back.
 */
function withoutServiceStart(install: () => void): void {
  const own = readPolicy()
  writeFileSync(POLICY, '#!/bin/sh\nexit 101\n')
  chmodSync(POLICY, 0o755)
  try {
    install()
  } finally {
    rmSync(POLICY)
    if (own) writeFileSync(POLICY, own.content, { mode: own.mode })
  }
}

function readPolicy(): { content: Buffer; mode: number } | undefined {
  try {
    return { content: readFileSync(POLICY), mode: statSync(POLICY).mode }
  } catch {
    return undefined
  }
}

function aptGet(...args: string[]): void {
  const options = ['-o', 'DPkg::Lock::Timeout=120', '-o', 'Acquire::Retries=3']
  const result = spawnSync('apt-get', [...options, ...args], {
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    stdio: ['ignore', 'pipe', 'pipe'],
    encoding: 'utf8',
    timeout: 600_000,
  })
  if (result.status === 0) return
  const output = `${result.stdout ?? ''}${result.stderr ?? ''}`.trim().split('\n').slice(-20).join('\n')
  throw new Error(`apt-get ${args.join(' ')} failed (${result.error ?? `exit ${result.status}`}):\n${output}`)
}
