/** The models of the server, and its state, as every view needs them. */
import { signal } from "@preact/signals";

import { getJson } from "./api/client.ts";
import type { Model } from "./api/types.ts";

export const models = signal<Model[]>([]);

/** Whether the list of models has been read. */
export const hasModels = signal(false);

/** Read the list of models. An error is that of the server being gone, or of the key. */
export async function refreshModels(): Promise<void> {
  const { data } = await getJson<{ data: Model[] }>("v1/models");
  models.value = data;
  hasModels.value = true;
}

/** Return the model that a chat uses: the one it names, or the server's first. */
export function modelOf(name: string | null): Model | undefined {
  const named = models.value.find((model) => model.id === name || model.aliases?.includes(name ?? ""));
  return named ?? (name === null ? models.value[0] : undefined);
}
