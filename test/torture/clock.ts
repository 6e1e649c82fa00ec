/**
 * Milliseconds on a clock that all processes of a machine share. On Linux `hrtime` is CLOCK_MONOTONIC, which counts from
 * the start of the machine, so what two processes read of it can be compared.
 */
export function now(): number {
  return Number(process.hrtime.bigint() / 1000n) / 1000
}
