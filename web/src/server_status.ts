/** The state of the server, which it sends every second while a view shows it. */
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import { getStream } from "./api/client.ts";
import { ApiError, isAbort } from "./api/errors.ts";
import type { ServerStatus } from "./api/types.ts";

const AGAIN_MS = 2000;

/** The latest state; null before the first one. It stays while the server is gone. */
export const serverStatus = signal<ServerStatus | null>(null);

/** Why there are no new states: the server does not answer, which may pass, or refuses. */
export const statusProblem = signal<{ text: string; isPassing: boolean } | null>(null);

const retries = signal(0);

/** Ask again after a refusal. */
export function watchAgain(): void {
  retries.value++;
}

/** Receive the state of the server while a component is shown. */
export function useServerStatus(): void {
  const round = retries.value;
  useEffect(() => {
    const controller = new AbortController();
    void watch(controller.signal);
    return () => controller.abort();
  }, [round]);
}

async function watch(signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      for await (const item of getStream("v1/status?watch", { signal })) {
        if (item.kind !== "data") continue;
        serverStatus.value = item.data as ServerStatus;
        statusProblem.value = null;
      }
      // something between page and server has ended the stream, or the server stops, which its last state says
    } catch (error) {
      if (signal.aborted || isAbort(error)) return;
      if (error instanceof ApiError && error.status > 0 && error.status < 500) {
        statusProblem.value = { text: error.message, isPassing: false };
        return;
      }
      statusProblem.value = { text: "The server does not answer. The page goes on trying.", isPassing: true };
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}
