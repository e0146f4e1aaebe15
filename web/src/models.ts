/** The models of the server, and its state, as every view needs them. */
import { signal } from "@preact/signals";

import { getJson } from "./api/client.ts";
import { ApiError } from "./api/errors.ts";
import { currentKey } from "./api/key.ts";
import type { Model } from "./api/types.ts";

export const models = signal<Model[]>([]);

/** What is known of the list of models: nothing yet, the list, or why it could not be read. */
export const modelsState = signal<"unknown" | "known" | "gone" | "refused">("unknown");

let refusedKey: string | null = null;

/** Read the list of models, and set `modelsState`. The user may be asked for a key. */
export async function refreshModels(): Promise<void> {
  try {
    models.value = (await getJson<{ data: Model[] }>("v1/models")).data;
    modelsState.value = "known";
  } catch (error) {
    modelsState.value = error instanceof ApiError ? "refused" : "gone";
    refusedKey = currentKey();
  }
}

/** Do the same unless that would ask for a key again which the user has just not given. */
export async function refreshModelsUnasked(): Promise<void> {
  if (modelsState.value !== "refused" || currentKey() !== refusedKey) await refreshModels();
}

/** Return the model that a chat uses: the one it names, or the server's first. */
export function modelOf(name: string | null): Model | undefined {
  const named = models.value.find((model) => model.id === name || model.aliases?.includes(name ?? ""));
  return named ?? (name === null ? models.value[0] : undefined);
}
