/** Markdown that grows: only its last blocks are parsed again when text is added, and of a long block its end. */
import type { Token } from "marked";

import { type Cut, cutOf } from "./cuts.ts";
import { lex } from "./html.ts";

export interface Block {
  /** Where its source begins in the text. */
  start: number;
  /** Its source. */
  raw: string;
  token: Token;
  /** Whether it is a further part of the block before it, which was cut because it is long. */
  continues: boolean;
}

// Text that follows may still change the last block, and may join it to the one before: the items of
// a list may be separated by blank lines.
const UNSETTLED = 2;

export class Blocks {
  #text = "";
  #settled: Block[] = [];
  #cut: Cut | null = null; // behind the last settled block
  #isCutAllowed = true;
  #hasDefinitions = false;

  /** Return the blocks of a text. It is quick where the text only has grown since the last call. */
  update(given: string): Block[] {
    const text = normalized(given);
    if (!text.startsWith(this.#text)) this.#forget();
    this.#text = text;
    let fresh = this.#parse();
    this.#hasDefinitions ||= fresh.some(({ token }) => token.type === "def");
    if (this.#hasDefinitions) {
      // a definition of a link changes blocks before it
      this.#forget();
      return split(text, 0, null)!;
    }
    while (this.#settleStart(fresh)) fresh = this.#parse();
    const blocks = [...this.#settled, ...fresh];
    const isExact = fresh.every((block) => text.startsWith(block.raw, block.start));
    if (isExact && fresh.length > UNSETTLED) {
      this.#settled = blocks.slice(0, -UNSETTLED);
      this.#cut = null;
    }
    return blocks;
  }

  #forget(): void {
    this.#settled = [];
    this.#cut = null;
  }

  /** Return the blocks behind the settled ones. */
  #parse(): Block[] {
    const last = this.#settled.at(-1);
    const fresh = split(this.#text, last ? last.start + last.raw.length : 0, this.#cut);
    if (fresh !== null) return fresh;
    this.#isCutAllowed = false; // what was cut has become something else, such as a heading
    this.#forget();
    return split(this.#text, 0, null)!;
  }

  /** Settle the beginning of the last block, if that is long. Return whether it was. */
  #settleStart(fresh: readonly Block[]): boolean {
    const long = fresh.at(-1);
    const cut = long && this.#isCutAllowed ? cutOf(long) : null;
    if (!long || !cut) return false;
    const head = { ...long, raw: long.raw.slice(0, cut.at), token: cut.head };
    this.#settled = [...this.#settled, ...fresh.slice(0, -1), head];
    this.#cut = cut;
    return true;
  }
}

/** Return a text as it is parsed. Offsets of blocks refer to this text. */
export function normalized(text: string): string {
  return text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text;
}

/**
 * Return the blocks from an offset on. Space belongs to the block before it.
 *
 * @param cut where the offset is within a block; null is returned if the text there does not go on with it
 */
function split(text: string, start: number, cut: Cut | null): Block[] | null {
  const blocks: Block[] = [];
  let at = start;
  for (const token of lex((cut?.opening ?? "") + text.slice(start))) {
    const before = blocks.at(-1);
    if (token.type === "space" && before) before.raw += token.raw;
    else if (cut !== null && before === undefined) {
      const rest = cut.restOf(token);
      if (rest === null) return null;
      blocks.push({ start, raw: token.raw.slice(cut.opening.length), token: rest, continues: true });
      at -= cut.opening.length;
    } else blocks.push({ start: at, raw: token.raw, token, continues: false });
    at += token.raw.length;
  }
  return blocks;
}
