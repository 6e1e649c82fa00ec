/** A name as SQL writes it, whatever is in it. */
export function quoteName(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

/** The name of a table with its schema. */
export function quoteTable({ schema, name }: { readonly schema: string; readonly name: string }): string {
  return `${quoteName(schema)}.${quoteName(name)}`
}

/** A text as SQL writes it, read alike by sessions with `standard_conforming_strings` on and off. */
export function quoteText(text: string): string {
  const quoted = `'${text.replaceAll("'", "''")}'`
  return text.includes('\\') ? `E${quoted.replaceAll('\\', '\\\\')}` : quoted
}

/** A body between dollar quotes that do not occur in it. */
export function dollarQuote(body: string): string {
  let tag = '$loadstone$'
  for (let i = 1; body.includes(tag.slice(0, -1)); i++) tag = `$loadstone${i}$`
  return `${tag}\n${body}\n${tag}`
}

/** A text as a comment, which must not end before the text does. */
export function commentLines(text: string): string {
  return text
    .split(/\r\n|[\n\r]/)
    .map((line) => (line ? `-- ${line}` : '--'))
    .join('\n')
}
