/** What the server says about tokens and passes with `provenance: "tree"`; see docs/api.md. */

import type { Delta } from "../api/types.ts";

/** An emitted token: its text, and what proposed it. */
export interface TokenOrigin {
  token: string;
  source: string;
  depth: number;
  pass: number;
}

/** A drafted token in the tree of a pass. */
export interface DraftNode {
  /** The index of its parent, -1 for the token before the tree. */
  parent: number;
  id: number;
  token: string;
  source: string;
  /** The log-probability of the path, by the draft. */
  score: number;
  accepted: boolean;
}

export interface AnswerPass {
  pass: number;
  /** Emitted for the answer; 0 while its prompt is computed. */
  tokens: number;
  own_rows: number;
  rows: number;
  sequences: number;
  pass_ms: number;
  draft_ms: number;
  copy_stall_ms: number;
  link_bytes: number;
  nodes: DraftNode[];
  nodes_left_out: number;
  passes_left_out: number;
}

/** A choice in a chunk of an answer with provenance. */
export interface TracedChoice {
  delta: Delta;
  finish_reason?: string | null;
  token_ids?: number[];
  provenance?: TokenOrigin[];
  passes?: AnswerPass[];
}
