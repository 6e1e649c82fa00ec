import { describe, expect, test } from 'vitest'
import { InvalidKeyError } from '../../src/errors.ts'
import { canonicalizerOf } from '../../src/models/canonical.ts'
import { type Address, createAddressOf, defineShape } from '../../src/models/shape.ts'

type Normalize = (value: never) => unknown
type Columns = Record<string, string | [type: string, normalize: Normalize]>

/** Addresses of one shape of the model 'users', over columns of the given types. */
function addresses(kind: 'key' | 'filter', columns: Columns) {
  const fields = Object.keys(columns)
  const shape = defineShape(kind, fields)
  const types = Object.values(columns).map(
    (column) => (Array.isArray(column) ? column : [column, undefined]) as [string, Normalize | undefined],
  )
  const canonicalizers = types.map(([type], i) =>
    canonicalizerOf(
      {
        field: fields[i] as string,
        name: fields[i] as string,
        type,
        sqlType: type,
        labels: undefined,
        deterministic: true,
        nullable: true,
      },
      { date: 'local', timestamp: 'local' },
    ),
  )
  return createAddressOf(
    'users',
    shape,
    `shop:users:${shape.name}:`,
    canonicalizers,
    types.map(([, normalize]) => normalize),
  )
}

describe('an address', () => {
  test('has the cache key, and the texts for SQL in the order of the declared fields', () => {
    const addressOf = addresses('key', { org_id: 'int4', email: 'citext' })
    expect(addressOf({ email: 'Zoe@Example.org', org_id: '07' })).toEqual<Address>({
      key: 'shop:users:org_id,email:7,zoe@example.org',
      texts: ['7', 'zoe@example.org'],
      route: 'store',
    })
  })

  test('is one for values that Postgres calls equal', () => {
    const addressOf = addresses('key', { id: 'int8' })
    expect([42, 42n, '42', '042'].map((id) => addressOf({ id }).key)).toEqual(
      Array(4).fill('shop:users:id:42'),
    )
  })

  test('of a filter may hold NULL', () => {
    const addressOf = addresses('filter', { org_id: 'int4', role: 'text' })
    expect(addressOf({ org_id: null, role: '~' })).toEqual<Address>({
      key: 'shop:users:org_id,role[]:~,%7E',
      texts: [null, '~'],
      route: 'store',
    })
  })
})

describe('nowhere is gone to', () => {
  test('for a key with a NULL: it equals nothing', () => {
    expect(addresses('key', { id: 'int4' })({ id: null }).route).toBe('nowhere')
    expect(addresses('key', { org_id: 'int4', role: 'text' })({ org_id: null, role: 'admin' }).route).toBe(
      'nowhere',
    )
  })

  test('for a value that the type does not hold', () => {
    expect(addresses('key', { id: 'int4' })({ id: 4.2 }).route).toBe('nowhere')
    expect(addresses('filter', { id: 'int4', name: 'citext' })({ id: 2 ** 40, name: 'É' }).route).toBe(
      'nowhere',
    )
  })

  test('by keys of their own, so that an error tells what this lookup asked for', () => {
    const addressOf = addresses('key', { id: 'int4' })
    expect(addressOf({ id: 4.2 }).key).not.toBe(addressOf({ id: 4.3 }).key)
  })
})

describe('past the store goes', () => {
  test('what only the database can compare', () => {
    expect(addresses('key', { email: 'citext' })({ email: 'É' })).toEqual<Address>({
      key: 'shop:users:email:##source:É',
      texts: ['É'],
      route: 'source',
    })
  })

  test('a lookup with a key for the memo that no cache key and no other lookup has', () => {
    const citext = addresses('filter', { name: 'citext' })
    const given = ['É', '##source:É', '#source:É', '~', 'source:É']
    expect(new Set(given.map((name) => citext({ name }).key)).size).toBe(given.length)

    // What stands beside an uncertain value counts to the last bit.
    const times = addresses('filter', { name: 'citext', at: 'timestamptz' })
    const [one, other] = [1, 2].map((ms) => times({ name: 'É', at: new Date(ms) }).key)
    expect(one).not.toBe(other)
    const files = addresses('filter', { name: 'citext', hash: 'bytea' })
    const [oneHash, otherHash] = [0xff, 0xfe].map(
      (byte) => files({ name: 'É', hash: Buffer.from([byte]) }).key,
    )
    expect(oneHash).not.toBe(otherHash)
  })

  test('under one memo key if all that is certain is equal', () => {
    const addressOf = addresses('filter', { name: 'citext', org_id: 'int4' })
    expect(addressOf({ name: 'É', org_id: '07' }).key).toBe(addressOf({ name: 'É', org_id: 7n }).key)
  })
})

describe('normalize', () => {
  test('comes before the value is made a text', () => {
    const addressOf = addresses('key', { email: ['text', (email: string) => email.trim().toLowerCase()] })
    expect(addressOf({ email: ' Zoe@Example.org' }).texts).toEqual(['zoe@example.org'])
  })

  test('is not asked about NULL, nor about undefined', () => {
    const addressOf = addresses('filter', { email: ['text', (email: string) => email.toLowerCase()] })
    expect(addressOf({ email: null }).texts).toEqual([null])
    expect(() => addressOf({ email: undefined })).toThrow(InvalidKeyError)
  })

  test('may say that a value is NULL', () => {
    const addressOf = addresses('filter', { email: ['text', (email: string) => email || null] })
    expect(addressOf({ email: '' }).key).toBe('shop:users:email[]:~')
  })
})

test('a value that can be no key is refused with the name of its field', () => {
  const addressOf = addresses('key', { org_id: 'int4', email: 'text' })
  expect(() => addressOf({ org_id: 1, email: undefined })).toThrow(
    new InvalidKeyError('users', 'email', 'must be a text, but is undefined'),
  )
  expect(() => addressOf({ org_id: 'x', email: 'a' })).toThrow(
    "model 'users': field 'org_id' must be a number, but is the string x",
  )
})
