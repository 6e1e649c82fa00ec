/** Five tables of one form, so that a mix of models differs from one model in nothing but their number. */
export const TABLES = ['users', 'members', 'guests', 'authors', 'editors'] as const

export type TableName = (typeof TABLES)[number]

export interface UserRow {
  readonly id: number
  readonly uuid: string
  readonly email: string
  readonly first_name: string
  readonly last_name: string
  readonly org_id: number
  readonly role: string | null
  readonly active: boolean
  readonly created_at: Date
  readonly updated_at: Date
}

export type Database = Record<TableName, UserRow>

/** How many rows each table has. Cold workloads need many different ones, and look up users only. */
export const ROW_COUNT: Readonly<Record<TableName, number>> = {
  users: 20_000,
  members: 100,
  guests: 100,
  authors: 100,
  editors: 100,
}

export const ROWS_PER_ORG = 10

export const COLUMNS = `
  id int primary key,
  uuid uuid not null unique,
  email text not null unique,
  first_name text not null,
  last_name text not null,
  org_id int not null,
  role text,
  active boolean not null,
  created_at timestamptz not null,
  updated_at timestamptz not null`

// One name in eight is beyond ASCII, one in sixteen beyond Latin-1: such rows take other paths through JSON and codecs.
const FIRST_NAMES = [
  'Alexandra Charlotte Henrietta',
  'Bartholomew James Theodore',
  'Christopher Emmanuel Louis',
  'Dominique Geneviève Aurélie',
  'Esmeralda Francesca Valentina',
  'Frederick Augustus Ferdinand',
  'Guillermina Isabel Magdalena',
  'Hildegard Konstanze Friederike',
  'Ignatius Leopold Maximilian',
  'Josephine Marguerite Antoinette',
  'Katherine Lucinda Evangeline',
  'Lawrence Nathaniel Sebastian',
  'Maximilian Oswald Reinhardt',
  'Nikolaos Παναγιώτης Konstantin',
  'Octavia Philippa Seraphina',
  'Persephone Rosalind Winifred',
]
const LAST_NAMES = [
  'Abercrombie-Fitzgerald of Dunmore and Kilbride',
  'Bartholomew-Worthington of Exeter and Honiton',
  'Cunningham-Featherstone of Harrow and Wembley',
  'Donaldson-Grosvenor of Inverness and Aviemore',
  'Etherington-Hawthorne of Jersey and Guernsey',
  'Featherstonehaugh-King of Leeds and Wakefield',
  'Goldsborough-Montgomery of Norwich and Cromer',
]
const ROLES = [
  'administrator of the whole organisation',
  'editor of all publications',
  'viewer',
  null,
  'billing contact',
]

/** The row with this id: always the same one. About 500 bytes of JSON. */
export function rowOf(table: TableName, id: number): UserRow {
  const seed = id + TABLES.indexOf(table) * 1_000_003
  const first = pick(FIRST_NAMES, seed)
  const last = pick(LAST_NAMES, seed >> 2)
  const created = Date.UTC(2015, 0, 1) + ((seed * 7_919_317) % 300_000_000) * 1_000
  return {
    id,
    uuid: uuidOf(seed),
    email: `${first}.${last}.${seed}@${table}.product-engineering.subsidiary.holdings.example-corporation.com`
      .toLowerCase()
      .replaceAll(' ', '-'),
    first_name: first,
    last_name: last,
    org_id: Math.ceil(id / ROWS_PER_ORG),
    role: pick(ROLES, seed),
    active: seed % 7 !== 0,
    created_at: new Date(created),
    updated_at: new Date(created + (seed % 86_400) * 977),
  }
}

/** The ids of an organisation's users, in order. */
export function idsOfOrg(org: number): number[] {
  return range(ROWS_PER_ORG, (org - 1) * ROWS_PER_ORG + 1)
}

export function range(count: number, from: number): number[] {
  return Array.from({ length: count }, (_, i) => from + i)
}

function pick<T>(items: readonly T[], seed: number): T {
  return items[seed % items.length] as T
}

function uuidOf(seed: number): string {
  let hex = ''
  for (let i = 1; i <= 4; i++)
    hex += (Math.imul(seed ^ (i * 0x9e3779b9), 0x85ebca6b) >>> 0).toString(16).padStart(8, '0')
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}
