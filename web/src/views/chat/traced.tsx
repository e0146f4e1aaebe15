/** What an answer has besides its text where its tokens are known: paint, passes, race and export. */
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";

import type { Message } from "../../chat/model.ts";
import { canHighlight, Painter } from "../../paint/highlight.ts";
import { Legend, PaintedText } from "../../paint/painted.tsx";
import type { AnswerTrace } from "../../paint/trace.ts";
import { isPainting, traceOf } from "../../paint/traces.ts";
import { Menu } from "../../ui/menu.tsx";
import { openPanel } from "./panels.ts";
import { shownId, shownMessage } from "./passes_panel.tsx";
import { raceAnswer, savePainted } from "./trace_actions.ts";

/** The tint of the answer around this element, and its legend. */
export function Paint({ message }: { message: Message }): JSX.Element | null {
  const place = useRef<HTMLDivElement>(null);
  const traced = traceOf(message);
  const isShown = isPainting.value && traced !== null;
  const trace = isShown ? traced.trace : null;
  const isInPanel = openPanel.value === "passes" && shownId() === message.id; // which has the legend too
  useEffect(() => {
    const answer = place.current?.closest(".answer");
    if (!answer || trace === null || !canHighlight) return undefined;
    const painter = new Painter(answer, trace);
    return () => painter.stop();
  }, [trace]);
  return (
    <div class="paint-legend" ref={place}>
      {trace !== null && !isInPanel && <LegendOf trace={trace} />}
    </div>
  );
}

/** The legend of an answer's tint, and where the browser cannot tint the text, a copy of it that is. */
function LegendOf({ trace }: { trace: AnswerTrace }): JSX.Element | null {
  const shares = trace.shares();
  if (shares.length === 0) return null;
  return (
    <>
      <Legend shares={shares} />
      {!canHighlight && (
        <details class="tinted-copy">
          <summary>This browser cannot tint the answer itself: show a tinted copy</summary>
          <PaintedText stretches={trace.stretches("reasoning")} />
          <PaintedText stretches={trace.stretches("content")} />
        </details>
      )}
    </>
  );
}

/** What can be done with an answer and its trace. */
export function TraceTools({ message }: { message: Message }): JSX.Element | null {
  if (!message.answer) return null;
  const traced = traceOf(message);
  const items = [
    { name: "Race it against plain decoding", run: () => raceAnswer(message) },
    ...(traced
      ? [
          ...(traced.trace.passes.length > 0 ? [{ name: "Show its passes", run: () => showPasses(message) }] : []),
          { name: "Save it as a page", run: () => void savePainted(message) },
        ]
      : []),
  ];
  return <Menu name="How it came about" icon="passes" items={items} />;
}

function showPasses(message: Message): void {
  shownMessage.value = message.id;
  openPanel.value = "passes";
}
