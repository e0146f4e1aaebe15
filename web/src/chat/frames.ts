/** Work that is done at most once in each frame of the screen. */

const HIDDEN_MS = 500; // a hidden page has no frames

const pending = new Set<() => void>();

/** Call a function before the next frame, once, however often it is asked for. */
export function onNextFrame(action: () => void): void {
  if (pending.size === 0) {
    if (document.hidden) setTimeout(runPending, HIDDEN_MS);
    else requestAnimationFrame(runPending);
  }
  pending.add(action);
}

function runPending(): void {
  const actions = [...pending];
  pending.clear();
  for (const action of actions) action();
}
