import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { escapeKeyPart, keyOf, modelPrefix } from '../../src/models/key.ts'
import { defineShape } from '../../src/models/shape.ts'

type Texts = readonly (string | null)[]

/** A cache key with all that is in it, as `bindModel` puts it together. */
function cacheKey(
  namespace: string,
  model: string,
  kind: 'key' | 'filter',
  fields: readonly string[],
  texts: Texts,
) {
  return keyOf(`${modelPrefix(namespace, model)}${defineShape(kind, fields).name}:`, texts)
}

describe('a cache key', () => {
  test('can be read: namespace, model, shape, values', () => {
    expect(cacheKey('shop', 'users', 'key', ['id'], ['42'])).toBe('shop:users:id:42')
    expect(cacheKey('shop', 'billing.invoices', 'key', ['org_id', 'number'], ['7', 'A-1'])).toBe(
      'shop:billing.invoices:org_id,number:7,A-1',
    )
    expect(cacheKey('shop', 'users', 'filter', ['org_id', 'role'], ['7', null])).toBe(
      'shop:users:org_id,role[]:7,~',
    )
    expect(cacheKey('shop', 'users', 'key', ['email'], ['zoë@bücher.example'])).toBe(
      'shop:users:email:zoë@bücher.example',
    )
  })

  test.each([
    ['a:b', 'a%3Ab'],
    ['a,b', 'a%2Cb'],
    ['100%', '100%25'],
    ['~', '%7E'],
    ['#', '%23'],
    ['a b\n', 'a%20b%0A'],
    ['[*?]\\', '%5B%2A%3F%5D%5C'],
    ['\x1b[2J\x9b', '%1B%5B2J%9B'],
    ['{tag}', '%7Btag%7D'],
    ['', ''],
  ])('writes %j as %j', (text, written) => {
    expect(escapeKeyPart(text)).toBe(written)
  })

  test('tells NULL, the empty text and "null" apart', () => {
    const keys = [null, '', 'null', '~'].map((text) => keyOf('p:', [text]))
    expect(keys).toEqual(['p:~', 'p:', 'p:null', 'p:%7E'])
  })

  test('tells a key field list from the same filter field list', () => {
    expect(defineShape('key', ['email']).name).not.toBe(defineShape('filter', ['email']).name)
    expect(defineShape('key', ['email[]']).name).not.toBe(defineShape('filter', ['email']).name)
  })

  test('stays short, whatever the values: from 160 characters on they are hashed', () => {
    expect(keyOf('p:', ['x'.repeat(160)])).toBe(`p:${'x'.repeat(160)}`)
    expect(keyOf('p:', ['x'.repeat(161)])).toMatch(/^p:#[\w-]{43}$/)
    expect(keyOf('p:', ['x'.repeat(10_000), 'y'])).toMatch(/^p:#[\w-]{43}$/)
    // Every character takes three when escaped, and it is the key that must be short.
    expect(keyOf('p:', [' '.repeat(54)])).toMatch(/^p:#/)
  })

  test('of hashed values differs by any of them, and from whoever spells the hash', () => {
    const long = 'x'.repeat(10_000)
    const keys = [[long, 'y'], [long, 'z'], ['y', long], [long, null], [`${long},y`], [`${long}y`]].map(
      (texts) => keyOf('p:', texts),
    )
    expect(new Set(keys).size).toBe(keys.length)
    const hash = keyOf('', [long])
    expect(keyOf('', [hash])).not.toBe(hash)
  })
})

describe('no two lookups share a cache key', () => {
  // Few pieces, so that two different lookups often come close.
  const piece = fc.oneof(
    {
      weight: 5,
      arbitrary: fc.constantFrom(
        ...':,%#~[]* 23AC7\n',
        '%3A',
        '%2C',
        '%25',
        '[]',
        '##',
        'é',
        'a\u0301',
        '😀',
        '\0',
        '\x9b',
        '\ufeff',
      ),
    },
    { weight: 1, arbitrary: fc.string({ unit: 'grapheme', maxLength: 3 }) },
    { weight: 1, arbitrary: fc.constantFrom('x'.repeat(159), 'x'.repeat(160), 'x'.repeat(10_000)) },
  )
  const text = fc.array(piece, { maxLength: 3 }).map((pieces) => pieces.join(''))
  const name = text.filter((given) => given !== '')
  const lookup = fc
    .record({
      namespace: name,
      model: name,
      kind: fc.constantFrom('key' as const, 'filter' as const),
      columns: fc.array(fc.record({ field: name, value: fc.option(text) }), { minLength: 1, maxLength: 3 }),
    })
    .map(({ namespace, model, kind, columns }) => ({
      parts: [
        namespace,
        model,
        kind,
        columns.map(({ field }) => field),
        columns.map(({ value }) => value),
      ] as const,
    }))

  const different = (one: unknown, other: unknown) => JSON.stringify(one) !== JSON.stringify(other)

  test('not when any part of them differs', () => {
    fc.assert(
      fc.property(lookup, lookup, fc.integer({ min: 0, max: 4 }), (one, other, at) => {
        // All parts of the first, but for one of the second.
        const [namespace, model, kind, fields, values] = one.parts.map((part, i) =>
          i === at ? other.parts[i] : part,
        ) as [...typeof one.parts]
        fc.pre(fields.length === values.length)
        const mixed = [namespace, model, kind, fields, values] as const
        expect(cacheKey(...mixed) !== cacheKey(...one.parts)).toBe(different(mixed, one.parts))
      }),
      { numRuns: 3_000, seed: 1 },
    )
  })

  test('not when the same text is cut at other places', () => {
    const cuts = fc.tuple(text, fc.array(fc.nat(), { maxLength: 2 }), fc.array(fc.nat(), { maxLength: 2 }))
    const cut = (whole: string, places: readonly number[]) => {
      const at = [0, ...places.map((place) => place % (whole.length + 1)).sort((a, b) => a - b), whole.length]
      return at.slice(1).map((end, i) => whole.slice(at[i], end))
    }
    fc.assert(
      fc.property(cuts, ([whole, some, others]) => {
        const one = cut(whole, some)
        const other = cut(whole, others)
        expect(keyOf('p:', one) !== keyOf('p:', other)).toBe(different(one, other))
      }),
      { numRuns: 3_000, seed: 2 },
    )
  })

  test('and none is long, or holds a blank, a control character or what SCAN MATCH gives a meaning to', () => {
    fc.assert(
      fc.property(fc.array(fc.option(text), { minLength: 1, maxLength: 3 }), (values) => {
        const key = keyOf('', values)
        expect(key.length).toBeLessThanOrEqual(160)
        expect(key).toMatch(/^#[\w-]{43}$|^[^\p{Cc} *?[\]\\#:]*$/u)
      }),
      { numRuns: 1_000, seed: 3 },
    )
  })
})
