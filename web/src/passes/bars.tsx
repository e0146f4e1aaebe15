/** A bar for each pass: its height is the number of tokens, in the looks of their sources. */
import type { JSX } from "preact";
import { useRef } from "preact/hooks";

import { type Look, lookOf } from "../paint/sources.ts";
import { countText } from "../units.ts";
import { useAfterLayout } from "./after_layout.ts";
import { type PassView, sentenceOf } from "./figures.ts";

const MOST = 400; // bars that are drawn; the slider reaches the others

interface BarsProps {
  views: readonly PassView[];
  current: number;
  onChoose: (index: number) => void;
}

export function Bars({ views, current, onChoose }: BarsProps): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  const most = Math.max(4, ...views.map((view) => view.tokens.length));
  const first = Math.max(0, Math.min(current - MOST / 2, views.length - MOST));
  const showCurrent = (bars: HTMLElement): void => {
    const bar = bars.querySelector<HTMLElement>(".pass-bar.current");
    if (bar) bars.scrollLeft = bar.offsetLeft - bars.clientWidth / 2;
  };
  useAfterLayout(box, showCurrent, [current, views.length]);
  return (
    <div class="pass-chart" aria-hidden="true">
      <span class="pass-most">{countText(most)}</span>
      <div class="pass-bars" ref={box}>
        {views.slice(first, first + MOST).map((view, place) => (
          <div
            key={first + place}
            class={`pass-bar ${first + place === current ? "current" : ""} ${view.tokens.length ? "" : "prompt"}`}
            title={sentenceOf(view)}
            onClick={() => onChoose(first + place)}
          >
            {runsOf(view).map(({ look, count }, number) => (
              <span
                key={number}
                class={look}
                style={{ height: `${(100 * count) / most}%`, "--count": count }}
              />
            ))}
          </div>
        ))}
      </div>
    </div>
  );
}

/** Return the looks of a pass's tokens, with how many follow each other. */
function runsOf({ tokens }: PassView): { look: Look; count: number }[] {
  const runs: { look: Look; count: number }[] = [];
  for (const { source } of tokens) {
    const look = lookOf(source);
    const last = runs.at(-1);
    if (last?.look === look) last.count++;
    else runs.push({ look, count: 1 });
  }
  return runs;
}
