/** Sentences for screen readers, which are not shown. */
import { signal } from "@preact/signals";
import type { JSX } from "preact";

const sentence = signal("");
let repetitions = 0;

/** Have a screen reader say a sentence when it is next idle. */
export function announce(text: string): void {
  // a trailing space makes a repeated sentence a change, which is read again
  repetitions = sentence.peek().trimEnd() === text ? repetitions + 1 : 0;
  sentence.value = text + " ".repeat(repetitions % 2);
}

export function Announcer(): JSX.Element {
  return (
    <div class="only-read" aria-live="polite" aria-atomic="true" data-testid="announcer">
      {sentence.value}
    </div>
  );
}
