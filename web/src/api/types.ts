/** What the server answers, as far as the page reads it; docs/api.md describes the fields. */

export interface Model {
  id: string;
  aliases?: string[];
  state: "loaded" | "unloaded";
  max_model_len?: number;
  /** What counts where a request does not say; of a model that is not loaded, as far as it is known. */
  sampling?: { temperature?: number; top_p?: number; max_tokens?: number | null };
  capabilities?: string[];
}

export interface LoadStep {
  what: string;
  done: number;
  total: number;
  unit: "bytes" | "tokens" | "steps";
  per_second: number;
  seconds_left: number | null;
}

export interface ModelStatus {
  id: string;
  aliases: string[];
  default: boolean;
  state: "loaded" | "loading" | "restarting" | "unloading" | "unloaded";
  step?: LoadStep;
  error?: string;
  context?: number;
  tiers?: Record<string, number>;
  draft?: string;
  plan?: string;
  unloads_in?: number;
  idle_unloaded_ago?: number;
}

export interface Passes {
  seconds: number;
  passes: number;
  tokens: number;
  link_bytes: number;
  stall_seconds: { copy: number; draft: number; host: number };
}

export interface EngineStatus {
  model: string;
  recent: Passes & { tokens_per_second: number; tokens_per_pass: number; link_gbps: number };
  total: Passes;
  link_gbps: number;
  link_limit_gbps: number;
  link_bits_per_weight: number;
  kv_pages: number;
  kv_pages_used: number;
}

/** Another server of the same model, which requests of this one may run on. */
export interface PeerStatus {
  url: string;
  state: "ready" | "away";
  note: string;
  model: string | null;
  requests: number;
  running: number;
  tokens_per_second: number;
}

export interface ServerStatus {
  state: string;
  version: string;
  models: ModelStatus[];
  queue: { waiting_for_model: number; waiting_for_pass: number; in_engine: number };
  engine: EngineStatus | null;
  peers: PeerStatus[];
}

export interface ToolCallDelta {
  index: number;
  id?: string | null;
  function?: { name?: string | null; arguments?: string | null };
}

export interface Delta {
  role?: string;
  content?: string | null;
  reasoning_content?: string | null;
  tool_calls?: ToolCallDelta[] | null;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}

export interface Timings {
  predicted_per_second: number;
  tokens_per_pass: number;
  passes: number;
  seed: number;
  resumed: number;
}

/** A chunk of a streamed chat completion. */
export interface Chunk {
  model?: string;
  system_fingerprint?: string | null;
  choices: {
    index: number;
    delta: Delta;
    finish_reason?: string | null;
    token_ids?: number[];
  }[];
  usage?: Usage | null;
  timings?: Timings | null;
}
