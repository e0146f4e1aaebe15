/** The changes that would make a model faster, in words, and those that a slider can try. */
import { figureText } from "../../units.ts";
import type { Asked, FigureName, Gain } from "./answer.ts";

const GIB = 2 ** 30;

export interface GainWords {
  /** What would change: "More device memory: 8 GiB instead of 6 GiB". */
  text: string;
  /** "1.5 times the speed" */
  effect: string;
  /** The figure that a slider can take, where the change is one of the machine. */
  figure: { name: FigureName; value: number } | null;
}

const KINDS: Record<string, { words: string; figure: FigureName | null }> = {
  "memory.device": { words: "More device memory", figure: "device_memory" },
  "memory.ram": { words: "More RAM", figure: "ram" },
  link: { words: "A faster link", figure: "link_gbps" },
  disk: { words: "A faster disk", figure: "disk_gbps" },
  "draft.method": { words: "Another drafting method", figure: null },
  context_length: { words: "A shorter context", figure: null },
};

/** Return a gain in words. The server writes "KEY: BEFORE -> AFTER". */
export function gainWords({ change, factor }: Gain): GainWords {
  const effect = `${figureText(factor)} times the speed`;
  const [, key = "", before = "", after = ""] = /^([\w.]+): (.+) -> (.+)$/.exec(change) ?? [];
  const kind = KINDS[key];
  if (kind === undefined) return { text: change, effect, figure: null };
  const value = kind.figure === null ? null : parseFigure(after);
  return {
    text: `${kind.words}: ${after} instead of ${before}`,
    effect,
    figure: kind.figure === null || value === null ? null : { name: kind.figure, value },
  };
}

function parseFigure(text: string): number | null {
  const [, number, unit] = /^([\d.e+-]+) (GiB|GB\/s)$/.exec(text) ?? [];
  if (number === undefined) return null;
  return unit === "GiB" ? Math.round(Number(number) * GIB) : Number(number);
}

/** Return whether sliders of these names can try a change. */
export function canTry(words: GainWords, names: readonly FigureName[]): boolean {
  return words.figure !== null && names.includes(words.figure.name);
}

/** Return the figures with a change. */
export function withGain(asked: Asked, { figure }: GainWords): Asked {
  return figure === null ? asked : { ...asked, [figure.name]: figure.value };
}
