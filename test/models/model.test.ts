import { describe, expect, test } from 'vitest'
import { InvalidKeyError, ModelError, OptionError, ShapeNotDeclaredError } from '../../src/errors.ts'
import type { ColumnInfo, TableInfo } from '../../src/models/column.ts'
import { bindModel, defineModel, type ModelMeta, shapeOf, storedForm } from '../../src/models/model.ts'

const HOUR = 3_600_000
const DAY = 24 * HOUR

describe('a declaration', () => {
  test('may be no more than a key', () => {
    const model = defineModel('users', { keyFields: [['id']] })
    expect(model).toMatchObject({
      name: 'users',
      primaryKey: ['id'],
      columns: undefined,
      orderBy: [{ field: 'id', direction: 'asc' }],
      normalize: {},
      ttlMs: 7 * DAY,
      negativeTtlMs: HOUR,
      version: 0,
      maxListRows: 10_000,
      consistency: 'default',
      strictness: undefined,
    })
    expect(model.shapes.map(({ name }) => name)).toEqual(['id'])
    expect(Object.isFrozen(model)).toBe(true)
  })

  test('says all there is to say', () => {
    const lower = (email: string) => email.toLowerCase()
    const model = defineModel('users', {
      keyFields: [['org_id', 'number'], ['email']],
      filterFields: [['org_id', 'role'], ['email']],
      columns: ['email', 'number'],
      ttl: '10m',
      negativeTtl: '5s',
      version: 3,
      orderBy: [['created_at', 'desc'], 'number'],
      normalize: { email: lower },
      maxListRows: 50,
      consistency: 'strict',
      onRedisDown: 'proceed',
    })
    expect(model).toMatchObject({
      primaryKey: ['org_id', 'number'],
      columns: ['email', 'number'],
      ttlMs: 600_000,
      negativeTtlMs: 5_000,
      version: 3,
      normalize: { email: lower },
      maxListRows: 50,
      consistency: 'strict',
      strictness: 'proceed',
    })
    expect(model.shapes.map(({ name }) => name)).toEqual([
      'org_id,number',
      'email',
      'org_id,role[]',
      'email[]',
    ])
  })

  test('orders lists by what is declared, then by what the primary key has left', () => {
    const { orderBy } = defineModel('users', {
      keyFields: [['org_id', 'number']],
      orderBy: [['created_at', 'desc'], 'number'],
    })
    expect(orderBy).toEqual([
      { field: 'created_at', direction: 'desc' },
      { field: 'number', direction: 'asc' },
      { field: 'org_id', direction: 'asc' },
    ])
  })

  test('keeps absence for the ttl, but for an hour at most', () => {
    const negativeTtl = (ttl: ModelMeta['ttl']) =>
      defineModel('users', { keyFields: [['id']], ...(ttl !== undefined && { ttl }) }).negativeTtlMs
    expect([negativeTtl('5s'), negativeTtl('2h'), negativeTtl(undefined)]).toEqual([5_000, HOUR, HOUR])
  })

  test('is not changed by whoever made it', () => {
    const fields = ['id']
    const model = defineModel('users', { keyFields: [fields] })
    fields.push('email')
    expect(model.primaryKey).toEqual(['id'])
  })
})

describe('a bad declaration is refused by the name of its option', () => {
  const key = { keyFields: [['id']] }

  test.each<[meta: unknown, message: string]>([
    [undefined, "option 'users' must be an object with keyFields, but is undefined"],
    [null, "option 'users' must be an object with keyFields, but is null"],
    [
      {},
      "option 'users.keyFields' must be a list of field lists, such as [['id'], ['email']], but is undefined",
    ],
    [
      { keyFields: [] },
      "option 'users.keyFields' must be at least one field list, such as [['id']], but is []",
    ],
    [
      { keyFields: ['id'] },
      "option 'users.keyFields' must be lists of distinct field names, such as ['org_id', 'role'], but is \"id\"",
    ],
    [
      { keyFields: [[]] },
      "option 'users.keyFields' must be lists of distinct field names, such as ['org_id', 'role'], but is []",
    ],
    [
      { keyFields: [['id', 'id']] },
      "option 'users.keyFields' must be lists of distinct field names, such as ['org_id', 'role'], but is [\"id\",\"id\"]",
    ],
    [
      { keyFields: [['id', '']] },
      "option 'users.keyFields' must be lists of distinct field names, such as ['org_id', 'role'], but is [\"id\",\"\"]",
    ],
    [
      { ...key, filterFields: [['org_id'], 'role'] },
      "option 'users.filterFields' must be lists of distinct field names, such as ['org_id', 'role'], but is \"role\"",
    ],
    [
      { ...key, filterFields: { org_id: true } },
      "option 'users.filterFields' must be a list of field lists, such as [['id'], ['email']], but is {\"org_id\":true}",
    ],
    [
      { ...key, columns: [] },
      "option 'users.columns' must be lists of distinct field names, such as ['org_id', 'role'], but is []",
    ],
    [
      { ...key, columns: ['id', 7] },
      "option 'users.columns' must be lists of distinct field names, such as ['org_id', 'role'], but is [\"id\",7]",
    ],
    [
      { ...key, ttl: 0 },
      "option 'users.ttl' must be a duration of at least 1 ms, such as 5000, '5s' or '7d', but is 0",
    ],
    [
      { ...key, ttl: '7 days' },
      "option 'users.ttl' must be a duration of at least 1 ms, such as 5000, '5s' or '7d', but is \"7 days\"",
    ],
    [
      { ...key, ttl: Infinity },
      "option 'users.ttl' must be a duration of at least 1 ms, such as 5000, '5s' or '7d', but is Infinity",
    ],
    [
      { ...key, negativeTtl: 1.5 },
      "option 'users.negativeTtl' must be a duration of at least 1 ms, such as 5000, '5s' or '7d', but is 1.5",
    ],
    [{ ...key, version: -1 }, "option 'users.version' must be a whole number from 0 to 65000, but is -1"],
    [
      { ...key, version: 65_001 },
      "option 'users.version' must be a whole number from 0 to 65000, but is 65001",
    ],
    [{ ...key, version: '2' }, 'option \'users.version\' must be a whole number from 0 to 65000, but is "2"'],
    [
      { ...key, orderBy: 'created_at' },
      "option 'users.orderBy' must be a list such as [['created_at', 'desc'], 'id'], but is \"created_at\"",
    ],
    [
      { ...key, orderBy: [['created_at', 'DESC']] },
      "option 'users.orderBy' must be made of fields and [field, 'asc' | 'desc'] pairs, but is [\"created_at\",\"DESC\"]",
    ],
    [
      { ...key, orderBy: [['created_at']] },
      "option 'users.orderBy' must be made of fields and [field, 'asc' | 'desc'] pairs, but is [\"created_at\"]",
    ],
    [
      { ...key, normalize: { id: 'trim' } },
      'option \'users.normalize.id\' must be a function, but is "trim"',
    ],
    [
      { ...key, normalize: { name: String } },
      "option 'users.normalize.name' must be for a field of keyFields or filterFields, but is function String",
    ],
    [
      { ...key, normalize: 5 },
      "option 'users.normalize' must be an object of functions, one per field, but is 5",
    ],
    [
      { ...key, normalize: [] },
      "option 'users.normalize' must be an object of functions, one per field, but is []",
    ],
    [
      { ...key, maxListRows: -1 },
      "option 'users.maxListRows' must be a whole number of at least 0, but is -1",
    ],
    [
      { ...key, consistency: 'eventual' },
      "option 'users.consistency' must be 'default' or 'strict', but is \"eventual\"",
    ],
    [
      { ...key, onRedisDown: 'wait' },
      "option 'users.onRedisDown' must be 'abort' or 'proceed', but is \"wait\"",
    ],
    [
      { ...key, filterfields: [['role']] },
      "option 'users.filterfields' must be left out; known are keyFields, filterFields, columns, ttl, negativeTtl, " +
        'version, orderBy, normalize, relations, extend, scopeBy, maxListRows, consistency, onRedisDown, invalidation, staleFor, codec, enabled, but is "given"',
    ],
  ])('%j', (meta, message) => {
    const declare = () => defineModel('users', meta as ModelMeta)
    expect(declare).toThrow(OptionError)
    expect(declare).toThrow(message)
  })

  test.each([[''], [undefined], [7]])('for a table called %j', (name) => {
    expect(() => defineModel(name as string, key)).toThrow("option 'table' must be the name of a table")
  })

  test('for a shape that is declared twice, in whatever order of its fields', () => {
    const twice = (meta: ModelMeta) => () => defineModel('users', meta)
    expect(twice({ keyFields: [['a', 'b'], ['c'], ['b', 'a']] })).toThrow(
      new ModelError('users', 'keyFields [b, a] are declared twice'),
    )
    expect(twice({ keyFields: [['id']], filterFields: [['a'], ['a']] })).toThrow(
      new ModelError('users', 'filterFields [a] are declared twice'),
    )
    // A key may be filtered by as well; and these two only look alike.
    expect(twice({ keyFields: [['id'], ['a,b'], ['a', 'b']], filterFields: [['id']] })).not.toThrow()
  })
})

describe('the shape of a lookup', () => {
  const model = defineModel('users', {
    keyFields: [['id'], ['org_id', 'number']],
    filterFields: [['org_id'], ['org_id', 'role']],
  })

  test.each<['key' | 'filter', object, string]>([
    ['key', { id: 1 }, 'id'],
    ['key', { number: 1, org_id: 2 }, 'org_id,number'],
    ['filter', { org_id: null }, 'org_id[]'],
    ['filter', { role: 'admin', org_id: 1 }, 'org_id,role[]'],
    ['key', { id: undefined }, 'id'],
  ])('%s by %j', (kind, values, name) => {
    expect(shapeOf(model, kind, values).name).toBe(name)
  })

  test.each<['key' | 'filter', object, string]>([
    [
      'key',
      { email: 'a' },
      "model 'users' has no keyFields ['email']; declared: ['id'], ['org_id', 'number'].",
    ],
    [
      'key',
      { org_id: 1 },
      "model 'users' has no keyFields ['org_id']; declared: ['id'], ['org_id', 'number'].",
    ],
    ['key', { id: 1, org_id: 1 }, "model 'users' has no keyFields ['id', 'org_id']; declared:"],
    ['key', {}, "model 'users' has no keyFields []; declared:"],
    ['key', [1], "model 'users' has no keyFields ['0']; declared:"],
    [
      'filter',
      { role: 'admin' },
      "model 'users' has no filterFields ['role']; declared: ['org_id'], ['org_id', 'role'].",
    ],
    ['filter', { toString: 1 }, "model 'users' has no filterFields ['toString']; declared:"],
  ])('%s by %j is none that is declared', (kind, values, message) => {
    expect(() => shapeOf(model, kind, values)).toThrow(ShapeNotDeclaredError)
    expect(() => shapeOf(model, kind, values)).toThrow(message)
  })

  test('is not told of a filter when there are none', () => {
    const plain = defineModel('users', { keyFields: [['id']] })
    expect(() => shapeOf(plain, 'filter', { id: 1 })).toThrow(
      "model 'users' has no filterFields ['id']; declared: none. Add ['id'] to filterFields, or look up by a declared one",
    )
  })

  test('a field too many that is undefined is named: it is a mistake of the caller, not of the declaration', () => {
    expect(() => shapeOf(model, 'key', { id: 1, email: undefined })).toThrow(
      new InvalidKeyError('users', 'email', 'must not be undefined'),
    )
  })

  test.each([[undefined], [null], [42], ['42']])('%j is no object', (values) => {
    expect(() => shapeOf(model, 'key', values)).toThrow(InvalidKeyError)
    expect(() => shapeOf(model, 'key', values)).toThrow('is missing: a lookup takes an object such as { id }')
  })
})

describe('a model that is bound to its table', () => {
  const column = (name: string, type: string): ColumnInfo => ({
    field: name,
    name,
    type,
    sqlType: type,
    labels: undefined,
    deterministic: true,
    nullable: false,
  })
  const tableOf = (...columns: ColumnInfo[]): TableInfo => ({
    schema: 'public',
    name: 'users',
    columns,
    byField: new Map(columns.map((each) => [each.field, each])),
    dates: { date: 'local', timestamp: 'local' },
  })
  const definition = defineModel('users', { keyFields: [['id']], filterFields: [['role']] })

  test('has an address for every shape', () => {
    const bound = bindModel('shop', definition, tableOf(column('id', 'int4'), column('role', 'text')), 7, [])
    const [id, role] = definition.shapes.map((shape) => bound.targets.get(shape)?.addressOf)
    expect(id?.({ id: '1' }).key).toBe('shop:users:id:1')
    expect(role?.({ role: null }).key).toBe('shop:users:role[]:~')
    expect(bound.prefix).toBe('shop:users:')
    expect(bound.schema).toBe(7)
  })

  test('is a ModelError without a column for a field', () => {
    expect(() => bindModel('shop', definition, tableOf(column('id', 'int4')), 0, [])).toThrow(
      new ModelError('users', "the table has no column for field 'role'"),
    )
  })

  test('is another stored form with another version, other columns, their order, names or types', () => {
    const forms = [
      [definition, tableOf(column('id', 'int4'), column('role', 'text'))],
      [definition, tableOf(column('id', 'int8'), column('role', 'text'))],
      [definition, tableOf(column('role', 'text'), column('id', 'int4'))],
      [definition, tableOf(column('id', 'int4'), column('role', 'text'), column('email', 'text'))],
      [definition, tableOf(column('id', 'int4'), { ...column('role', 'text'), name: 'user_role' })],
      [{ ...definition, version: 1 }, tableOf(column('id', 'int4'), column('role', 'text'))],
    ] as const
    expect(new Set(forms.map(([model, table]) => storedForm(model, table))).size).toBe(forms.length)
  })
})
