/** The passes of one answer, and the link, in the panel beside a chat. */
import type { JSX } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";

import { Legend, PaintedText } from "../paint/painted.tsx";
import type { AnswerTrace } from "../paint/trace.ts";
import { Button, IconButton } from "../ui/button.tsx";
import { Bars } from "./bars.tsx";
import { passViews, secondsOf, sentenceOf } from "./figures.ts";
import { Link, useEngine } from "./link.tsx";
import { Tree } from "./tree.tsx";

interface PanelProps {
  trace: AnswerTrace;
  /** Changes whenever the trace has grown. */
  version: number;
  isStreaming: boolean;
}

/** How much slower than it was an answer is replayed. */
const SLOWER = [1, 4, 16, 64] as const;
const SHORTEST_MS = 30;

export function Passes({ trace, version, isStreaming }: PanelProps): JSX.Element {
  const views = useMemo(() => passViews(trace), [trace, version]);
  const shares = useMemo(() => trace.shares(), [trace, version]);
  const [chosen, setChosen] = useState<number | null>(null); // null: the last one
  const [isPlaying, setPlaying] = useState(false);
  const [slower, setSlower] = useState<number>(4);
  const last = views.length - 1;
  const current = Math.min(chosen ?? last, last);
  const view = views[current];
  const engine = useEngine();

  useEffect(() => {
    if (!isPlaying || view === undefined) return undefined;
    if (current >= last && !isStreaming) {
      setPlaying(false);
      return undefined;
    }
    const next = views[current + 1];
    if (next === undefined) return undefined; // it is still to come
    const wait = Math.max(SHORTEST_MS, 1000 * secondsOf(next.pass) * slower);
    const timer = setTimeout(() => setChosen(current + 1), wait);
    return () => clearTimeout(timer);
  }, [isPlaying, current, last, slower, isStreaming]);

  const play = (): void => {
    if (!isPlaying && current >= last) setChosen(0);
    setPlaying(!isPlaying);
  };
  const choose = (index: number): void => {
    setPlaying(false);
    setChosen(index >= last ? null : Math.max(0, index));
  };

  return (
      <div class="passes">
        <Legend shares={shares} />
        {view === undefined ? (
          <p class="muted">No pass has ended yet.</p>
        ) : (
          <>
            <section aria-label="Each pass">
              <Bars views={views} current={current} onChoose={choose} />
              <label class="pass-choice">
                <span class="only-read">Pass</span>
                <input
                  type="range"
                  min={0}
                  max={Math.max(last, 0)}
                  value={current}
                  aria-valuetext={sentenceOf(view)}
                  onInput={(event) => choose(event.currentTarget.valueAsNumber)}
                />
              </label>
              <div class="row">
                <IconButton icon="left" name="Pass before" disabled={current <= 0} onClick={() => choose(current - 1)} />
                <Button kind="plain" onClick={play} data-testid="replay">
                  {isPlaying ? "Pause" : "Replay"}
                </Button>
                <IconButton icon="right" name="Next pass" disabled={current >= last} onClick={() => choose(current + 1)} />
                <label class="slower">
                  <span>Speed</span>
                  <select class="input" value={slower} onChange={(event) => setSlower(Number(event.currentTarget.value))}>
                    {SLOWER.map((own) => (
                      <option key={own} value={own}>
                        {own === 1 ? "as it was" : `${own}× slower`}
                      </option>
                    ))}
                  </select>
                </label>
              </div>
            </section>
            <section aria-label="One pass">
              <p data-testid="pass">{sentenceOf(view)}</p>
              {view.pass.tokens > 0 && <Tree key={view.pass.pass} view={view} />}
            </section>
            {(isPlaying || chosen !== null) && (
              <section class="replayed" aria-label="The answer after this pass" tabIndex={0}>
                <PaintedText stretches={trace.stretches("reasoning", view.pass.pass)} />
                <PaintedText stretches={trace.stretches("content", view.pass.pass)} />
              </section>
            )}
          </>
        )}
        <section aria-label="Link and waits">
          <h3>Link</h3>
          <Link engine={engine} />
        </section>
      </div>
  );
}
