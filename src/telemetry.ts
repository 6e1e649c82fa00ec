import { channel } from 'node:diagnostics_channel'

/**
 * `node:diagnostics_channel` channels. A message is made only when somebody listens.
 *
 * - `loadstone:wave`: a {@link WaveMessage} when a wave has ended, its fills included.
 * - `loadstone:breaker`: a {@link BreakerMessage} when the store's breaker has opened, or closed, or a probe has begun.
 */
export const channels = { wave: channel('loadstone:wave'), breaker: channel('loadstone:breaker') }
