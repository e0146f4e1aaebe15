/** The draft tree of a pass as a picture that is read downwards; arrow keys move from token to token. */
import type { JSX } from "preact";
import { useMemo, useRef, useState } from "preact/hooks";

import { lookOf, nameOf } from "../paint/sources.ts";
import { number, ownToken, type PassView, visible } from "./figures.ts";
import { useAfterLayout } from "./after_layout.ts";
import { layOut, neighbour, type PlacedNode } from "./layout.ts";
import { fitted, measure, NODE_HEIGHT, STEP, topOf } from "./measure.ts";

const NOTE_GAP = 6; // between a token of the accepted path and its note

interface TreeProps {
  view: PassView;
  /** Whether its levels appear one after the other. */
  isGrowing: boolean;
}

export function Tree({ view, isGrowing }: TreeProps): JSX.Element {
  const layout = useMemo(() => layOut(view.pass.nodes, view.before, ownToken(view)), [view]);
  const size = useMemo(() => measure(layout, noteOf), [layout]);
  const { pass } = view.pass;
  const [looked, setLooked] = useState({ pass, at: 0 });
  const setCurrent = (at: number): void => setLooked({ pass, at });
  const scroller = useRef<HTMLDivElement>(null);
  const picture = useRef<SVGSVGElement>(null);
  const shown = layout.nodes[looked.pass === pass ? looked.at : 0] ?? layout.nodes[0]!;
  // the end of the accepted path is what the pass has brought
  const end = Math.max(...layout.nodes.map(({ kind, level }) => (kind === "rejected" ? 0 : level)));
  useAfterLayout(scroller, (box) => box.scrollTo({ left: 0, top: (end + 1) * STEP - box.clientHeight }), [pass, end]);
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
        ref={scroller}
        role="group"
        aria-label={`Draft tree of pass ${pass}; arrow keys move in it`}
        tabIndex={0}
        onKeyDown={onKeyDown}
      >
        <svg ref={picture} class={isGrowing ? "growing" : ""} width={size.width} height={size.height}>
          {layout.nodes.map((node, at) => (
            <Edge key={`edge ${at}`} node={node} parent={layout.nodes[node.parent]} lefts={size.lefts} isGrowing={isGrowing} />
          ))}
          {layout.nodes.map((node, at) => (
            <g
              key={at}
              data-node={at}
              class={`node ${node.kind} ${node.source === "" ? "" : lookOf(node.source)}`}
              transform={`translate(${size.lefts[node.line]} ${topOf(node)})`}
              style={isGrowing ? { "--level": node.level } : {}}
              role="img"
              aria-label={describe(node)}
              tabIndex={-1}
              onFocus={() => setCurrent(at)}
              onPointerEnter={() => setCurrent(at)}
            >
              <rect width={size.boxes[node.line]} height={NODE_HEIGHT} rx={6} />
              <text x={size.boxes[node.line]! / 2} y={NODE_HEIGHT / 2}>
                {fitted(visible(node.token))}
              </text>
              {node.line === 0 && (
                <text class="note" x={size.boxes[0]! + NOTE_GAP} y={NODE_HEIGHT / 2}>
                  {noteOf(node)}
                </text>
              )}
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

interface EdgeProps {
  node: PlacedNode;
  parent: PlacedNode | undefined;
  lefts: readonly number[];
  isGrowing: boolean;
}

const ANCHOR = 14; // where edges meet a node, from its left side

function Edge({ node, parent, lefts, isGrowing }: EdgeProps): JSX.Element | null {
  if (parent === undefined) return null;
  const [x, y] = [lefts[parent.line]! + ANCHOR, topOf(parent) + NODE_HEIGHT];
  const [toX, toY] = [lefts[node.line]! + ANCHOR, topOf(node)];
  const middle = (y + toY) / 2;
  const path = `M${x} ${y}C${x} ${middle + 2} ${toX} ${middle - 2} ${toX} ${toY}`;
  return <path class={`edge ${node.kind}`} style={isGrowing ? { "--level": node.level } : {}} d={path} />;
}

/** Return what stands beside a token of the first line: how likely the draft took it to be. */
function noteOf({ kind, score }: PlacedNode): string {
  return kind === "root" || kind === "own" ? "" : percent(Math.exp(score));
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
  if (share >= 0.0995) return `${Math.round(100 * share)} %`;
  return share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}
