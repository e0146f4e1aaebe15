/** How large the picture of a draft tree is: each line of the tree is as wide as its widest token. */
import type { PlacedNode, TreeLayout } from "./layout.ts";

export const NODE_HEIGHT = 22;
/** From one level of the tree to the next. */
export const STEP = 36;

const BORDER = 2; // half of it lies outside of a node
const CHARACTER = 7; // of the tokens' font, 0.72 rem
const PADDING = 16;
const NOTE_CHARACTER = 6.2; // of the notes' font, at most
const GAP = 8; // between two lines
const LONGEST = 12; // halves of a wide character that a node shows

export interface TreeSize {
  /** By line, where it begins, and the width of its nodes. */
  lefts: number[];
  boxes: number[];
  width: number;
  height: number;
}

/** Measure a tree. `noteOf` returns the text beside a node of the first line. */
export function measure({ nodes, levels, lines }: TreeLayout, noteOf: (node: PlacedNode) => string): TreeSize {
  const boxes = new Array<number>(lines).fill(NODE_HEIGHT);
  let note = 0;
  for (const node of nodes) {
    boxes[node.line] = Math.max(boxes[node.line]!, PADDING + CHARACTER * widthOf(fitted(node.token)));
    if (node.line === 0) note = Math.max(note, NOTE_CHARACTER * noteOf(node).length);
  }
  const lefts: number[] = [];
  let at = BORDER;
  boxes.forEach((box, line) => {
    lefts.push(at);
    at += box + GAP + (line === 0 ? note + GAP : 0);
  });
  return { lefts, boxes, width: at, height: (levels - 1) * STEP + NODE_HEIGHT + 2 * BORDER };
}

/** Return where a node begins, from the top. */
export function topOf({ level }: PlacedNode): number {
  return level * STEP + BORDER;
}

/** Return a text, cut to what a node shows. */
export function fitted(text: string): string {
  if (widthOf(text) <= LONGEST) return text;
  let kept = "";
  for (const character of text) {
    if (widthOf(kept) + widthOf(character) >= LONGEST) break;
    kept += character;
  }
  return `${kept}…`;
}

// East Asian scripts and pictures take the place of two letters
const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60]|\p{Extended_Pictographic}/u;

function widthOf(text: string): number {
  return [...text].reduce((sum, character) => sum + (WIDE.test(character) ? 2 : 1), 0);
}
