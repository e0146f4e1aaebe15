/** What went wrong with an answer, in words, and what can be done about it. */
import { ApiError, ConnectionError } from "../api/errors.ts";
import type { Problem } from "./model.ts";
import { SettingError } from "./request.ts";

/** What the page offers. */
export type WayOn = "again" | "key" | "model" | "parameters" | "shorten" | "new-chat";

export interface Explained {
  title: string;
  /** The server's own words, where they say more. */
  detail: string | null;
  ways: WayOn[];
}

/** Errors of the server that end by themselves: the request is sent again after a while. */
const PASSING = new Set([
  "queue_full",
  "model_loading",
  "engine_died",
  "engine_stalled",
  "engine_error",
  "engine_closed",
  "text_process_died",
  "text_process_starting",
]);

const TITLES: Record<string, string> = {
  context_length_exceeded: "This chat is longer than the model can read.",
  invalid_api_key: "The server asks for a key.",
  model_not_found: "The server does not have this model.",
  model_load_failed: "The model cannot be loaded.",
  queue_full: "The server has too many requests waiting.",
  model_loading: "The model is still being loaded.",
  invalid_grammar: "The server cannot use this schema.",
  chat_template_error: "The model's template does not take these messages.",
  out_of_memory: "The device has too little memory for this answer.",
};

/** Return an error as it is kept with the message that it belongs to. */
export function problemOf(error: unknown): Problem {
  if (error instanceof ApiError) {
    return { message: error.message, code: error.code, status: error.status, param: error.param };
  }
  const of = (code: string, message: string): Problem => ({ message, code, status: 0, param: null });
  if (error instanceof ConnectionError) return of("connection", error.message);
  if (error instanceof SettingError) return of("setting", error.message);
  return of("page", `The page failed: ${error instanceof Error ? error.message : String(error)}`);
}

/** Return the seconds after which to try again by itself, null for an error that stays. */
export function retryDelay(error: unknown, tries: number): number | null {
  if (error instanceof ConnectionError) return Math.min(1 + tries, 5);
  if (!(error instanceof ApiError) || error.code === null || !PASSING.has(error.code)) return null;
  return error.retryAfter ?? Math.min(2 + tries, 10);
}

/** What the page calls the fields of a request. */
const FIELDS: Record<string, string> = {
  max_tokens: "Longest answer",
  max_completion_tokens: "Longest answer",
  temperature: "Temperature",
  top_p: "Top p",
  seed: "Seed",
  enable_thinking: "Thinking",
  response_format: "Answer as JSON of this schema",
  tools: "Tools",
};

/** Return the server's words with the names that the page has for fields. */
export function inPageWords(message: string): string {
  const named = message.replace(/'([a-z_]+)(?:[.[][^']*)?'/g, (whole, field: string) => labelOf(field) ?? whole);
  return named.replace(/\b[a-z]+(?:_[a-z]+)+\b/g, (field) => labelOf(field) ?? field);
}

function labelOf(field: string): string | undefined {
  return Object.hasOwn(FIELDS, field) ? `“${FIELDS[field]}”` : undefined;
}

function isLimit(field: string | null): boolean {
  return field === "max_tokens" || field === "max_completion_tokens";
}

/** Return what to say about a problem, and what to offer. */
export function explain(problem: Problem): Explained {
  const { code, status } = problem;
  const message = inPageWords(problem.message);
  if (code === "connection") {
    const detail = "It may have been stopped. What has arrived is kept.";
    return { title: "The server does not answer.", detail, ways: ["again"] };
  }
  if (code === "setting") return { title: message, detail: null, ways: ["parameters", "again"] };
  if (code === "context_length_exceeded" && isLimit(problem.param)) {
    const title = "“Longest answer” asks for more tokens than the model has room for.";
    return { title, detail: message, ways: ["parameters", "again", "shorten"] };
  }
  const title = TITLES[code ?? ""];
  return { title: title ?? message, detail: title ? message : null, ways: waysOn(code, status) };
}

function waysOn(code: string | null, status: number): WayOn[] {
  if (status === 401) return ["key"];
  if (code === "context_length_exceeded") return ["shorten", "parameters", "new-chat"];
  if (code === "model_not_found" || code === "model_load_failed") return ["model", "again"];
  if (status === 400) return ["parameters", "again"];
  return ["again"];
}
