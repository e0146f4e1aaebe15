/** What is done before the page goes, which it may do at any moment once it is hidden. */

/** Call a function whenever the page is hidden, left, loaded again or closed. It must not wait. */
export function onLeave(action: () => void): void {
  addEventListener("pagehide", action);
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") action();
  });
}
