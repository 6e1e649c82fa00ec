import { channel } from 'node:diagnostics_channel'

/**
 * `node:diagnostics_channel` channels. A message is made only when somebody listens.
 *
 * - `loadstone:wave`: a {@link WaveMessage} when a wave has ended, its fills included.
 * - `loadstone:breaker`: a {@link BreakerMessage} when the store's breaker has opened, or closed, or a probe has begun.
 * - `loadstone:replica`: a {@link ReplicaMessage} when the primary answers what was asked of the replica.
 */
export const channels = {
  wave: channel('loadstone:wave'),
  breaker: channel('loadstone:breaker'),
  replica: channel('loadstone:replica'),
}
