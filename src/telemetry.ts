import { channel } from 'node:diagnostics_channel'

/**
 * `node:diagnostics_channel` channels. A message is made only when somebody listens.
 *
 * - `loadstone:wave`: a {@link WaveMessage} when a wave has ended, its fills included.
 * - `loadstone:replica`: a {@link ReplicaMessage} when the primary answers what was asked of the replica.
 */
export const channels = { wave: channel('loadstone:wave'), replica: channel('loadstone:replica') }
