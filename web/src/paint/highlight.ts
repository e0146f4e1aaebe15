/**
 * Paint on rendered text. The browser's custom highlights tint ranges of text without changing the
 * document, so the text stays as markdown has rendered it. After each change of a document the browser
 * looks at all its ranges again, so only text that can be seen, or nearly, has some.
 */
import { mapText, type MappedText } from "../markdown/source_map.ts";
import { LOOKS, type Look } from "./sources.ts";
import type { Part } from "./spans.ts";
import type { AnswerTrace } from "./trace.ts";

/** Whether the browser has custom highlights; without them text is not tinted, only counted. */
export const canHighlight = typeof CSS !== "undefined" && "highlights" in CSS;

const NEAR = "50% 0px"; // of what can be scrolled, beyond what is seen
const UNIT = "[data-start]";
const GROWING = 2; // units at the end whose tokens may still come
const FEW = 4; // units that are new at once while an answer grows

type Ranges = readonly [Highlight, StaticRange][];

/** Tints an answer while it is shown: its units, elements that say where in the source their text begins. */
export class Painter {
  readonly #ranges = new Map<Element, Ranges>();
  readonly #near = new Set<Element>();
  readonly #changed = new Set<Element>();
  readonly #sight: IntersectionObserver;
  readonly #changes: MutationObserver;

  /** @param answer the element that has the units of the content, and below `.thought` those of the reasoning */
  constructor(
    private readonly answer: Element,
    private readonly trace: AnswerTrace,
  ) {
    this.#sight = new IntersectionObserver(this.#see, { root: answer.closest(".thread"), rootMargin: NEAR });
    this.#changes = new MutationObserver(this.#notice);
    this.#changes.observe(answer, { childList: true, characterData: true, subtree: true });
    this.#add(answer);
  }

  /** Remove the tint. */
  stop(): void {
    this.#sight.disconnect();
    this.#changes.disconnect();
    for (const unit of [...this.#ranges.keys()]) this.#clear(unit);
  }

  #see = (entries: IntersectionObserverEntry[]): void => {
    for (const { target, isIntersecting } of entries) {
      if (!target.isConnected) continue;
      if (isIntersecting) this.#near.add(target);
      else {
        this.#near.delete(target);
        this.#clear(target);
      }
      this.#changed.add(target);
    }
    this.#draw();
  };

  /** Tint what has changed before it is drawn. */
  #notice = (records: MutationRecord[]): void => {
    const added: Element[] = [];
    for (const { target, addedNodes, removedNodes } of records) {
      for (const node of removedNodes) if (node instanceof Element) this.#remove(node);
      for (const node of addedNodes) if (node instanceof Element) added.push(...this.#add(node));
      const unit = (target instanceof Element ? target : target.parentElement)?.closest(UNIT);
      if (unit) this.#changed.add(unit);
    }
    // text that grows is seen; the observer says so only after it was drawn
    for (const unit of added.length <= FEW ? added : []) {
      this.#near.add(unit);
      this.#changed.add(unit);
    }
    this.#draw();
  };

  #add(element: Element): Element[] {
    const units = unitsOf(element).filter((unit) => unit.isConnected);
    for (const unit of units) this.#sight.observe(unit);
    return units;
  }

  #remove(element: Element): void {
    for (const unit of unitsOf(element)) {
      if (unit.isConnected) continue; // it was moved
      this.#sight.unobserve(unit);
      this.#near.delete(unit);
      this.#changed.delete(unit);
      this.#clear(unit);
    }
  }

  #draw(): void {
    for (const unit of [...this.answer.querySelectorAll(UNIT)].slice(-GROWING)) this.#changed.add(unit);
    for (const unit of this.#changed) {
      this.#clear(unit);
      if (this.#near.has(unit)) this.#tint(unit);
    }
    this.#changed.clear();
  }

  #clear(unit: Element): void {
    for (const [highlight, range] of this.#ranges.get(unit) ?? []) highlight.delete(range);
    this.#ranges.delete(unit);
  }

  #tint(unit: Element): void {
    const part: Part = unit.closest(".thought") ? "reasoning" : "content";
    const start = startOf(unit)!;
    const source = this.trace.text(part).slice(start, startOf(nextUnit(unit)));
    const ranges = rangesOf(mapText(unit, source, start), this.trace.looksOf(part));
    for (const [highlight, range] of ranges) highlight.add(range);
    this.#ranges.set(unit, ranges);
  }
}

function unitsOf(element: Element): Element[] {
  return [...(element.matches(UNIT) ? [element] : []), ...element.querySelectorAll(UNIT)];
}

/** Return where the source of a unit begins; undefined for another element. */
function startOf(unit: Element | null | undefined): number | undefined {
  const start = unit?.getAttribute("data-start");
  return start == null ? undefined : Number(start);
}

/** Return the unit at which the source of a unit ends: the first within it, or the one behind it. */
function nextUnit(unit: Element): Element | null | undefined {
  return unit.querySelector(UNIT) ?? unit.nextElementSibling ?? unit.parentElement?.closest(".block")?.nextElementSibling;
}

function rangesOf(mapped: readonly MappedText[], looks: readonly (Look | undefined)[]): Ranges {
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
