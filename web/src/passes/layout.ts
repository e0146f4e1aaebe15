/** Where the nodes of a draft tree are drawn: downwards, the accepted path straight on the first line. */
import type { DraftNode, TokenOrigin } from "../paint/types.ts";

export interface PlacedNode {
  /** The index in the pass's nodes; -1: the token before the tree, -2: the model's own token. */
  index: number;
  token: string;
  source: string;
  score: number;
  kind: "root" | "accepted" | "rejected" | "own";
  level: number;
  line: number;
  /** The placed parent; -1 for the root. */
  parent: number;
  children: number[];
}

export interface TreeLayout {
  nodes: PlacedNode[];
  levels: number;
  lines: number;
}

/**
 * Place a tree. Its levels follow each other downwards, and a node is on the line of its best child.
 * Branches are on the first line to the right that is free.
 *
 * @param own the model's own token after the accepted path, if the pass emitted one
 */
export function layOut(nodes: readonly DraftNode[], before: string, own: TokenOrigin | null): TreeLayout {
  return new Placing(nodes, own).place(before);
}

class Placing {
  readonly #placed: PlacedNode[] = [];
  readonly #children = new Map<number, number[]>();
  readonly #heights: number[];
  readonly #used: number[] = []; // by level, the last line that is used

  constructor(
    private readonly nodes: readonly DraftNode[],
    private readonly own: TokenOrigin | null,
  ) {
    this.#heights = nodes.map(() => 1);
    nodes.forEach(({ parent }, index) => {
      const known = this.#children.get(parent);
      if (known === undefined) this.#children.set(parent, [index]);
      else known.push(index);
    });
    for (let index = nodes.length - 1; index >= 0; index--) {
      const { parent } = nodes[index]!; // which comes before its children
      if (parent >= 0) this.#heights[parent] = Math.max(this.#heights[parent]!, this.#heights[index]! + 1);
    }
    for (const children of this.#children.values()) children.sort((first, second) => rank(nodes, first, second));
  }

  place(before: string): TreeLayout {
    const root = { index: -1, token: before, source: "", score: 0, kind: "root", level: 0, line: 0 } as const;
    this.#walk(-1, this.#add({ ...root, parent: -1 }));
    return { nodes: this.#placed, levels: this.#used.length, lines: Math.max(...this.#used) + 1 };
  }

  #add(node: Omit<PlacedNode, "children">): number {
    const number = this.#placed.push({ ...node, children: [] }) - 1;
    this.#placed[node.parent]?.children.push(number);
    this.#used[node.level] = Math.max(this.#used[node.level] ?? 0, node.line);
    return number;
  }

  /** Place what is below a node; `number` is its own place. */
  #walk(index: number, number: number): void {
    const { level, line, kind } = this.#placed[number]!;
    const below = this.#children.get(index) ?? [];
    const isEnd = kind !== "rejected" && !below.some((child) => this.nodes[child]!.accepted);
    const at = { level: level + 1, parent: number };
    if (isEnd && this.own !== null) {
      const { token, source } = this.own;
      this.#add({ index: -2, token, source, score: 0, kind: "own", line, ...at });
    }
    const isLineFree = !isEnd || this.own === null;
    const numbers = below.map((child, place) => {
      const { token, source, score, accepted } = this.nodes[child]!;
      const isFirst = place === 0 && isLineFree;
      const used = this.#used.slice(level + 1, level + 1 + this.#heights[child]!);
      const free = isFirst ? line : 1 + Math.max(line, ...used);
      const known = { index: child, token, source, score, kind: accepted ? "accepted" : "rejected" } as const;
      const placed = this.#add({ ...known, line: free, ...at });
      if (!isFirst) this.#walk(child, placed);
      return placed;
    });
    // What goes on this line is last, so that the branches here are the nearest to it.
    if (isLineFree && below.length > 0) this.#walk(below[0]!, numbers[0]!);
  }
}

function rank(nodes: readonly DraftNode[], first: number, second: number): number {
  const [one, other] = [nodes[first]!, nodes[second]!];
  return Number(other.accepted) - Number(one.accepted) || other.score - one.score || first - second;
}

const KEYS: Readonly<Record<string, "parent" | "child" | "previous" | "next">> = {
  ArrowUp: "parent",
  ArrowDown: "child",
  ArrowLeft: "previous",
  ArrowRight: "next",
};

/** Return the node that an arrow key leads to; null for another key. */
export function neighbour({ nodes }: TreeLayout, at: number, key: string): number | null {
  const way = KEYS[key];
  if (way === undefined) return key === "Home" ? 0 : null;
  const node = nodes[at]!;
  if (way === "parent") return Math.max(node.parent, 0);
  if (way === "child") return node.children[0] ?? at;
  const step = way === "next" ? 1 : -1;
  const level = nodes
    .map((other, number) => ({ ...other, number }))
    .filter((other) => other.level === node.level)
    .sort((first, second) => first.line - second.line);
  const place = level.findIndex((other) => other.number === at);
  return level[place + step]?.number ?? at;
}
