/**
 * Paint on rendered text. The browser's custom highlights tint ranges of text without changing the
 * document, so the text stays as markdown has rendered it.
 */
import { mapBlock, type MappedText } from "../markdown/source_map.ts";
import { LOOKS, type Look } from "./sources.ts";
import type { Part } from "./spans.ts";
import type { AnswerTrace } from "./trace.ts";

/** Whether the browser has custom highlights; without them text is not tinted, only counted. */
export const canHighlight = typeof CSS !== "undefined" && "highlights" in CSS;

type Painted = readonly [Highlight, StaticRange][];

/** By the element that was tinted, its blocks (or itself) with their ranges. */
const painted = new WeakMap<Element, Map<Element, Painted>>();

/**
 * Tint the blocks of markdown below an element, which show the content of an answer.
 *
 * @param changed the elements that have changed since the last call; null: all
 */
export function paintMarkdown(element: Element, trace: AnswerTrace, changed: ReadonlySet<Element> | null): void {
  const text = trace.text("content");
  const blocks = [...element.querySelectorAll<HTMLElement>(":scope > .block")];
  const starts = blocks.map((block) => Number(block.dataset["start"]));
  const known = painted.get(element) ?? new Map<Element, Painted>();
  const kept = new Map<Element, Painted>();
  blocks.forEach((block, index) => {
    const before = known.get(block);
    const isLast = index === blocks.length - 1; // it grows
    if (before !== undefined && !isLast && changed !== null && !changed.has(block)) {
      kept.set(block, before);
      known.delete(block);
      return;
    }
    const start = starts[index]!;
    kept.set(block, tint(mapBlock(block, text.slice(start, starts[index + 1]), start), trace, "content"));
  });
  for (const old of known.values()) remove(old);
  painted.set(element, kept);
}

/** Tint an element that shows a part of an answer as it is, without the white space around it. */
export function paintPlain(element: Element, trace: AnswerTrace, part: Part): void {
  unpaint(element);
  const node = element.firstChild;
  const text = trace.text(part);
  const start = text.length - text.trimStart().length;
  if (!(node instanceof Text) || !text.startsWith(node.data, start)) return;
  const offsets = Int32Array.from(node.data, (_, index) => start + index);
  painted.set(element, new Map([[element, tint([{ node, offsets }], trace, part)]]));
}

/** Remove the tint of an element. */
export function unpaint(element: Element): void {
  for (const ranges of painted.get(element)?.values() ?? []) remove(ranges);
  painted.delete(element);
}

function remove(ranges: Painted): void {
  for (const [highlight, range] of ranges) highlight.delete(range);
}

function tint(mapped: readonly MappedText[], trace: AnswerTrace, part: Part): Painted {
  const looks = trace.looksOf(part);
  const ranges: [Highlight, StaticRange][] = [];
  for (const { node, offsets } of mapped) {
    let at = 0;
    while (at < offsets.length) {
      const look = lookAt(looks, offsets[at]!);
      let end = at + 1;
      while (end < offsets.length && lookAt(looks, offsets[end]!) === look) end++;
      if (look !== null) {
        const places = { startContainer: node, startOffset: at, endContainer: node, endOffset: end };
        ranges.push([highlightOf(look), new StaticRange(places)]);
      }
      at = end;
    }
  }
  for (const [highlight, range] of ranges) highlight.add(range);
  return ranges;
}

function lookAt(looks: readonly (Look | undefined)[], offset: number): Look | null {
  const look = looks[offset]; // undefined for -1 too
  return look === undefined || look === "plain" ? null : look;
}

function highlightOf(look: Look): Highlight {
  const name = `paint-${look}`;
  let highlight = CSS.highlights.get(name);
  if (highlight === undefined) {
    highlight = new Highlight();
    highlight.priority = LOOKS.indexOf(look);
    CSS.highlights.set(name, highlight);
  }
  return highlight;
}
