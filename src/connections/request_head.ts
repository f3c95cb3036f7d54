/**
 * The head of a request as the runtimes tell of it, written once more in the
 * way of a client that wastes nothing (RFC 9112, section 3): a line for the
 * request, one for each header, and an empty one.
 *
 * @module
 */

/** What of the runtimes' requests is used here. */
export interface RequestHead {
  readonly method?: string;
  readonly url?: string;
  readonly headers?: HeadersLike | Record<string, string | string[] | undefined>;
  readonly rawHeaders?: readonly string[];
}

interface HeadersLike {
  get(name: string): string | null;
  forEach(visit: (value: string, name: string) => void): void;
}

/** One header of a request; null when it has none of that name, which is in lower case. */
export function headerOf({ headers }: RequestHead, name: string): string | null {
  if (!headers) return null;
  if (typeof headers.get === "function") return (headers as HeadersLike).get(name);
  const value = (headers as Record<string, string | string[] | undefined>)[name];
  return value === undefined ? null : String(value);
}

/** `METHOD target HTTP/1.1`, a line for each header, and an empty one. */
export function headText(request: RequestHead): string {
  const { method, url = "", headers, rawHeaders } = request;
  const target = url.replace(/^https?:\/\/[^/]*/, "");
  let text = `${method} ${target} HTTP/1.1\r\n`;
  const line = (value: string, name: string): void => void (text += `${name}: ${value}\r\n`);
  if (rawHeaders) rawHeaders.forEach((value, index) => void (index % 2 === 1 && line(value, rawHeaders[index - 1]!)));
  else (headers as HeadersLike | undefined)?.forEach(line);
  return text + "\r\n";
}

/**
 * The length of a body that comes whole on a connection that stays; NaN when
 * there is none, when only its end says how long it is, and when the client
 * waits for leave to send it, or wants another protocol, or the last answer.
 */
export function plainBodySize(request: RequestHead): number {
  const has = (name: string) => headerOf(request, name) !== null;
  if (has("transfer-encoding") || has("expect") || has("upgrade") || !has("host")) return NaN;
  if ((headerOf(request, "connection") ?? "keep-alive").toLowerCase() !== "keep-alive") return NaN;
  const size = headerOf(request, "content-length") ?? "";
  return /^[1-9]\d{0,14}$/.test(size) ? Number(size) : NaN;
}
