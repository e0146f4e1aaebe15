/** A thin bar that shows a share; the text beside it says the same. */
import type { JSX } from "preact";

export function Meter({ share }: { share: number }): JSX.Element {
  return (
    <svg class="meter" aria-hidden="true">
      <rect class="whole" width="100%" height="100%" rx="2" />
      <rect class="used" width={`${(100 * share).toFixed(2)}%`} height="100%" rx="2" />
    </svg>
  );
}
