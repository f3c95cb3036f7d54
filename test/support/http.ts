/**
 * One request over a connection of its own, answered or an error.
 *
 * @module
 */

import { request } from "node:http";
import type { RequestOptions } from "node:https";
import { request as requestTls } from "node:https";

/** Who answered, as the example and the fixtures say it. */
export interface Who {
  readonly pid: number;
  readonly runtime: string;
  readonly generation: number;
}

/** Long enough for a stalled server; a lost request takes this long. */
const limitMs = 15_000;

/** `GET`, without keep-alive. */
export function get(options: RequestOptions & { readonly tls?: boolean }): Promise<string> {
  return new Promise((resolve, reject) => {
    const send = options.tls ? requestTls : request;
    const outgoing = send({ agent: false, timeout: limitMs, rejectUnauthorized: false, ...options }, (response) => {
      let body = "";
      response.setEncoding("utf8");
      response.on("data", (text) => body += text);
      response.on("end", () => response.statusCode === 200 ? resolve(body) : reject(new Error(`${response.statusCode} ${body}`)));
      response.on("error", reject);
    });
    outgoing.on("timeout", () => outgoing.destroy(new Error(`no answer within ${limitMs} ms`)));
    outgoing.on("error", reject);
    outgoing.end();
  });
}

/** Asks the server on a port who it is. */
export async function whoServes(port: number): Promise<Who> {
  return JSON.parse(await get({ host: "127.0.0.1", port, path: "/" }));
}

/** Asks several times, one after another: all must be answered. */
export async function assertServes(port: number, times = 10): Promise<Who> {
  let who = await whoServes(port);
  for (let index = 1; index < times; index++) who = await whoServes(port);
  return who;
}
