import { fileURLToPath } from 'node:url'
import ts from 'typescript'
import { beforeAll, describe, expect, test } from 'vitest'

/*
 * What an editor shows and suggests to somebody who uses a model: the types as they are printed, not as they are
 * computed.
 */

const root = fileURLToPath(new URL('../../', import.meta.url))
/** A file beside the fixture; it exists only here. `|` marks where the cursor stands, once for each completion. */
const FILE = fileURLToPath(new URL('./editor.ts', import.meta.url))
const TEXT = `
  import { batch } from 'loadstone'
  import { cache, Invoice, Short, User } from './fixture.ts'
  import { Event, linked, PrimaryAvatar, portal, User as Person, UsersOfTeam } from './relations-fixture.ts'

  export const getUser = User.cache.getAsync
  export const getUserOrNone = User.cache.getAsyncOrNone
  export const filterUsers = User.cache.filterAsync
  export const getShort = Short.cache.getAsync
  export const filterShort = Short.cache.filterAsync
  export const getInvoice = Invoice.cache.getAsync
  export const personWith = await Person.cache.getAsync({ id: 1 }, { with: ['team'] })
  export const eventWith = await linked.Event.cache.getAsync({ id: 1 }, { with: ['tags', { owner: [{ team: ['users'] }] }] })
  export const relation = Event.cache.relation(await Event.cache.getAsync({ id: 1 }), 'tags')
  export const mates = portal.related({ name: 'Mates', model: linked.Event, keyFields: ['slug'], path: ['owner', 'team', 'users'] })
  export const extended = Person.cache.ofTeam
  export const usersOfTeam = UsersOfTeam
  export const query = PrimaryAvatar(1)
  export const answers = await batch({ event: Event.cache.getQuery({ id: 1 }), avatars: [query] })
  export const known = await batch({ avatar: query }, { onlyCache: true, errors: 'null' })

  cache.model('|')
  cache.model('users', { | })
  cache.model('users', { keyFields: [['|']] })
  cache.model('users', { keyFields: [['id'], ['org_id', '|']] })
  cache.model('users', { keyFields: [['id']], filterFields: [['|']] })
  cache.model('users', { keyFields: [['id']], columns: ['|'] })
  cache.model('users', { keyFields: [['id']], orderBy: ['|'] })
  cache.model('users', { keyFields: [['id']], orderBy: [['id', '|']] })
  cache.model('users', { keyFields: [['id']], normalize: { | } })
  void User.cache.getAsync({ | })
  void User.cache.getAsync({ org_id: 7, | })
  void User.cache.filterAsync({ org_id: 7, role: '|' })
  portal.model('users', { keyFields: [['id']], relations: { team: { one: '|' } } })
  portal.model('users', { keyFields: [['id']], relations: { team: { one: 'teams', on: { | } } } })
  portal.model('events', { keyFields: [['id']], relations: { tags: { many: 'tags', through: '|' } } })
  void Person.cache.getAsync({ id: 1 }, { with: ['|'] })
  void linked.User.cache.getAsync({ id: 1 }, { with: [{ | }] })
  void linked.User.cache.getAsync({ id: 1 }, { with: ['avatars', { | }] })
  void linked.User.cache.getAsync({ id: 1 }, { with: [{ team: ['|'] }] })
  void linked.User.cache.filterAsync({ name: 'x' }, { with: [{ team: [{ users: ['|'] }] }] })
`
const [TEXT_WITHOUT_CURSORS, CURSORS] = withoutCursors(TEXT)

let service: ts.LanguageService

beforeAll(() => {
  service = languageService(TEXT_WITHOUT_CURSORS)
  // The compiler reads its libraries once, for all tests.
  service.getProgram()
}, 60_000)

describe('in declarations, and so in hovers', () => {
  let declarations: string

  beforeAll(() => {
    const [file] = service.getEmitOutput(FILE, true, true).outputFiles
    declarations = (file as ts.OutputFile).text
  }, 60_000)

  const printed = (name: string) => {
    const [, type] = new RegExp(`const ${name}: (.*?);\\n(?=export|$)`, 's').exec(declarations) ?? []
    return type
  }

  test('a lookup takes any one of the declared field lists, and resolves to a row', () => {
    expect(printed('getUser')).toBe(`(key: {
    id: number;
    email?: never;
    first_name?: never;
    org_id?: never;
} | {
    email: string;
    id?: never;
    first_name?: never;
    org_id?: never;
} | {
    first_name: string | null;
    org_id: number | null;
    id?: never;
    email?: never;
}) => Promise<{
    readonly id: number;
    readonly email: string;
    readonly first_name: string | null;
    readonly org_id: number | null;
    readonly role: "admin" | "member";
    readonly created_at: Date;
    readonly settings: {
        theme: "dark" | "light";
        tags: string[];
    };
    readonly balance: string;
}>`)
  })

  test('with one field list, there is nothing that it must not have', () => {
    expect(printed('getShort')).toBe(`(key: {
    id: number;
}) => Promise<{
    readonly id: number;
    readonly email: string;
}>`)
    expect(printed('getInvoice')).toBe(`(key: {
    org_id: number;
    number: string;
}) => Promise<{
    readonly org_id: number;
    readonly number: string;
    readonly amount: bigint;
    readonly paid: boolean;
}>`)
  })

  test('there may be no row, and there may be several', () => {
    expect(printed('getUserOrNone')).toMatch(
      /^\(key: \{.*\}\) => Promise<\{\n {4}readonly id: number;.*\} \| null>$/s,
    )
    expect(printed('filterUsers')).toMatch(
      /^\(filter: \{\n {4}first_name: string \| null;\n {4}org_id\?: never;.*\}\) => Promise<readonly \{\n {4}readonly id: number;.*\}\[\]>$/s,
    )
    expect(printed('filterShort')).toMatch(/^\(filter: never\) => /)
  })

  test('a row with its relations, and a relation alone', () => {
    expect(printed('personWith')).toBe(`{
    readonly id: number;
    readonly email: string;
    readonly team_id: number | null;
    readonly name: string;
    readonly team: {
        readonly id: number;
        readonly name: string;
    } | null;
}`)
    expect(printed('relation')).toBe(`Promise<readonly {
    readonly id: number;
    readonly name: string;
}[]>`)
  })

  test('a row with the relations of its relations', () => {
    expect(printed('eventWith')).toBe(`{
    readonly id: number;
    readonly slug: string;
    readonly title: string;
    readonly owner_id: number | null;
    readonly tags: readonly {
        readonly id: number;
        readonly name: string;
    }[];
    readonly owner: {
        readonly id: number;
        readonly email: string;
        readonly team_id: number | null;
        readonly name: string;
        readonly team: {
            readonly id: number;
            readonly name: string;
            readonly users: readonly {
                readonly id: number;
                readonly email: string;
                readonly team_id: number | null;
                readonly name: string;
            }[];
        } | null;
    } | null;
}`)
  })

  test('what extend has added, and what a custom cache takes', () => {
    expect(printed('extended')).toMatch(/^\(id: number\) => Promise<readonly \{\n {4}readonly id: number;/)
    expect(printed('usersOfTeam')).toMatch(
      /^import\("loadstone"\)\.CustomCache<\{\n {4}readonly team_id: number \| \{\n {8}readonly id: number;\n {4}\} \| null;\n\}, \[number \| null\], readonly \{/,
    )
  })

  test('a cache of the rows at the end of a path of relations', () => {
    expect(printed('mates')).toBe(`import("loadstone").CustomCache<{
    readonly slug: string;
}, [string], readonly {
    readonly id: number;
    readonly email: string;
    readonly team_id: number | null;
    readonly name: string;
}[]>`)
  })

  test('a batch', () => {
    expect(printed('query')).toBe('import("loadstone").Query<string | null, never>')
    expect(printed('answers')).toBe(`{
    event: {
        readonly id: number;
        readonly slug: string;
        readonly title: string;
        readonly owner_id: number | null;
    };
    avatars: [string | null];
}`)
    expect(printed('known')).toBe(`{
    avatar: string | null | undefined;
}`)
  })

  test('nothing but the user’s own names, and those of the language', () => {
    for (const name of [
      'getUser',
      'getUserOrNone',
      'filterUsers',
      'getShort',
      'filterShort',
      'getInvoice',
      'personWith',
      'eventWith',
      'relation',
      'extended',
      'usersOfTeam',
      'answers',
      'known',
    ]) {
      expect(printed(name)).not.toMatch(/Selectable|Pick|Omit|Readonly<|ColumnType|Generated|Flatten|\.\.\./)
    }
  })
})

describe('an editor suggests', () => {
  const columns = ['balance', 'created_at', 'email', 'first_name', 'id', 'org_id', 'role', 'settings']

  test.each<[at: string, suggested: string[]]>([
    ["cache.model('|')", ['audit', 'billing.invoices', 'users']],
    ["keyFields: [['|']] })", columns],
    ["['org_id', '|']", columns],
    ["filterFields: [['|']]", columns],
    ["columns: ['|']", columns],
    ["orderBy: ['|']", columns],
    ["[['id', '|']]", ['asc', 'desc']],
    ['normalize: { | }', columns],
    ['getAsync({ | })', ['email', 'first_name', 'id', 'org_id']],
    ["role: '|'", ['admin', 'member']],
    ["{ one: '|' }", ['avatars', 'event_tags', 'events', 'tags', 'teams', 'users']],
    ['on: { | }', ['email', 'id', 'name', 'team_id']],
    ["through: '|'", ['avatars', 'event_tags', 'events', 'tags', 'teams', 'users']],
    ["with: ['|']", ['avatars', 'team']],
    ['with: [{ | }]', ['avatars', 'team']],
    ["with: ['avatars', { | }]", ['avatars', 'team']],
    ["with: [{ team: ['|'] }]", ['users']],
    ["with: [{ team: [{ users: ['|'] }] }]", ['avatars', 'team']],
  ])('at %s', (at, suggested) => {
    expect(suggestions(at)).toEqual(suggested)
  })

  test('the options of a model', () => {
    expect(suggestions("cache.model('users', { | })")).toEqual(
      expect.arrayContaining([
        'keyFields',
        'filterFields',
        'columns',
        'orderBy',
        'normalize',
        'ttl',
        'version',
      ]),
    )
  })

  test('what a composite still lacks', () => {
    expect(suggestions('getAsync({ org_id: 7, | })')).toContain('first_name')
  })
})

function suggestions(at: string): string[] | undefined {
  const cursor = TEXT.indexOf(at) + at.indexOf('|')
  const position = CURSORS.get(cursor) as number
  return service
    .getCompletionsAtPosition(FILE, position, undefined)
    ?.entries.map(({ name }) => name)
    .sort()
}

/** The text without its cursors, and where each of them stands in it. */
function withoutCursors(text: string): [text: string, positions: ReadonlyMap<number, number>] {
  const positions = new Map<number, number>()
  for (const { index } of text.matchAll(/(?<=')\||\|(?= })/g)) positions.set(index, index - positions.size)
  return [text.replace(/(?<=')\||\|(?= })/g, ''), positions]
}

/** TypeScript as an editor runs it, with the options of this repository. */
function languageService(text: string): ts.LanguageService {
  const { config } = ts.readConfigFile(`${root}tsconfig.json`, ts.sys.readFile)
  const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root)
  const read = (path: string) => (path === FILE ? text : ts.sys.readFile(path))
  return ts.createLanguageService({
    getCompilationSettings: () => ({
      ...options,
      noEmit: false,
      declaration: true,
      emitDeclarationOnly: true,
    }),
    getScriptFileNames: () => [FILE],
    getScriptVersion: () => '1',
    getScriptSnapshot: (path) => {
      const content = read(path)
      return content === undefined ? undefined : ts.ScriptSnapshot.fromString(content)
    },
    getCurrentDirectory: () => root,
    getDefaultLibFileName: ts.getDefaultLibFilePath,
    readFile: read,
    readDirectory: ts.sys.readDirectory,
    directoryExists: ts.sys.directoryExists,
    getDirectories: ts.sys.getDirectories,
    fileExists: (path) => path === FILE || ts.sys.fileExists(path),
  })
}
