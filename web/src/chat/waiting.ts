/** What an answer waits for, in words, from the comments of its stream and from the server's status. */
import type { ModelStatus, ServerStatus } from "../api/types.ts";

export interface Waiting {
  text: string;
  /** How much of it is done, from 0 to 1; null where that is unknown. */
  share: number | null;
}

const COUNT = new Intl.NumberFormat("en");

export const RESTARTING: Waiting = {
  text: "The engine is restarting. The answer then goes on by itself",
  share: null,
};

/** Return what a comment of a stream says, null for one that says nothing of interest. */
export function readComment(comment: string): Waiting | null {
  const prompt = /^prompt (\d+) of (\d+)$/.exec(comment);
  if (prompt) return readingPrompt(Number(prompt[1]), Number(prompt[2]));
  const restart = /^(?:engine restarting|the engine restarts)(?:: (.+))?$/.exec(comment);
  if (restart) return restart[1] ? { text: `The engine is restarting: ${restart[1]}`, share: null } : RESTARTING;
  const place = /^(waiting for|waiting|loading)(?: (.+?))?(?:: (.+?))?(?:, position (\d+))?$/.exec(comment);
  if (place === null) return null;
  const [, kind, model, step, position] = place;
  const inQueue = Number(position) > 1 ? `. Place ${position} in the queue` : "";
  if (kind === "loading" && model) {
    return { text: `Loading ${model}${step ? `: ${step}` : ""}${inQueue}`, share: null };
  }
  if (model) return { text: `Waiting until ${model} can be loaded${inQueue}`, share: null };
  return { text: position ? `Place ${position} in the queue` : "Waiting for the model", share: null };
}

/** Return what the status of the server says about an answer that has no text yet. */
export function readStatus(status: ServerStatus): Waiting {
  const busy = status.models.find((model) => model.state !== "loaded" && model.state !== "unloaded");
  if (busy?.state === "restarting") return RESTARTING;
  if (busy?.state === "unloading") return { text: `Unloading ${busy.id}`, share: null };
  if (busy) return loading(busy);
  const { waiting_for_pass: waiting, in_engine: inEngine } = status.queue;
  if (waiting > 1 && inEngine > 1) {
    return { text: `Waiting: ${COUNT.format(waiting)} answers are in the queue`, share: null };
  }
  return { text: "Reading the prompt", share: null };
}

function readingPrompt(done: number, total: number): Waiting {
  const text = `Reading the prompt: ${COUNT.format(done)} of ${COUNT.format(total)} tokens`;
  return { text, share: total > 0 ? Math.min(1, done / total) : null };
}

function loading({ id, step }: ModelStatus): Waiting {
  if (step === undefined) return { text: `Loading ${id}`, share: null };
  if (!step.total) return { text: `Loading ${id}: ${step.what}`, share: null };
  const share = Math.min(1, step.done / step.total);
  const left = step.seconds_left == null ? "" : `, about ${Math.ceil(step.seconds_left)} s left`;
  return { text: `Loading ${id}: ${step.what}, ${Math.round(100 * share)} %${left}`, share };
}
