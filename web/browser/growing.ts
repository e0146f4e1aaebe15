/** Answers of one long block, of which painted tokens arrive in passes, by kind of block. */
import { end, type Step } from "./scripted.ts";

export const TOKENS = 60; // of a pass
const BURST = 300; // tokens that come at once on the way to a length

/** What comes before a block, and the text of its token with a number. */
export type Kind = readonly [before: string, token: (at: number) => string];

export const KINDS: Record<string, Kind> = {
  "short blocks": ["", (at) => `word${at % 97}${at % 40 === 39 ? ".\n\n" : " "}`],
  paragraph: ["", (at) => `word${at % 97} `],
  code: ["```python\n", (at) => `word${at % 97}${at % 12 === 11 ? "\n" : " "}`],
  list: ["- ", (at) => `word${at % 97}${at % 15 === 14 ? "\n- " : " "}`],
  table: ["| a | b |\n| - | - |\n| ", (at) => `word${at % 97}${at % 10 === 9 ? " |\n| " : at % 10 === 4 ? " | " : " "}`],
  item: ["- ", (at) => `word${at % 97}${at % 15 === 14 ? "\n  " : " "}`],
  quote: ["> ", (at) => `word${at % 97}${at % 15 === 14 ? "\n> " : " "}`],
};

/**
 * Return the steps of an answer that comes to each length, in tokens, and then grows by some passes.
 *
 * The marks `from LENGTH` and `to LENGTH` are around those passes.
 *
 * @param pause the least milliseconds between two passes, the first of which has been drawn then
 */
export function growing([before, token]: Kind, lengths: readonly number[], passes: number, pause: number): Step[] {
  const steps: Step[] = [];
  let count = 0;
  const grow = (tokens: number): void => {
    for (let at = 0; at < tokens; at++, count++) {
      const text = (count === 0 ? before : "") + token(count);
      const source = count % 4 === 3 ? "target" : "subspec";
      const provenance = [{ token: text, source, depth: at, pass: Math.ceil((count + 1) / TOKENS) }];
      steps.push({ data: { model: "main", choices: [{ index: 0, delta: { content: text }, token_ids: [1], provenance }] } });
    }
    steps.push({ idle: pause });
  };
  for (const length of lengths) {
    while (count < length) grow(Math.min(BURST, length - count));
    steps.push({ mark: `from ${length}` });
    for (let pass = 0; pass < passes; pass++) grow(TOKENS);
    steps.push({ mark: `to ${length}` });
  }
  return [...steps, ...end()];
}
