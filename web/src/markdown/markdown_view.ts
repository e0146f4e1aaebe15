/**
 * Markdown in the page, which may grow: blocks that have not changed keep their elements.
 *
 * Each block is a `<div class="block" data-start="N">`: N is where its source begins in the text.
 */
import type { Tokens } from "marked";

import { type Block, Blocks, isOpenCode } from "./blocks.ts";
import { frameCode, highlight } from "./code.ts";
import { htmlOf } from "./html.ts";
import { typeset } from "./math.ts";
import { sanitizeText } from "./sanitize.ts";

interface Shown {
  raw: string;
  element: HTMLElement;
  items: string[];
}

export class MarkdownView {
  readonly #blocks = new Blocks();
  #shown: Shown[] = [];

  constructor(private readonly root: HTMLElement) {}

  /**
   * Show a text.
   *
   * @param isComplete whether no text will follow; code and formulas at the end are then finished too
   */
  update(text: string, isComplete: boolean): void {
    const blocks = this.#blocks.update(text);
    blocks.forEach((block, index) => {
      const isLast = index === blocks.length - 1;
      this.#showBlock(block, index, isLast && !isComplete);
    });
    for (const { element } of this.#shown.splice(blocks.length)) element.remove();
  }

  #showBlock(block: Block, index: number, mayGrow: boolean): void {
    const before = this.#shown[index];
    const key = mayGrow ? `${block.raw}\0` : block.raw; // a block is finished when it is followed
    if (before?.raw === key && before.element.dataset["start"] === String(block.start)) return;
    if (before && mayGrow && growCode(before, block, key)) return;
    if (before && growList(before, block, key)) {
      finish(before.element, mayGrow);
      return;
    }
    const element = document.createElement("div");
    element.className = "block";
    element.dataset["start"] = String(block.start);
    element.append(sanitizeText(htmlOf([block.token])));
    if (before) before.element.replaceWith(element);
    else this.root.append(element);
    this.#shown[index] = { raw: key, element, items: itemsOf(block) };
    finish(element, mayGrow);
  }
}

/** Return what the items of a list depend on: their source, and whether the list is a loose one. */
function itemsOf({ token }: Block): string[] {
  if (token.type !== "list") return [];
  const { items, loose } = token as Tokens.List;
  return items.map((item) => `${loose}${item.raw}`);
}

/** Replace the items of a list that have changed. Return false where it is another list. */
function growList(before: Shown, block: Block, key: string): boolean {
  const list = before.element.querySelector(":scope > ul, :scope > ol");
  const items = itemsOf(block);
  if (!list || before.element.dataset["start"] !== String(block.start) || items.length < before.items.length) return false;
  const same = before.items.findIndex((item, index) => item !== items[index]);
  const kept = same < 0 ? before.items.length : same;
  if (kept === 0) return false; // the first item says of which kind the list is
  const token = block.token as Tokens.List;
  const fresh = sanitizeText(htmlOf([{ ...token, items: token.items.slice(kept) }])).firstElementChild;
  while (list.children.length > kept) list.lastElementChild?.remove();
  list.append(...(fresh?.children ?? []));
  Object.assign(before, { raw: key, items });
  return true;
}

/** Append to a block of code that is still open. Return false where that is not what has changed. */
function growCode(before: Shown, block: Block, key: string): boolean {
  const code = before.element.querySelector(":scope > .code-frame code");
  const node = code?.firstChild;
  if (!(node instanceof Text) || code?.childNodes.length !== 1 || !isOpenCode(block)) return false;
  const source = (block.token as { text: string }).text;
  if (!key.startsWith(before.raw.replace(/\0$/, "")) || !source.startsWith(node.data)) return false;
  node.appendData(source.slice(node.length));
  before.raw = key;
  return true;
}

/** Finish the elements of a block that HTML alone does not make. */
function finish(element: HTMLElement, mayGrow: boolean): void {
  for (const pre of element.querySelectorAll<HTMLElement>("pre")) {
    if (!pre.closest(".code-frame")) frameCode(pre);
    if (!mayGrow) void highlight(pre);
  }
  for (const table of element.querySelectorAll("table")) {
    if (table.closest(".table-frame")) continue;
    const frame = document.createElement("div");
    frame.className = "table-frame";
    frame.tabIndex = 0; // wide tables are scrolled with the arrow keys
    frame.setAttribute("role", "group");
    frame.setAttribute("aria-label", "Table");
    table.replaceWith(frame);
    frame.append(table);
  }
  if (!mayGrow) for (const code of element.querySelectorAll<HTMLElement>("code.math:not(.typeset)")) void typeset(code);
}
