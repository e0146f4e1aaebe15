/** The passes of an answer in figures and sentences. */
import type { AnswerTrace } from "../paint/trace.ts";
import type { AnswerPass, TokenOrigin } from "../paint/types.ts";

export interface PassView {
  pass: AnswerPass;
  /** The tokens that it emitted. */
  tokens: TokenOrigin[];
  /** The last token before it, "" if the answer begins with it. */
  before: string;
}

/** Return the passes of an answer, each with its tokens. */
export function passViews(trace: AnswerTrace): PassView[] {
  const byPass = new Map<number, TokenOrigin[]>();
  for (const token of trace.tokens) {
    if (token.source === "continued") continue;
    const known = byPass.get(token.pass);
    if (known === undefined) byPass.set(token.pass, [token]);
    else known.push(token);
  }
  let before = trace.tokens.filter((token) => token.source === "continued").at(-1)?.token ?? "";
  return trace.passes.map((pass) => {
    const tokens = byPass.get(pass.pass) ?? [];
    const view = { pass, tokens, before };
    before = tokens.at(-1)?.token ?? before;
    return view;
  });
}

/** Return the model's own token of a pass: its last one, if no draft had it. */
export function ownToken({ tokens }: PassView): TokenOrigin | null {
  const last = tokens.at(-1);
  return last !== undefined && last.depth === 0 ? last : null;
}

/** Return the seconds that a pass took, with the drafting before it. */
export function secondsOf({ pass_ms, draft_ms }: AnswerPass): number {
  return (pass_ms + draft_ms) / 1000;
}

/** Return what a pass did as a sentence. */
export function sentenceOf({ pass }: PassView): string {
  const time = `${number(secondsOf(pass) * 1000)} ms`;
  const link = pass.link_bytes ? `, ${bytes(pass.link_bytes)} over the link` : "";
  if (pass.tokens === 0) {
    return `Pass ${pass.pass} computed ${count(pass.own_rows, "token")} of the prompt in ${time}${link}.`;
  }
  const drafted = pass.nodes.length + pass.nodes_left_out;
  const accepted = pass.nodes.filter((node) => node.accepted).length;
  const drafts = drafted ? `: ${accepted} of ${count(drafted, "drafted token")} accepted` : "";
  return `Pass ${pass.pass} brought ${count(pass.tokens, "token")}${drafts}, in ${time}${link}.`;
}

function count(amount: number, what: string): string {
  return `${amount} ${what}${amount === 1 ? "" : "s"}`;
}

/** Return a number with about three digits. */
export function number(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** Return bytes as text, such as "7.2 GB". */
export function bytes(amount: number): string {
  for (const unit of ["B", "kB", "MB"]) {
    if (amount < 1000) return unit === "B" ? `${amount} B` : `${amount.toFixed(1)} ${unit}`;
    amount /= 1000;
  }
  return `${amount.toFixed(1)} GB`;
}

/** Return a token's text so that its blanks can be seen. */
export function visible(token: string): string {
  if (token === "") return "∅";
  return token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}
