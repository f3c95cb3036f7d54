/**
 * What `src/` may use beyond the language itself: the few globals that are the
 * same on every runtime. Its tsconfig knows no others, so anything else that
 * belongs to one runtime does not compile there.
 */
declare class TextEncoder {
  encode(text: string): Uint8Array<ArrayBuffer>;
}
declare class TextDecoder {
  constructor(label?: string, options?: { fatal?: boolean });
  decode(bytes?: Uint8Array, options?: { stream?: boolean }): string;
}
declare function setTimeout(callback: (value?: undefined) => void, ms: number): unknown;
declare function setImmediate(callback: () => void): unknown;
declare function clearTimeout(timer: unknown): void;
declare class AbortSignal {
  readonly aborted: boolean;
  readonly reason: unknown;
  throwIfAborted(): void;
  addEventListener(type: "abort", listener: () => void, options?: { once?: boolean }): void;
  removeEventListener(type: "abort", listener: () => void): void;
}
declare class AbortController {
  readonly signal: AbortSignal;
  abort(reason?: unknown): void;
}
declare const crypto: { getRandomValues<T extends Uint8Array>(bytes: T): T };
declare const performance: { now(): number };
