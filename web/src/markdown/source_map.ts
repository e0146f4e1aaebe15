/**
 * Where the visible text of a block comes from in its source.
 *
 * Markdown drops characters (marks, fences, escapes) but keeps the order of the others. So each
 * visible character is the next equal one of the source, and what lies between are marks.
 */

const FARTHEST = 2000; // characters of the source that are searched for one visible character

/** A text node, and for each of its characters the offset in the source; -1 for one that has none. */
export interface MappedText {
  node: Text;
  offsets: Int32Array;
}

/** Return the offsets of the text nodes of a block, or of a part of one, in order. */
export function mapText(element: Element, source: string, start: number): MappedText[] {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT, ({ parentElement: parent }) => {
    const isOther = parent?.closest(".code-head, .typeset") || parent?.closest("[data-start]") !== element;
    return isOther ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT;
  });
  const mapped: MappedText[] = [];
  let at = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode as Text;
    const found = alignText(node.data, source, at);
    at = found.end;
    mapped.push({ node, offsets: found.offsets.map((offset) => (offset < 0 ? -1 : offset + start)) });
  }
  return mapped;
}

/** Return where each character of a visible text is in the source, searched from `from` on. */
export function alignText(visible: string, source: string, from: number): { offsets: Int32Array; end: number } {
  const offsets = new Int32Array(visible.length).fill(-1);
  let at = from;
  for (let index = 0; index < visible.length; index++) {
    const found = source.indexOf(visible[index]!, at);
    if (found < 0 || found - at > FARTHEST) continue;
    offsets[index] = found;
    at = found + 1;
  }
  return { offsets, end: at };
}
