/** Markdown that grows: only its last blocks are parsed again when text is added. */
import type { Token, Tokens } from "marked";

import { lex } from "./html.ts";

export interface Block {
  /** Where its source begins in the text. */
  start: number;
  /** Its source. */
  raw: string;
  token: Token;
}

// Text that follows may still change the last block, and may join it to the one before: the items of
// a list may be separated by blank lines.
const UNSETTLED = 2;

export class Blocks {
  #text = "";
  #settled: Block[] = [];
  #hasDefinitions = false;

  /** Return the blocks of a text. It is quick where the text only has grown since the last call. */
  update(given: string): Block[] {
    const text = normalized(given);
    if (!text.startsWith(this.#text)) this.#settled = [];
    this.#text = text;
    const last = this.#settled.at(-1);
    const start = last ? last.start + last.raw.length : 0;
    const fresh = split(text, start);
    this.#hasDefinitions ||= fresh.some(({ token }) => token.type === "def");
    if (this.#hasDefinitions) {
      // a definition of a link changes blocks before it
      this.#settled = [];
      return split(text, 0);
    }
    const blocks = [...this.#settled, ...fresh];
    const isExact = fresh.every((block) => text.startsWith(block.raw, block.start));
    if (isExact && fresh.length > UNSETTLED) this.#settled = blocks.slice(0, -UNSETTLED);
    return blocks;
  }
}

/** Return a text as it is parsed. Offsets of blocks refer to this text. */
export function normalized(text: string): string {
  return text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text;
}

/** Return the blocks from an offset on. Space belongs to the block before it. */
function split(text: string, start: number): Block[] {
  const blocks: Block[] = [];
  let at = start;
  for (const token of lex(text.slice(start))) {
    const before = blocks.at(-1);
    if (token.type === "space" && before) before.raw += token.raw;
    else blocks.push({ start: at, raw: token.raw, token });
    at += token.raw.length;
  }
  return blocks;
}

/** Return whether a block is code whose closing fence has not come yet. */
export function isOpenCode({ token, raw }: Block): boolean {
  if (token.type !== "code" || (token as Tokens.Code).codeBlockStyle === "indented") return false;
  const fence = /^ {0,3}(`{3,}|~{3,})/.exec(raw)?.[1];
  return fence !== undefined && !new RegExp(`\\n {0,3}${fence[0]}{${fence.length},}[ \\t]*\\n*$`).test(raw);
}
