/** The passes of an answer in figures and sentences. */
import type { AnswerTrace } from "../paint/trace.ts";
import type { AnswerPass, TokenOrigin } from "../paint/types.ts";
import { countText, secondsText, several } from "../units.ts";

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

/** The figures of all passes of an answer. */
export interface Totals {
  tokens: number;
  /** Passes that emitted tokens. */
  passes: number;
  /** Tokens a pass; null while no pass has emitted any. */
  each: number | null;
}

/** Return the figures of all passes of an answer. */
export function totalsOf(views: readonly PassView[]): Totals {
  const emitting = views.filter(({ tokens }) => tokens.length > 0);
  const tokens = emitting.reduce((sum, view) => sum + view.tokens.length, 0);
  return { tokens, passes: emitting.length, each: emitting.length ? tokens / emitting.length : null };
}

/** What a pass did, in words. */
export interface PassWords {
  /** Such as "Pass 3 brought 8 tokens". */
  title: string;
  details: string[];
}

/** Return what a pass did in words. */
export function wordsOf({ pass }: PassView): PassWords {
  const details = [secondsText(secondsOf(pass))];
  if (pass.link_bytes) details.push(`${bytes(pass.link_bytes)} over the link`);
  if (pass.tokens === 0) {
    return { title: `Pass ${pass.pass} computed ${several(pass.own_rows, "token")} of the prompt`, details };
  }
  const drafted = pass.nodes.length + pass.nodes_left_out;
  const accepted = pass.nodes.filter((node) => node.accepted).length;
  if (drafted) details.unshift(`${countText(accepted)} of ${several(drafted, "drafted token")} accepted`);
  return { title: `Pass ${pass.pass} brought ${several(pass.tokens, "token")}`, details };
}

/** Return what a pass did as a sentence. */
export function sentenceOf(view: PassView): string {
  const { title, details } = wordsOf(view);
  return `${title}: ${details.join(", ")}.`;
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
