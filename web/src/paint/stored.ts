/**
 * The paint of an answer as it is kept with its chat: what each stretch of the text comes from, and how
 * many tokens each source has. It is shorter than the answer, and leaves out the passes.
 */
import type { Part } from "./spans.ts";

/** Stretches are written as their length and a letter, such as "12a3b": 12 characters of the first source. */
export interface StoredPaint {
  sources: string[];
  /** How many tokens each source has. */
  counts: number[];
  content: string;
  reasoning: string;
}

/** Characters `start` to `end` of a part, and the source of their token; "" for no known token. */
export interface Run {
  start: number;
  end: number;
  source: string;
}

/** What is known of the tokens of an answer. */
export interface KnownPaint {
  counts: ReadonlyMap<string, number>;
  runs: Readonly<Record<Part, readonly Run[]>>;
}

const LETTERS = "abcdefghijklmnopqrstuvwxyz";
const UNKNOWN = "_"; // instead of a letter
const LONGEST = 100_000; // characters of a part's stretches; the text after them is not painted
const LONGEST_NAME = 60; // characters of the name of a source

/** Return paint as it is kept; null where no token is known. */
export function storePaint({ counts, runs }: KnownPaint): StoredPaint | null {
  if (counts.size === 0) return null;
  const sources = [...counts.keys()].slice(0, LETTERS.length);
  const written = (part: Part): string => {
    let text = "";
    let at = 0;
    const append = (end: number, letter: string): void => {
      if (end > at) text += `${end - at}${letter}`;
      at = end;
    };
    for (const { start, end, source } of runs[part]) {
      if (text.length > LONGEST) break;
      append(start, UNKNOWN);
      append(end, LETTERS[sources.indexOf(source)] ?? UNKNOWN);
    }
    return text;
  };
  return {
    sources,
    counts: sources.map((source) => counts.get(source)!),
    content: written("content"),
    reasoning: written("reasoning"),
  };
}

/** Return what kept paint says about texts, which may be shorter by now. */
export function readPaint(stored: StoredPaint, texts: Readonly<Record<Part, string>>): KnownPaint {
  const runsOf = (part: Part): Run[] => {
    const runs: Run[] = [];
    let start = 0;
    for (const [, length, letter] of stored[part].matchAll(/(\d+)([a-z_])/g)) {
      const end = Math.min(start + Number(length), texts[part].length);
      const source = stored.sources[LETTERS.indexOf(letter!)];
      if (source !== undefined && end > start) runs.push({ start, end, source });
      start = end;
    }
    return runs;
  };
  const counts = new Map(stored.sources.map((source, index) => [source, stored.counts[index] ?? 0]));
  return { counts, runs: { content: runsOf("content"), reasoning: runsOf("reasoning") } };
}

/** Return paint from a file that others may have made; null for anything else. */
export function checkedPaint(value: unknown): StoredPaint | null {
  if (typeof value !== "object" || value === null) return null;
  const { sources, counts, content, reasoning } = value as Record<string, unknown>;
  const isRun = (text: unknown): text is string =>
    typeof text === "string" && text.length <= 2 * LONGEST && /^(?:\d{1,9}[a-z_])*$/.test(text);
  const isName = (name: unknown): boolean => typeof name === "string" && name.length <= LONGEST_NAME;
  const isCount = (count: unknown): boolean => Number.isSafeInteger(count) && (count as number) >= 0;
  if (!Array.isArray(sources) || sources.length > LETTERS.length || !sources.every(isName)) return null;
  if (!Array.isArray(counts) || counts.length !== sources.length || !counts.every(isCount)) return null;
  if (new Set(sources).size !== sources.length || !isRun(content) || !isRun(reasoning)) return null;
  return { sources: sources as string[], counts: counts as number[], content, reasoning };
}
