/**
 * Requests to the server: JSON and streams, with the key, and with typed errors.
 *
 * Every function throws `ApiError` for an error that the server answers, and `ConnectionError` where
 * it does not answer. A missing or wrong key is asked for, and the request is sent again.
 */
import { ApiError, ConnectionError, errorFrom, isAbort } from "./errors.ts";
import { askForKey, currentKey, keyHeader } from "./key.ts";
import { readSse } from "./sse.ts";

export interface Options {
  signal?: AbortSignal;
}

export type StreamItem = { kind: "data"; data: unknown } | { kind: "comment"; text: string };

/** Return the JSON of a GET. The path is relative to the page, such as `v1/models`. */
export async function getJson<T>(path: string, options: Options = {}): Promise<T> {
  return readJson<T>(await send(path, { method: "GET", ...options }));
}

/** Return the JSON that answers a POST. */
export async function postJson<T>(path: string, body: unknown, options: Options = {}): Promise<T> {
  return readJson<T>(await send(path, { ...post(body), ...options }));
}

/** Yield the events of a POST whose answer is a stream, until `[DONE]`. */
export async function* postStream(
  path: string,
  body: unknown,
  options: Options = {},
): AsyncGenerator<StreamItem, void> {
  yield* readStream(await send(path, { ...post(body), ...options }), true);
}

/** Yield the events of a GET whose answer is a stream, until the server ends it. */
export async function* getStream(path: string, options: Options = {}): AsyncGenerator<StreamItem, void> {
  yield* readStream(await send(path, { method: "GET", ...options }), false);
}

function post(body: unknown): RequestInit {
  const headers = { "Content-Type": "application/json" };
  return { method: "POST", headers, body: JSON.stringify(body) };
}

async function send(path: string, init: RequestInit): Promise<Response> {
  for (;;) {
    const key = currentKey();
    const headers = { ...init.headers, ...keyHeader() };
    const response = await reach(() => fetch(path, { ...init, headers, redirect: "error" }));
    if (response.ok) return response;
    const failure = await readError(response);
    if (failure.status !== 401 || !(await askForKey(key))) throw failure;
  }
}

async function reach<T>(action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ConnectionError("The server cannot be reached.", { cause: error });
  }
}

async function readJson<T>(response: Response): Promise<T> {
  return (await reach(() => response.json())) as T;
}

async function readError(response: Response): Promise<ApiError> {
  const text = await reach(() => response.text());
  return errorFrom(parseJson(text), response.status, response.headers.get("retry-after"));
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

async function* readStream(response: Response, hasMark: boolean): AsyncGenerator<StreamItem, void> {
  const items = readSse(response.body ?? new ReadableStream());
  try {
    for (;;) {
      const next = await reach(() => items.next());
      if (next.done) break;
      const item = next.value;
      if (item.kind === "comment") {
        yield item;
      } else if (hasMark && item.data === "[DONE]") {
        return;
      } else {
        yield { kind: "data", data: readEvent(item.data) };
      }
    }
  } finally {
    await items.return();
  }
  if (hasMark) throw new ConnectionError("The answer was cut off.");
}

/** Return the JSON of an event. Throw the error that it carries, if it does. */
function readEvent(data: string): unknown {
  const parsed = parseJson(data);
  if (parsed === null || typeof parsed !== "object") {
    throw new ApiError("The server sent an event that cannot be read.", 0, "invalid_event");
  }
  if ("error" in parsed) throw errorFrom(parsed, 0);
  return parsed;
}
