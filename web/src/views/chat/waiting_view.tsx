/** What an answer waits for, in words, and for how long it has. */
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";

import type { Waiting } from "../../chat/waiting.ts";

const SHOWN_AFTER_S = 3;

export function WaitingView({ waiting }: { waiting: Waiting }): JSX.Element {
  const seconds = useSeconds();
  const time = seconds >= SHOWN_AFTER_S ? ` · ${seconds} s` : "";
  return (
    <div class="waiting">
      <span class="waiting-dots" aria-hidden="true">
        <i />
        <i />
        <i />
      </span>
      <span>
        {waiting.text}
        {time}
      </span>
      {waiting.share !== null && <progress value={waiting.share} max={1} aria-label={waiting.text} />}
    </div>
  );
}

/** Return the whole seconds since the component was first shown. */
function useSeconds(): number {
  const [began] = useState(() => Date.now());
  const [seconds, setSeconds] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => setSeconds(Math.floor((Date.now() - began) / 1000)), 1000);
    return () => clearInterval(timer);
  }, []);
  return seconds;
}
