/** Whether two answers are identical, and how many passes each of them took. */
import { countText, several } from "../../units.ts";

export interface Verdict {
  isSame: boolean;
  text: string;
}

/** Return how many tokens two answers have in common from the beginning. */
function sameTokens(first: readonly number[], second: readonly number[]): number {
  const most = Math.min(first.length, second.length);
  let same = 0;
  while (same < most && first[same] === second[same]) same++;
  return same;
}

/** Compare the tokens of two answers that are still written. */
export function soFar(first: readonly number[], second: readonly number[]): string {
  const compared = Math.min(first.length, second.length);
  return `identical so far: ${countText(sameTokens(first, second))} of ${several(compared, "token")}`;
}

/** Compare the tokens of two answers. */
export function verdictOf(first: readonly number[], second: readonly number[]): Verdict {
  const most = Math.max(first.length, second.length);
  const same = sameTokens(first, second);
  const text = `identical: ${countText(same)} of ${several(most, "token")}`;
  if (same === most) return { isSame: true, text };
  return { isSame: false, text: `${text}; they differ from there on, which only numerics: fast allows` };
}

/** Return what the drafts have saved; "" where they saved nothing. */
export function savingOf(drafted: number, plain: number): string {
  if (drafted === 0 || plain <= drafted) return "";
  const times = Number((plain / drafted).toFixed(1));
  return `With drafts it took ${several(drafted, "pass")} instead of ${countText(plain)}: ${times} times fewer.`;
}
