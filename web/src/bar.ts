/** What the present view adds to the bar at the top. */
import { signal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect } from "preact/hooks";

export const barContent = signal<JSX.Element | null>(null);

/** Show something in the bar while a view is there. */
export function useBarContent(content: JSX.Element): void {
  useEffect(() => {
    barContent.value = content;
    return () => {
      // the next view may have set its own before this one has gone
      if (barContent.peek() === content) barContent.value = null;
    };
  }, []);
}
