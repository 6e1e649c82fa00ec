export {
  type BreakerMessage,
  type Cache,
  type CacheStats,
  createModelCache,
} from './cache.ts'
export type {
  CacheOptions,
  DatabaseOptions,
  FallbackOptions,
  RelayOptions,
  ReplicaOptions,
} from './cache-options.ts'
export type { CustomLoader, CustomOptions, LoadContext } from './custom-caches.ts'
export type { DatabaseCache, DatabaseOperations, Model } from './database-cache.ts'
export {
  CacheClosedError,
  CommitOutcomeUnknownError,
  InstallError,
  InvalidKeyError,
  LoadError,
  LoadstoneError,
  ModelError,
  NotFoundError,
  NotFoundHttpError,
  NotUniqueError,
  OptionError,
  OverloadedError,
  PlanError,
  ScopeDimensionError,
  ShapeNotDeclaredError,
  SourceError,
  StoreUnavailableError,
  StrictWriteError,
  TransactionUseError,
  UnknownTypeError,
  type Unreachable,
} from './errors.ts'
export { withInvalidation } from './invalidation/dialect.ts'
export type { Finding } from './invalidation/doctor.ts'
export type { InvalidationCounters } from './invalidation/party.ts'
export type { TransactionOptions } from './invalidation/transaction.ts'
export type {
  ShapeStaleness,
  Staleness,
  Unchecked,
  VerifyOptions,
  VerifyProgress,
  VerifyReport,
} from './invalidation/verify.ts'
export { type BatchOptions, batch, type OpenBatch, openBatch } from './loaders/batch.ts'
export type { CustomCache } from './loaders/custom-cache.ts'
export type { WaveMessage } from './loaders/dispatcher.ts'
export type { Trips } from './loaders/driver.ts'
export type { AnswerMeta } from './loaders/lookup.ts'
export type { ModelCache, RelatedModelCache, WithOptions } from './loaders/model-cache.ts'
export type { Query, ResolveOptions } from './loaders/query.ts'
export {
  currentScope,
  resetScope,
  runInLoop,
  type Scope,
  type ScopeDimensions,
  type ScopeOptions,
} from './loaders/scope.ts'
export type { WaveCounts } from './loaders/wave.ts'
export type { ValueType } from './models/codec.ts'
export type { Codec } from './models/codec-layer.ts'
export { type CompressedOptions, compressed } from './models/compressed.ts'
export { doNotCache } from './models/custom.ts'
export type { ModelMeta } from './models/model.ts'
export type { Relation, WithRelations } from './models/relation.ts'
export type { FieldName, LookupKey, Row, TableName } from './models/types.ts'
export type { Duration } from './options.ts'
export type { Plan, WayOptions } from './plans/plan.ts'
export type { Polymorphic, PolymorphicOptions } from './polymorphic.ts'
export type { FallbackReason, LoadedShape, ReplicaCounts, ReplicaMessage } from './sources/replica.ts'
export type { BreakerState } from './stores/breaker.ts'
export type { MemoryStoreOptions } from './stores/memory.ts'
export type { RedisClient } from './stores/redis.ts'
export type { ClusterClient } from './stores/topology.ts'
