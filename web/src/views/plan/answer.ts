/** What POST /v1/plan takes and answers, as far as the page reads it; docs/api.md describes the fields. */

export const FIGURES = ["device_memory", "ram", "link_gbps", "disk_gbps", "device_gbps", "users"] as const;

export type FigureName = (typeof FIGURES)[number];

/** The figures that the user has set; the others are those of the server's machine. */
export type Asked = Partial<Record<FigureName, number>>;

export interface PlanPlaces {
  tiers: Record<string, number>;
  ring_slots: number;
  num_pages: number;
  max_sequences: number;
  max_rows: number;
  resident_bytes: number;
  ring_bytes: number;
  kv_bytes: number;
  draft_bytes: number;
  activation_bytes: number;
  other_bytes: number;
  state_bytes: number;
  host_pages: number;
  host_kv_bytes: number;
  ram_unit_bytes: number;
  disk_unit_bytes: number;
  staging_bytes: number;
  embedding_bytes: number;
  making_bytes: number;
  memory: {
    device: number;
    ram: number;
    is_cuda: boolean;
    device_runtime: number;
    host_runtime: number;
    code: number;
  };
}

export interface Forecast {
  tokens_per_second: number;
  users: number;
  /** As many as were asked about: those beyond `users` wait for their turn. */
  users_asked: number;
  tokens_per_second_all: number;
  first_token_seconds: number;
  tokens_per_pass: number;
  pass_seconds: number;
  link_seconds: number;
  draft_seconds: number;
}

export interface Gain {
  change: string;
  factor: number;
}

export interface PlanAnswer {
  model_id: string;
  model_type: string;
  device: string;
  has_weights: boolean;
  machine: Record<Exclude<FigureName, "users" | "device_gbps">, number> & { device_gbps: number | null };
  gains: Gain[];
  assumptions: { what: string; figure: string; source: string }[];
  draft: string;
  packed: boolean;
  coded: boolean;
  plan: PlanPlaces;
  forecast: Forecast;
  file: string;
}
