/** Load and unload models. */
import { signal } from "@preact/signals";

import { postJson } from "../../api/client.ts";
import { ApiError, ConnectionError, isAbort } from "../../api/errors.ts";
import type { Model } from "../../api/types.ts";
import { refreshModels } from "../../models.ts";

export type Action = "load" | "unload";

/** What is asked of the server and not answered yet, by model. */
export const asked = signal<Record<string, { action: Action; stop: () => void }>>({});

/** Why the latest request for a model failed, by model. */
export const failures = signal<Record<string, { action: Action; text: string }>>({});

/** Seconds that an unload may wait for requests: the longest that the server takes. */
export const WAIT_FOR_ALL = 86_400;

export async function load(id: string): Promise<void> {
  await ask(id, "load", {});
}

/** Unload a model. Requests that still run after `grace` seconds are ended. */
export async function unload(id: string, grace: number): Promise<void> {
  await ask(id, "unload", { grace });
}

async function ask(id: string, action: Action, body: unknown): Promise<void> {
  if (asked.peek()[id]) return;
  const controller = new AbortController();
  const { [id]: _, ...others } = failures.peek();
  failures.value = others;
  asked.value = { ...asked.peek(), [id]: { action, stop: () => controller.abort() } };
  try {
    await postJson<Model>(modelPath(id, action), body, { signal: controller.signal });
    await refreshModels();
  } catch (error) {
    if (!isAbort(error)) failures.value = { ...failures.peek(), [id]: { action, text: reason(error) } };
  } finally {
    const { [id]: _done, ...rest } = asked.peek();
    asked.value = rest;
  }
}

/** Return the address of an action; ids may contain slashes. */
export function modelPath(id: string, action: Action): string {
  return `v1/models/${id.split("/").map(encodeURIComponent).join("/")}/${action}`;
}

function reason(error: unknown): string {
  if (error instanceof ApiError || error instanceof ConnectionError) return error.message;
  throw error;
}
