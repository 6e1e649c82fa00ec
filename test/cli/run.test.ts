import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Finding, VerifyReport } from 'loadstone'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { describeFindings, describeReport } from '../../src/cli/report.ts'
import { run } from '../../src/cli/run.ts'
import { type Output, progressLine, stylesFor } from '../../src/cli/terminal.ts'

let cwd: string

/** A cache for the command line that takes down what it is asked. */
const FAKE = `
export const calls = []
const record = (name, result) => async (...args) => { calls.push([name, ...args]); return result }
const fake = (modelNames, report = { stale: 0, shapes: [], unchecked: {}, checked: 0, entries: 0, durationMs: 1 }) => ({
  modelNames,
  databases: new Map(),
  install: record('install', ['created this', 'and that']),
  installSql: record('installSql', 'select 1;'),
  uninstall: record('uninstall', []),
  verify: record('verify', report),
  doctor: record('doctor', [{ area: 'store', status: 'warn', finding: 'slow', cure: 'haste' }]),
  clear: record('clear'),
  close: record('close'),
})
`

beforeAll(() => {
  cwd = mkdtempSync(join(tmpdir(), 'loadstone-run-'))
  const file = (name: string, text: string) => writeFileSync(join(cwd, name), text)
  file('good.mjs', `${FAKE} export const cache = fake(['users', 'orders'])`)
  file(
    'more.mjs',
    `${FAKE} const archive = { ...fake(['old_orders']), install: record('install of archive', []) }
     export const cache = { ...fake([]), databases: new Map([['archive', archive]]) }`,
  )
  file('default.mjs', `${FAKE} export default fake(['users'])`)
  file('only.mjs', `${FAKE} export const db = {}; export const theOne = fake(['users'])`)
  file('several.mjs', `${FAKE} export const db = {}, a = fake(['users']), b = fake(['users'])`)
  file('none.mjs', 'export const db = {}')
  file('empty.mjs', `${FAKE} export const cache = fake([])`)
  file(
    'common.cjs',
    `${FAKE.replace('export ', '')} const made = { cache: fake(['users']) }; Object.assign(module.exports, made)`,
  )
  // What Node says of a .ts file, when it does not read them.
  file(
    'typed.ts',
    "throw Object.assign(new TypeError('Unknown file extension'), { code: 'ERR_UNKNOWN_FILE_EXTENSION' })",
  )
  file(
    'hanging.mjs',
    `${FAKE} export const cache = { ...fake(['users']), close: () => new Promise(() => {}) }`,
  )
  file(
    'failing.mjs',
    `${FAKE} export const cache = { ...fake(['users']), doctor: async () => { throw new RangeError('a fault') } }`,
  )
  file('missing.mjs', "import 'no-such-package'")
})
afterAll(() => rmSync(cwd, { recursive: true }))

function output(options: Partial<Output> = {}): Output & { text: string } {
  return {
    ...options,
    text: '',
    write(text: string) {
      this.text += text
    },
  }
}

async function loadstone(...args: string[]) {
  const [stdout, stderr] = [output(), output()]
  const code = await run(args, { stdout, stderr, env: {}, cwd })
  return { code, stdout: stdout.text, stderr: stderr.text }
}

/** What the fake cache of a module was asked since. */
async function callsOf(module: string): Promise<unknown[]> {
  const { calls } = (await import(join(cwd, module))) as { calls: unknown[] }
  return calls.splice(0)
}

describe('a command', () => {
  test('asks the cache of the module, closes it, and tells', async () => {
    expect(await loadstone('install', '--module', 'good.mjs')).toEqual({
      code: 0,
      stdout: 'created this\nand that\n',
      stderr: '',
    })
    expect(await callsOf('good.mjs')).toEqual([['install'], ['close']])
    expect(await loadstone('install', '--print', '-m', './good.mjs')).toMatchObject({
      code: 0,
      stdout: 'select 1;',
    })
    expect(await loadstone('uninstall', '-m', 'good.mjs')).toMatchObject({
      stdout: 'nothing to do, nothing is installed\n',
    })
    expect(await callsOf('good.mjs')).toEqual([['installSql'], ['close'], ['uninstall'], ['close']])
    expect(await loadstone('doctor', '-m', 'good.mjs')).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('haste'),
    })
  })

  test('verify hands its options on', async () => {
    await callsOf('good.mjs')
    await loadstone(
      'verify',
      '-m',
      'good.mjs',
      '--sample',
      '12',
      '--settle',
      '0',
      '--model',
      'users',
      '--model=orders',
    )
    await loadstone('verify', '-m', 'good.mjs', '--sample=all', '--repair', '--json')
    const calls = (await callsOf('good.mjs')) as [string, object][]
    expect(calls.map(([name]) => name)).toEqual(['verify', 'close', 'verify', 'close'])
    expect(calls[0]?.[1]).toEqual({
      sample: 12,
      settleMs: 0,
      models: ['users', 'orders'],
      repair: false,
      onProgress: expect.any(Function),
    })
    expect(calls[2]?.[1]).toEqual({
      sample: Number.POSITIVE_INFINITY,
      repair: true,
      onProgress: expect.any(Function),
    })
  })

  test('clear takes models, or all', async () => {
    await callsOf('good.mjs')
    expect(await loadstone('clear', 'users', '-m', 'good.mjs')).toMatchObject({
      code: 0,
      stdout: 'cleared users\n',
    })
    expect(await loadstone('clear', '--all', '-m', 'good.mjs')).toMatchObject({
      stdout: 'cleared users, orders\n',
    })
    expect(await loadstone('clear', 'pets', '-m', 'good.mjs')).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("there is no model 'pets'; models are users, orders"),
    })
    expect(await callsOf('good.mjs')).toEqual([
      ['clear', ['users']],
      ['close'],
      ['clear', ['users', 'orders']],
      ['close'],
      ['close'],
    ])
  })

  test('concerns the first database, or the one that is named', async () => {
    await callsOf('more.mjs')
    expect(await loadstone('install', '-m', 'more.mjs')).toMatchObject({
      code: 0,
      stderr: 'this was its first database; others: --using archive\n',
    })
    expect(await loadstone('install', '-m', 'more.mjs', '--using', 'archive')).toEqual({
      code: 0,
      stdout: 'nothing to do, all is installed\n',
      stderr: '',
    })
    expect(await callsOf('more.mjs')).toEqual([['install'], ['close'], ['install of archive'], ['close']])
    expect(await loadstone('install', '-m', 'more.mjs', '--using', 'attic')).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("the cache has no database 'attic'; databases are archive"),
    })
  })

  test('ends although the cache does not close', async () => {
    expect(await loadstone('doctor', '-m', 'hanging.mjs')).toMatchObject({ code: 0 })
  })

  test('tells where a fault happened', async () => {
    const { code, stderr } = await loadstone('doctor', '-m', 'failing.mjs')
    expect(code).toBe(2)
    expect(stderr).toMatch(/^loadstone: a fault\nRangeError: a fault\n {4}at .*failing\.mjs/)
  })
})

describe('the module', () => {
  test.each([['default.mjs'], ['only.mjs'], ['common.cjs']])('%s has its cache found', async (module) => {
    expect(await loadstone('install', '-m', module)).toMatchObject({ code: 0, stderr: '' })
  })

  test.each([
    [['several.mjs', '--export', 'a'], 0, ''],
    [
      ['several.mjs'],
      2,
      'several.mjs exports no cache made by createModelCache as cache or default; caches are a, b: choose with --export',
    ],
    [['several.mjs', '--export', 'c'], 2, "several.mjs has no export 'c'; it has a, b, calls, db"],
    [
      ['several.mjs', '--export', 'db'],
      2,
      "export 'db' of several.mjs is no cache made by createModelCache; caches are a, b: choose with --export",
    ],
    [['none.mjs'], 2, 'none.mjs exports no cache made by createModelCache as cache or default'],
    [
      ['empty.mjs'],
      2,
      'the cache of empty.mjs has no models: name a module that imports those which call cache.model()',
    ],
    [['nowhere.mjs'], 2, 'there is no module nowhere.mjs in '],
    [['.'], 2, '. is a folder: name the module in it'],
    [
      ['typed.ts'],
      2,
      'this Node does not read TypeScript: name what typed.ts is built to, or use Node 22.18 or newer',
    ],
    [['missing.mjs'], 2, 'missing.mjs could not be loaded: '],
  ])('%j', async (args, code, message) => {
    const ended = await loadstone('install', '--module', ...args)
    expect(ended.code).toBe(code)
    expect(ended.stderr).toContain(message)
    if (message) expect(ended.stderr.startsWith('loadstone: ')).toBe(true)
  })
})

describe('usage', () => {
  test.each([
    [
      ['instal'],
      "there is no command 'instal'; commands are install, uninstall, verify, doctor, clear, help",
    ],
    [['toString'], "there is no command 'toString'"],
    [['verify', '--fast'], "verify: Unknown option '--fast'"],
    [['verify', '--sample', 'many'], "--sample takes a whole number of at least 1, not 'many'"],
    [['verify', '--sample', '0'], "--sample takes a whole number of at least 1, not '0'"],
    [['verify', '--settle', '1.5'], "--settle takes a whole number of at least 0, not '1.5'"],
    [['verify', '--settle='], "--settle takes a whole number of at least 0, not ''"],
    [['verify', '--sample'], "verify: Option '--sample <value>' argument missing"],
    [['verify', 'users'], "verify: Unexpected argument 'users'"],
    [['install', '--print=yes'], "install: Option '--print' does not take an argument"],
    [['clear'], 'clear what? Name models, or say --all'],
    [['clear', 'users', '--all'], 'either name models, or say --all'],
    [
      ['doctor'],
      'which cache? Name the module of your application that exports it: --module ./path/to/cache.js',
    ],
    [['help', 'instal'], "there is no command 'instal'"],
  ])('%j is refused', async (args, message) => {
    const { code, stdout, stderr } = await loadstone(...args)
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).toContain(`loadstone: ${message}`)
    expect(stderr).not.toContain('    at ')
  })

  test('is explained', async () => {
    const overview = await loadstone('help')
    expect(overview).toMatchObject({ code: 0, stderr: '' })
    for (const word of [
      'install',
      'uninstall',
      'verify',
      'doctor',
      'clear',
      '--module',
      '--export',
      'Exit codes',
    ]) {
      expect(overview.stdout).toContain(word)
    }
    expect(await loadstone('--help')).toEqual(overview)
    expect(await loadstone('-h')).toEqual(overview)
    expect(await loadstone()).toEqual({ ...overview, code: 2 })
    const verify = await loadstone('help', 'verify')
    expect(verify.stdout).toMatch(/^loadstone verify \[options\]\n/)
    expect(await loadstone('verify', '--help')).toEqual(verify)
    expect(await loadstone('clear', '-h')).toMatchObject({
      code: 0,
      stdout: expect.stringContaining('loadstone clear <model...> [options]'),
    })
    for (const line of `${overview.stdout}${verify.stdout}`.split('\n'))
      expect(line.length).toBeLessThanOrEqual(110)
  })

  test('tells the version', async () => {
    expect(await loadstone('--version')).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/),
    })
  })
})

describe('colours and progress', () => {
  const tty = { isTTY: true }
  test('are for terminals', () => {
    expect(stylesFor(output(tty), {}).red('x')).toBe('\x1b[31mx\x1b[39m')
    expect(stylesFor(output(), {}).red('x')).toBe('x')
    expect(stylesFor(output(tty), { NO_COLOR: '1' }).red('x')).toBe('x')
    expect(stylesFor(output(tty), { NO_COLOR: '' }).red('x')).toBe('\x1b[31mx\x1b[39m')
    expect(stylesFor(output(tty), { TERM: 'dumb' }).red('x')).toBe('x')
  })

  test('a bar fills, is not drawn too often, and goes', () => {
    const stderr = output(tty)
    const line = progressLine(stderr, { NO_COLOR: '1' })
    line.end()
    expect(stderr.text).toBe('')
    line.show('entries found', 1234, undefined)
    line.show('entries found', 1235, undefined)
    expect(stderr.text).toBe('\r1,234 entries found\x1b[K')
    line.show('entries compared', 10, 10)
    expect(stderr.text).toContain(`${'█'.repeat(30)} 10 / 10 entries compared`)
    line.end()
    expect(stderr.text.endsWith('\r\x1b[K')).toBe(true)
  })

  test('there is none in a file', () => {
    const stderr = output()
    progressLine(stderr, {}).show('entries', 1, 2)
    progressLine(stderr, {}).end()
    expect(stderr.text).toBe('')
  })
})

describe('what people read', () => {
  const plain = stylesFor(output(), {})

  test('of findings', () => {
    const findings: Finding[] = [
      { area: 'store', status: 'ok', finding: 'Redis answers', cure: undefined },
      { area: 'store', status: 'warn', finding: 'slow', cure: 'haste' },
      { area: 'install', status: 'fail', finding: 'two\nlines', cure: 'one;\ntwo' },
    ]
    expect(describeFindings(findings, plain)).toBe(`store
  ok    Redis answers
  warn  slow
        cure: haste

install
  FAIL  two
        lines
        cure: one;
        two

1 failed, 1 to look at
`)
    expect(describeFindings(findings.slice(0, 1), plain)).toContain('nothing to cure')
    expect(describeFindings(findings, stylesFor(output({ isTTY: true }), {}))).toContain(
      '\x1b[31mFAIL\x1b[39m',
    )
  })

  const fine = { stale: 0, rate: 0, oldestStaleMs: null }
  const report: VerifyReport = {
    entries: 123_456,
    sampled: 10_000,
    checked: 9_990,
    stale: 3,
    rate: 3 / 9_990,
    oldestStaleMs: 7_300_000,
    inFlight: 2,
    overdue: 1,
    repaired: 0,
    unchecked: {
      gone: 9,
      otherSchema: 0,
      leased: 0,
      intended: 0,
      damaged: 0,
      unverifiable: 1,
      undeclared: 0,
    },
    shapes: [
      { model: 'users', shape: 'id', checked: 9_000, ...fine, examples: [] },
      {
        model: 'users',
        shape: 'org_id,role[]',
        checked: 990,
        stale: 3,
        rate: 3 / 990,
        oldestStaleMs: 7_300_000,
        examples: ['shop:users:org_id,role[]:7,admin'],
      },
      { model: 'orders', shape: 'id', checked: 0, ...fine, examples: [] },
    ],
    durationMs: 4321,
  }

  test('of a report', () => {
    expect(describeReport(report, plain)).toBe(`9,990 of 123,456 entries compared with the database in 4.3 s

shape                 checked  stale    rate  oldest
users  id               9,000      0  0.00 %
users  org_id,role[]      990      3  0.30 %     2 h
orders  id                  0      0

not compared: 9 gone or cleared, or filled under another Redis master
not compared: 1 whose key has only a hash of its values
2 differed, but were about to be cleared
3 stale (0.03 %), the oldest filled 2 h ago
1 of them wait in the outbox for a relay: loadstone doctor tells more
  shop:users:org_id,role[]:7,admin
--repair deletes them
`)
    expect(describeReport({ ...report, repaired: 3 }, plain)).toContain('\n3 deleted\n')
    expect(describeReport({ ...report, ...fine }, plain)).toContain('\nnothing is stale\n')
    expect(describeReport({ ...report, ...fine, checked: 0 }, plain)).toContain('\nnothing to compare\n')
    expect(describeReport({ ...report, rate: 1e-6 }, plain)).toContain('(0.0001 %)')
  })
})
