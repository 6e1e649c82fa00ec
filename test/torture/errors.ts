/** An error with its causes, on one line. */
export function describeError(error: unknown): string {
  const parts: string[] = []
  for (
    let each = error;
    each !== undefined && each !== null && parts.length < 4;
    each = (each as Error).cause
  ) {
    const { name, code, message } = each as { name?: string; code?: string; message?: string }
    parts.push([name, code, message ?? String(each)].filter(Boolean).join(' '))
  }
  return parts.join(' <- ').replaceAll('\n', ' ')
}
