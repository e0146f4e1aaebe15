/**
 * Markdown in the page, which may grow: blocks that have not changed keep their elements.
 *
 * Each block is a `<div class="block" data-start="N">`: N is where its source begins in the text. A long block
 * grows by parts, elements within it that have a `data-start` of their own.
 */
import type { Tokens } from "marked";

import { type Block, Blocks } from "./blocks.ts";
import { frameCode, highlight } from "./code.ts";
import { isMidItem, isMidParagraph, isOpenCode } from "./cuts.ts";
import { htmlOf } from "./html.ts";
import { typeset } from "./math.ts";
import { sanitizeText } from "./sanitize.ts";

interface Shown {
  raw: string;
  element: HTMLElement;
  items: string[];
  /** Whether the element is within that of a block before it. */
  isPart: boolean;
}

// The rest of a list that was cut is a list of its own, and that of a quote is a quote.
const OF_ITS_OWN = new Set(["list", "blockquote"]);

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
      const next = blocks[index + 1];
      // code is coloured as a whole
      const mayGrow = next === undefined ? !isComplete : next.continues && block.token.type === "code";
      this.#showBlock(block, index, mayGrow);
    });
    this.#dropFrom(blocks.length);
  }

  #dropFrom(index: number): void {
    for (const { element } of this.#shown.splice(index)) element.remove();
  }

  #showBlock(block: Block, index: number, mayGrow: boolean): void {
    const isPart = block.continues && !OF_ITS_OWN.has(block.token.type);
    if (this.#shown[index]?.isPart === !isPart) this.#dropFrom(index);
    const before = this.#shown[index];
    const key = mayGrow ? `${block.raw}\0` : block.raw; // a block is finished when it is followed
    if (before?.raw === key && before.element.dataset["start"] === String(block.start)) return;
    if (before && mayGrow && growCode(before, block, key)) return;
    if (before && growList(before, block, key)) {
      finish(before.element, mayGrow);
      return;
    }
    if (!isPart && this.#shown[index + 1]?.isPart) this.#dropFrom(index + 1); // they are in the old element
    const content = sanitizeText(htmlOf([block.token]));
    const owner = isPart ? this.#shown.findLast((shown, at) => at < index && !shown.isPart)!.element : null;
    const { element, place } = owner ? partOf(content, owner) : { element: blockOf(content, block), place: this.root };
    element.dataset["start"] = String(block.start);
    if (before) before.element.replaceWith(element);
    else place.append(element);
    this.#shown[index] = { raw: key, element, items: itemsOf(block), isPart };
    finish(element, mayGrow);
  }
}

function blockOf(content: DocumentFragment, { continues, token }: Block): HTMLElement {
  const element = document.createElement("div");
  element.className = continues ? "block joined" : "block";
  element.classList.toggle("mid-paragraph", isMidParagraph(token));
  element.classList.toggle("mid-item", isMidItem(token));
  element.append(content);
  return element;
}

/** Return the element of a further part of a block, and the element of the block that it belongs into. */
function partOf(content: DocumentFragment, owner: HTMLElement): { element: HTMLElement; place: HTMLElement } {
  const table = owner.querySelector("table");
  if (table) return { element: content.querySelector("tbody") ?? document.createElement("tbody"), place: table };
  const element = document.createElement("span");
  element.append(...(content.querySelector("code, p")?.childNodes ?? []));
  return { element, place: owner.querySelector<HTMLElement>("pre code, p")! };
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
  const code = before.isPart ? before.element : before.element.querySelector(":scope > .code-frame code");
  const node = code?.firstChild;
  if (!(node instanceof Text) || code?.childNodes.length !== 1 || !isOpenCode(block.token)) return false;
  const source = (block.token as { text: string }).text;
  if (!key.startsWith(before.raw.replace(/\0$/, "")) || !source.startsWith(node.data)) return false;
  node.appendData(source.slice(node.length));
  before.raw = key;
  return true;
}

/** Finish the elements of a block that HTML alone does not make. */
function finish(element: HTMLElement, mayGrow: boolean): void {
  const whole = element.closest("pre"); // that a part belongs to
  for (const pre of whole ? [whole] : element.querySelectorAll<HTMLElement>("pre")) {
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
