/** What the states and figures of models are called. */
import type { EngineStatus, LoadStep, ModelStatus, PeerStatus, ServerStatus } from "../../api/types.ts";
import { countText, figureText, several, secondsText, sizeText } from "../../units.ts";

/** How a state looks: at rest, in progress, at work, or wrong. */
export type Tone = "rest" | "busy" | "good" | "bad";

export interface StateWords {
  text: string;
  tone: Tone;
}

const STATES: Record<ModelStatus["state"], StateWords> = {
  loaded: { text: "In memory", tone: "good" },
  loading: { text: "Loading", tone: "busy" },
  restarting: { text: "The engine restarts", tone: "busy" },
  unloading: { text: "Unloading", tone: "busy" },
  unloaded: { text: "Not loaded", tone: "rest" },
};

/** Return what a model's state is called. */
export function stateWords({ state, error }: ModelStatus): StateWords {
  if (state === "unloaded" && error !== undefined) return { text: "Loading failed", tone: "bad" };
  return STATES[state];
}

/** Return what becomes of a model without requests; "" where nothing does. */
export function idleSentence({ unloads_in, idle_unloaded_ago }: ModelStatus): string {
  if (unloads_in !== undefined) {
    return `Its memory is given back in ${secondsText(Math.max(1, Math.ceil(unloads_in)))} if no request comes.`;
  }
  if (idle_unloaded_ago === undefined) return "";
  const ago = secondsText(Math.max(1, Math.floor(idle_unloaded_ago)));
  return `Sleeping: its memory was given back ${ago} ago, as no request came. The next one loads it.`;
}

/** Return how far a load is: "packing: 3.1 GiB of 8 GiB, 1.2 GiB/s, about 4 s left". */
export function stepText(step: LoadStep): string {
  const amount = step.unit === "bytes" ? sizeText : countText;
  const noun = step.unit === "bytes" ? "" : ` ${step.unit}`;
  const parts: string[] = [];
  if (step.total > 0) parts.push(`${amount(step.done)} of ${amount(step.total)}${noun}`);
  else if (step.done > 0) parts.push(`${amount(step.done)}${noun}`);
  if (step.per_second > 0 && step.unit !== "steps") parts.push(`${amount(step.per_second)}${noun}/s`);
  if (step.seconds_left !== null) parts.push(`about ${secondsText(Math.ceil(step.seconds_left))} left`);
  return parts.length ? `${step.what}: ${parts.join(", ")}` : step.what;
}

/** Return the share of a step that is done, null where that is unknown. */
export function stepShare(step: LoadStep | undefined): number | null {
  return step?.total ? Math.min(1, step.done / step.total) : null;
}

const TIERS: Record<string, string> = { resident: "on the device", ram: "in RAM", disk: "on disk" };

/** Return where the units of weights are: "1 on the device, 6 in RAM". */
export function tiersText(tiers: Record<string, number>): string {
  const known = Object.keys(TIERS).filter((tier) => tiers[tier]);
  return known.map((tier) => `${countText(tiers[tier]!)} ${TIERS[tier]}`).join(", ");
}

/** Return where everything is, as a list: the server separates the parts of a plan with commas. */
export function planParts(plan: string): string[] {
  // the tiers that units are streamed from are separated by commas too
  return plan.split(/, (?!ram\b|disk\b)/);
}

export interface Figure {
  name: string;
  text: string;
  /** The share of a limit that is used, from 0 to 1. */
  share?: number;
}

/** Return the figures of the engine of the last seconds. */
export function engineFigures(engine: EngineStatus, queue: ServerStatus["queue"]): Figure[] {
  const { recent } = engine;
  const figures: Figure[] = [
    { name: "Speed", text: `${figureText(recent.tokens_per_second)} tokens/s` },
    { name: "Tokens a pass", text: figureText(recent.tokens_per_pass) },
    { name: "Requests", text: queueText(queue) },
  ];
  if (engine.link_limit_gbps > 0) {
    figures.push({
      name: "Link",
      text: `${figureText(recent.link_gbps)} of ${figureText(engine.link_limit_gbps)} GB/s`,
      share: Math.min(1, recent.link_gbps / engine.link_limit_gbps),
    });
  }
  if (engine.kv_pages > 0) {
    figures.push({
      name: "KV cache",
      text: `${countText(engine.kv_pages_used)} of ${several(engine.kv_pages, "page")}`,
      share: Math.min(1, engine.kv_pages_used / engine.kv_pages),
    });
  }
  return figures;
}

/** Return what the requests of the server are doing: "2 running, 1 waiting". */
export function queueText(queue: ServerStatus["queue"]): string {
  const waiting = queue.waiting_for_model + queue.waiting_for_pass;
  const running = Math.max(0, queue.in_engine - queue.waiting_for_pass);
  if (running === 0 && waiting === 0) return "none";
  return waiting ? `${countText(running)} running, ${countText(waiting)} waiting` : `${countText(running)} running`;
}

/** Return what the state of another server is called. */
export function peerState({ state }: PeerStatus): StateWords {
  return state === "ready" ? { text: "Takes requests", tone: "good" } : { text: "Away", tone: "rest" };
}

/** Return the figures of another server as of its last report. */
export function peerFigures({ model, requests, running, tokens_per_second }: PeerStatus): Figure[] {
  return [
    { name: "Model", text: model ?? "none" },
    { name: "Speed", text: `${figureText(tokens_per_second)} tokens/s` },
    { name: "Requests", text: running ? `${countText(requests)}, ${countText(running)} from here` : countText(requests) },
  ];
}

/** Return what the server does now, in a sentence or two. */
export function summary({ models, queue }: ServerStatus): string {
  const loaded = models.find(({ state }) => state === "loaded");
  const requests = queueText(queue);
  const work = requests === "none" ? "No requests are running." : `Requests: ${requests}.`;
  return loaded ? `${loaded.id} is in memory. ${work}` : `No model is ready. ${work}`;
}

/** Return the sentences about what has changed between two states of the server. */
export function changes(before: ServerStatus, now: ServerStatus): string[] {
  return now.models.flatMap((model) => {
    const old = before.models.find(({ id }) => id === model.id);
    if (old === undefined || (old.state === model.state && old.error === model.error)) return [];
    return [changeSentence(model)];
  });
}

function changeSentence({ id, state, error }: ModelStatus): string {
  switch (state) {
    case "loaded":
      return `${id} is in memory.`;
    case "loading":
      return `${id} is being loaded.`;
    case "restarting":
      return `The engine of ${id} restarts.`;
    case "unloading":
      return `${id} is being unloaded.`;
    case "unloaded":
      return error === undefined ? `${id} is not in memory any more.` : `${id} could not be loaded. ${error}`;
  }
}
