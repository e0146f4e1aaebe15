/** The sources of tokens: their names in words, and the look of each, which is more than a colour. */

/** A look: `paint.css` has a colour and a pattern for each. */
export type Look = "plain" | "grammar" | "prediction" | "continued" | "draft-1" | "draft-2" | "draft-3" | "draft-4";

export const LOOKS: readonly Look[] = [
  "plain",
  "draft-1",
  "draft-2",
  "draft-3",
  "draft-4",
  "grammar",
  "prediction",
  "continued",
];

const FIXED: Readonly<Record<string, Look>> = {
  target: "plain",
  subspec: "draft-1",
  specexec: "draft-1",
  ngram: "draft-2",
  recycling: "draft-3",
  grammar: "grammar",
  prediction: "prediction",
  continued: "continued",
};
const NAMES: Readonly<Record<string, string>> = {
  target: "the model itself",
  grammar: "the grammar",
  prediction: "the request's prediction",
  continued: "an earlier answer",
};

const MEANINGS: Readonly<Record<string, string>> = {
  target: "not drafted",
  subspec: "copies of its layers",
  specexec: "a small model",
  ngram: "as earlier in the text",
  recycling: "what it ranked high before",
  grammar: "the only way on",
  prediction: "sent with the request",
  continued: "begun before",
};

/** Return in a few words what a source is; "" if that is not known. */
export function meaningOf(source: string): string {
  return Object.hasOwn(MEANINGS, source) ? MEANINGS[source]! : "";
}

/** Return the look of a source. Drafts that are not known here share one. */
export function lookOf(source: string): Look {
  return Object.hasOwn(FIXED, source) ? FIXED[source]! : "draft-4";
}

/** Return the name of a source for people. */
export function nameOf(source: string): string {
  return Object.hasOwn(NAMES, source) ? NAMES[source]! : source;
}

export interface Share {
  source: string;
  look: Look;
  count: number;
  /** From 0 to 1. */
  share: number;
}

/** Return the sources of tokens with their shares, the most frequent first. */
export function sharesOf(counts: ReadonlyMap<string, number>): Share[] {
  const total = [...counts.values()].reduce((sum, count) => sum + count, 0);
  return [...counts]
    .map(([source, count]) => ({ source, look: lookOf(source), count, share: count / total }))
    .sort((first, second) => second.count - first.count);
}
