/** Scrolling that waits until the browser has laid out what was changed. */
import { useLayoutEffect } from "preact/hooks";

/**
 * Call a function with an element after the layout that follows a change, and before it is drawn.
 *
 * Reading sizes at once instead would have the browser lay out the page inside of the script.
 */
export function useAfterLayout<T extends HTMLElement>(
  reference: { current: T | null },
  action: (element: T) => void,
  changes: readonly unknown[],
): void {
  useLayoutEffect(() => {
    const element = reference.current;
    if (element === null) return undefined;
    const observer = new ResizeObserver(() => {
      observer.disconnect(); // it is called once as soon as it observes
      action(element);
    });
    observer.observe(element);
    return () => observer.disconnect();
  }, changes);
}
