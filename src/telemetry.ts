import { channel } from 'node:diagnostics_channel'

/**
 * `node:diagnostics_channel` channels. A message is made only when somebody listens.
 *
 * - `loadstone:wave`: a {@link WaveMessage} when a wave has ended, its fills included.
 */
export const channels = { wave: channel('loadstone:wave') }
