/** The panel with the passes of an answer: that which was asked for, else the last one of the chat. */
import { signal } from "@preact/signals";
import type { ComponentType, JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { openChat } from "../../chat/chats.ts";
import { running, runningIn } from "../../chat/generation.ts";
import { pathOf } from "../../chat/tree.ts";
import { Legend } from "../../paint/painted.tsx";
import { isPainting, setPainting, type Traced, traceOf } from "../../paint/traces.ts";
import { Button } from "../../ui/button.tsx";
import type { Passes } from "../../passes/panel.tsx";
import { raceAnswer, savePainted } from "./trace_actions.ts";

/** The message whose passes are shown, if one was chosen. */
export const shownMessage = signal<string | null>(null);

/** Return the message whose passes the panel shows, if it is open. */
export function shownId(): string | undefined {
  const path = pathOf(openChat.value);
  const writing = runningIn(openChat.value.id)?.shown.peek().id;
  const chosen = path.find(({ id }) => id === shownMessage.value)?.id;
  return chosen ?? writing ?? path.findLast(({ answer }) => answer !== undefined)?.id;
}

type Shown = ComponentType<Parameters<typeof Passes>[0]>;

const DRAW_MS = 200; // between two pictures of a growing trace

/** Return a trace as it was a moment ago, so that what shows it is drawn a few times a second. */
function useSlowly(traced: Traced | null): Traced | null {
  const [shown, setShown] = useState(traced);
  const latest = useRef(traced);
  latest.current = traced;
  const isOther = traced?.trace !== shown?.trace;
  useEffect(() => {
    if (isOther) setShown(traced);
    if (traced === shown) return undefined;
    const timer = setTimeout(() => setShown(latest.current), DRAW_MS);
    return () => clearTimeout(timer);
  }, [isOther, traced === shown]);
  return isOther ? traced : shown;
}

export function PassesPanel(): JSX.Element {
  const [Content, setContent] = useState<Shown | null>(null);
  const [hasFailed, setFailed] = useState(false);
  useEffect(() => {
    import("../../passes/panel.tsx").then(
      (module) => setContent(() => module.Passes),
      () => setFailed(true),
    );
  }, []);
  const id = shownId();
  const message = pathOf(openChat.value).find((own) => own.id === id);
  const traced = useSlowly(message === undefined ? null : traceOf(message));
  const isWriting = id !== undefined && running.value.has(id);
  // of an answer that was written before the page was opened, only the paint is kept
  const hasPasses = traced !== null && (isWriting || traced.trace.passes.length > 0);
  return (
    <>
      {hasFailed && <p class="muted">This part of the page could not be loaded. Load the page again.</p>}
      {traced !== null && !hasPasses && <Legend shares={traced.trace.shares()} />}
      {!hasPasses && (
        <p class="muted">
          {id === undefined
            ? "Ask something: this shows how the answer comes about."
            : "The passes of this answer are not known: they are kept only while the page is open."}
        </p>
      )}
      {Content !== null && traced !== null && hasPasses && (
        <Content
          key={id}
          trace={traced.trace}
          version={traced.version}
          isStreaming={isWriting}
        />
      )}
      {message?.answer !== undefined && traced !== null && !isWriting && (
        <div class="passes-actions">
          <Button onClick={() => raceAnswer(message)}>Race it against plain decoding</Button>
          <Button onClick={() => void savePainted(message)}>Save it as a page</Button>
        </div>
      )}
      <label class="check">
        <input
          type="checkbox"
          checked={isPainting.value}
          onChange={(event) => setPainting(event.currentTarget.checked)}
        />
        <span>Tint each token by what proposed it</span>
      </label>
    </>
  );
}
