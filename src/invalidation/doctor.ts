import { messageOf } from '../errors.ts'
import type { Binder } from '../loaders/binder.ts'
import { unusedKey } from '../models/key.ts'
import type { BoundModel } from '../models/model.ts'
import type { Database } from '../sources/database.ts'
import type { ReplicaSettings } from '../sources/replica.ts'
import type { CacheStore } from '../stores/store.ts'
import { diagnoseDatabase } from './doctor-database.ts'
import { diagnoseIndexes } from './doctor-models.ts'
import { diagnoseReplica } from './doctor-replica.ts'
import { diagnoseStore } from './doctor-store.ts'
import { type Finding, fail, ok, warn } from './findings.ts'
import { type InstallState, inspectInstall, type ModelState } from './inspect.ts'
import { SCHEMA } from './outbox.ts'
import { planModels } from './recording.ts'

export type { Finding } from './findings.ts'

export interface DoctorParts {
  readonly namespace: string
  readonly store: CacheStore
  readonly binder: Binder
  /** Without plugins. */
  readonly db: Database
  readonly maxTouchedRows: number
  readonly invalidation: 'triggers' | 'manual'
  /** Whether `db` is made with `withInvalidation(dialect)`. */
  readonly dialectInvalidates: boolean
  readonly replica: ReplicaSettings | undefined
}

const INSTALL = 'run cache.install() or loadstone install'

/**
 * Looks at everything a cache depends on, and changes nothing. Never rejects: what cannot be reached or asked is a
 * finding.
 *
 * @returns findings in the order of their areas, fine ones included
 */
export async function diagnose(parts: DoctorParts): Promise<Finding[]> {
  const [store, database] = await Promise.all([
    diagnoseStore(
      parts.store,
      parts.binder.bindings.map(({ definition }) => unusedKey(parts.namespace, definition.name)),
    ),
    diagnoseDatabase(parts.db, parts.namespace, parts.invalidation),
  ])
  const isThere = database.length > 1
  const replica = parts.replica && isThere ? await diagnoseReplica(parts.db, parts.replica) : []
  const models = isThere ? await diagnoseModels(parts) : []
  return [...store, ...database, ...replica, writes(parts), ...models]
}

function writes({ invalidation, dialectInvalidates }: DoctorParts): Finding {
  if (invalidation === 'manual') {
    return ok(
      'writes',
      "invalidation is 'manual': entries live until their ttl, or until invalidate or clear is called",
    )
  }
  if (dialectInvalidates) return ok('writes', 'commits through db invalidate before they return')
  return warn(
    'writes',
    'db is made without withInvalidation: also what this application writes itself is invalidated by the relay, a moment later',
    'new Kysely({ dialect: withInvalidation(dialect) })',
  )
}

async function diagnoseModels({
  binder,
  db,
  namespace,
  maxTouchedRows,
  invalidation,
}: DoctorParts): Promise<Finding[]> {
  const findings: Finding[] = []
  const bound: BoundModel[] = []
  if (binder.bindings.length === 0) {
    findings.push(
      warn(
        'models',
        'none are declared',
        'have the modules imported that call cache.model(), then ask again',
      ),
    )
  }
  for (const binding of binder.bindings) {
    try {
      bound.push(await binder.bind(binding))
    } catch (error) {
      findings.push(fail('models', messageOf(error), 'correct the declaration, or migrate the table'))
    }
  }
  const checks = [
    async () => {
      if (invalidation === 'manual') return []
      const plan = {
        namespace,
        maxTouchedRows,
        models: planModels(bound),
      }
      return installFindings(await inspectInstall(db, plan))
    },
    () => diagnoseIndexes(db, bound),
  ]
  for (const check of checks) {
    try {
      findings.push(...(await check()))
    } catch (error) {
      findings.push(
        fail('models', `a check failed: ${messageOf(error)}`, 'see whether db may read the catalog'),
      )
    }
  }
  return findings
}

function installFindings({ shared, missingRights, models }: InstallState): Finding[] {
  if (shared === 'missing') {
    return [
      fail(
        'install',
        'nothing is installed: no write is recorded, entries live until the end of their ttl',
        INSTALL,
      ),
    ]
  }
  return [
    shared === 'installed'
      ? ok('install', `schema ${SCHEMA} is there`)
      : warn(
          'install',
          `schema ${SCHEMA} was made by another version of Loadstone`,
          `${INSTALL}, with the newest version in use`,
        ),
    ...missingRights.map((right) =>
      fail('install', `the role of db lacks ${right}: the relay cannot work`, `grant ${right} to the role`),
    ),
    ...models.flatMap(modelFindings),
  ]
}

function modelFindings({ model, state, problem, uncovered }: ModelState): Finding[] {
  const findings: Finding[] = []
  if (state === 'installed') findings.push(ok('install', `${model}: every write to its table is recorded`))
  else if (state === 'impossible') {
    findings.push(
      fail('install', `${model}: ${problem}`, 'declare the model on a table, or invalidate by hand'),
    )
  } else {
    findings.push(fail('install', `${model}: ${problem}`, INSTALL))
  }
  if (uncovered.length > 0) {
    findings.push(
      fail(
        'install',
        `${model}: writes that name ${uncovered.join(', ')} are not recorded`,
        `${INSTALL} again`,
      ),
    )
  }
  return findings
}
