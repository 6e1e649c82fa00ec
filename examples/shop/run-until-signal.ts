/** Keeps a server example up until Ctrl-C, then closes what it opened. */
export async function runUntilSignal(close: () => Promise<unknown>): Promise<void> {
  await new Promise((resolve) => {
    process.once('SIGINT', resolve)
    process.once('SIGTERM', resolve)
  })
  await close()
}
