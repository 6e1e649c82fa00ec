import { afterAll, beforeAll, beforeEach, expect, onTestFinished, test } from 'vitest'
import { freePort } from '../servers/ports.ts'
import type { Server } from '../servers/server.ts'
import { eventually, type Line, openCache, openLine, openPair, PATIENT, type Pair } from './pair.ts'

let pair: Pair
let primary: Line
beforeAll(async () => {
  pair = await openPair()
  primary = await openLine('primary', pair.primary)
})
afterAll(async () => {
  await primary.close()
  await pair.close()
})
beforeEach(async () => {
  await pair.resume()
  await pair.caughtUp()
})

/** What the doctor says of a server as the replica. */
async function findingsOf(server: Pick<Server, 'port'>, maxWait: '10s' | 1 = PATIENT) {
  const replica = await openLine('replica', server as Server)
  onTestFinished(() => replica.close())
  const { cache } = openCache({ primary, replica }, { maxWait })
  onTestFinished(() => cache.close())
  return (await cache.doctor()).filter(({ area }) => area === 'replica')
}

test('a standby that follows is fine', async () => {
  expect(await findingsOf(pair.standby)).toEqual([
    {
      area: 'replica',
      status: 'ok',
      finding: expect.stringMatching(/^it had what the primary had after [\d.]+ m?s$/),
      cure: undefined,
    },
  ])
})

test('a standby that takes longer than loads wait is worth a warning', async () => {
  await pair.pause()
  await pair.onPrimary('update people set name = name where id = 1')
  const finding = findingsOf(pair.standby, 1)
  const isAsked = "query ~ 'from pg_control_recovery|pg_last_wal_replay_lsn' and pid <> pg_backend_pid()"
  await eventually(pair.onStandby, `exists (select from pg_stat_activity where ${isAsked})`)
  await pair.resume()
  expect(await finding).toEqual([
    expect.objectContaining({
      status: 'warn',
      finding: expect.stringMatching(/^it had what .*, and loads wait 1(\.0)? ms: the primary answers many/),
    }),
  ])
})

test('a standby that does not follow is worth a warning', async () => {
  await pair.pause()
  await pair.onPrimary('update people set name = name where id = 1')
  const finding = 'it is behind by more than 3 s: the primary answers'
  expect(await findingsOf(pair.standby)).toEqual([expect.objectContaining({ status: 'warn', finding })])
})

test('a server that is no standby is told as that', async () => {
  expect(await findingsOf(pair.primary)).toEqual([
    {
      area: 'replica',
      status: 'warn',
      finding: 'it is not read: it is not in recovery: no standby, or promoted',
      cure: 'lead replica.db to a standby, or leave replica out',
    },
  ])
})

test('a server that is not there is told as that', async () => {
  const port = await freePort()
  expect(await findingsOf({ port })).toEqual([
    expect.objectContaining({ status: 'warn', finding: expect.stringMatching(/^it cannot be asked: /) }),
  ])
})
