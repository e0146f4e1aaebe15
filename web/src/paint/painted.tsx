/** Text of an answer with its paint, and the legend of the paint. */
import type { JSX } from "preact";

import { several } from "../units.ts";
import { nameOf, type Share } from "./sources.ts";
import type { Stretch } from "./trace.ts";

export function PaintedText({ stretches }: { stretches: readonly Stretch[] }): JSX.Element {
  return (
    <div class="painted">
      {stretches.map((own) =>
        own.look === "plain" ? (
          own.text
        ) : (
          <span key={own.start} class={`look ${own.look}`}>
            {own.text}
          </span>
        ),
      )}
    </div>
  );
}

/** The sources of an answer's tokens, with their counts and shares. */
export function Legend({ shares }: { shares: readonly Share[] }): JSX.Element {
  const total = shares.reduce((sum, own) => sum + own.count, 0);
  return (
    <ul class="legend" aria-label={`${several(total, "token")} by what proposed ${total === 1 ? "it" : "them"}`}>
      {shares.map((own) => (
        <li key={own.source} data-source={own.source} data-count={own.count}>
          <span class={`look ${own.look}`}>{nameOf(own.source)}</span> {own.count} ({percent(own.share)})
        </li>
      ))}
    </ul>
  );
}

function percent(share: number): string {
  return `${Math.round(100 * share)} %`;
}
