/** The draft tree of a pass as a picture, in which arrow keys move from token to token. */
import type { JSX } from "preact";
import { useMemo, useRef, useState } from "preact/hooks";

import { lookOf, nameOf } from "../paint/sources.ts";
import { number, ownToken, type PassView, visible } from "./figures.ts";
import { layOut, neighbour, type PlacedNode } from "./layout.ts";

const COLUMN = 86;
const ROW = 30;
const BOX = 72;
const HEIGHT = 22;
const LONGEST = 9; // characters of a token in its box

export function Tree({ view }: { view: PassView }): JSX.Element {
  const layout = useMemo(() => layOut(view.pass.nodes, view.before, ownToken(view)), [view]);
  const [current, setCurrent] = useState(0);
  const picture = useRef<SVGSVGElement>(null);
  const shown = layout.nodes[Math.min(current, layout.nodes.length - 1)]!;
  const onKeyDown = (event: KeyboardEvent): void => {
    const next = neighbour(layout, layout.nodes.indexOf(shown), event.key);
    if (next === null) return;
    event.preventDefault();
    setCurrent(next);
    picture.current?.querySelectorAll<SVGElement>("[data-node]")[next]?.focus();
  };
  return (
    <figure class="tree">
      <div
        class="tree-scroll"
        role="group"
        aria-label={`Draft tree of pass ${view.pass.pass}; arrow keys move in it`}
        tabIndex={0}
        onKeyDown={onKeyDown}
      >
        <svg ref={picture} width={layout.columns * COLUMN} height={layout.rows * ROW + 4}>
          {layout.nodes.map((node, at) => (
            <Edge key={`edge ${at}`} node={node} parent={layout.nodes[node.parent]} />
          ))}
          {layout.nodes.map((node, at) => (
            <g
              key={at}
              data-node={at}
              class={`node ${node.kind} ${node.source === "" ? "" : lookOf(node.source)}`}
              transform={`translate(${node.column * COLUMN + 4} ${node.row * ROW + 4})`}
              role="img"
              aria-label={describe(node)}
              tabIndex={-1}
              onFocus={() => setCurrent(at)}
              onPointerEnter={() => setCurrent(at)}
            >
              <rect width={BOX} height={HEIGHT} rx={6} />
              <text x={BOX / 2} y={HEIGHT / 2}>
                {shorten(visible(node.token))}
              </text>
            </g>
          ))}
        </svg>
      </div>
      <figcaption>
        {describe(shown)}
        {view.pass.nodes_left_out > 0 && ` ${view.pass.nodes_left_out} rejected tokens are not shown.`}
      </figcaption>
    </figure>
  );
}

function Edge({ node, parent }: { node: PlacedNode; parent: PlacedNode | undefined }): JSX.Element | null {
  if (parent === undefined) return null;
  const [x, y] = [parent.column * COLUMN + 4 + BOX, parent.row * ROW + 4 + HEIGHT / 2];
  const [toX, toY] = [node.column * COLUMN + 4, node.row * ROW + 4 + HEIGHT / 2];
  const middle = (x + toX) / 2;
  return <path class={`edge ${node.kind}`} d={`M${x} ${y}C${middle} ${y} ${middle} ${toY} ${toX} ${toY}`} />;
}

function shorten(text: string): string {
  const characters = [...text];
  return characters.length > LONGEST ? `${characters.slice(0, LONGEST - 1).join("")}…` : text;
}

/** Return what is known of a node as a sentence. */
function describe({ kind, token, source, score }: PlacedNode): string {
  const name = `“${visible(token)}”`;
  if (kind === "root") return `${name}: the last token before this pass.`;
  if (kind === "own") return `${name}: chosen by ${nameOf(source)}, not drafted.`;
  const likely = `score ${number(Math.abs(score)) === "0.00" ? "0" : `−${number(Math.abs(score))}`}`;
  return `${name}: drafted by ${nameOf(source)}, ${likely} (${percent(Math.exp(score))} likely), ${kind}.`;
}

function percent(share: number): string {
  return share < 0.001 ? "under 0.1 %" : `${number(100 * share)} %`;
}
