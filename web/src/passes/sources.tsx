/** What proposed the tokens of an answer: a bar of the shares, and a line for each source. */
import type { JSX } from "preact";

import { meaningOf, nameOf, type Share } from "../paint/sources.ts";
import { countText } from "../units.ts";

export function Sources({ shares }: { shares: readonly Share[] }): JSX.Element {
  return (
    <>
      <div class="shares" aria-hidden="true">
        {shares.map(({ source, look, count }) => (
          <span key={source} class={look} style={{ flexGrow: count }} />
        ))}
      </div>
      <ul class="sources">
        {shares.map(({ source, look, count, share }) => (
          <li key={source} data-source={source} data-count={count}>
            <span>
              <span class={`look ${look}`}>{nameOf(source)}</span>
              <span class="muted">{meaningOf(source)}</span>
            </span>
            <span class="amount">{countText(count)}</span>
            <span class="amount muted">{Math.round(100 * share)} %</span>
          </li>
        ))}
      </ul>
    </>
  );
}
