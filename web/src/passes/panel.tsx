/** The passes of one answer, and the link, in the panel beside a chat. */
import type { JSX } from "preact";
import { useMemo, useRef } from "preact/hooks";

import { PaintedText } from "../paint/painted.tsx";
import type { AnswerTrace } from "../paint/trace.ts";
import { Button, IconButton } from "../ui/button.tsx";
import { countText, figureText } from "../units.ts";
import { useAfterLayout } from "./after_layout.ts";
import { Bars } from "./bars.tsx";
import { passViews, type PassView, sentenceOf, type Totals, totalsOf, wordsOf } from "./figures.ts";
import { Link, useEngine } from "./link.tsx";
import { type Replay, SLOWER, useReplay } from "./replay.ts";
import { Sources } from "./sources.tsx";
import { Tree } from "./tree.tsx";

interface PanelProps {
  trace: AnswerTrace;
  /** Changes whenever the trace has grown. */
  version: number;
  isStreaming: boolean;
}

export function Passes({ trace, version, isStreaming }: PanelProps): JSX.Element {
  const views = useMemo(() => passViews(trace), [trace, version]);
  const shares = useMemo(() => trace.shares(), [trace, version]);
  const replay = useReplay(views, isStreaming);
  const view = views[replay.current];
  const engine = useEngine();
  return (
    <div class="passes">
      {view === undefined ? (
        <p class="muted">No pass has ended yet.</p>
      ) : (
        <>
          <Headline totals={totalsOf(views)} />
          <section aria-label="Tokens by what proposed them">
            <Sources shares={shares} />
          </section>
          <section aria-label="Each pass">
            <h3>Tokens of each pass</h3>
            <Bars views={views} current={replay.current} onChoose={replay.choose} />
            <Choice views={views} view={view} replay={replay} />
          </section>
          <section aria-label="One pass">
            <OnePass view={view} />
            {!replay.isAtEnd && <Replayed trace={trace} pass={view.pass.pass} />}
            {view.pass.tokens > 0 && (
              <Tree
                key={replay.isPlaying ? view.pass.pass : "still"} // a replay draws each tree anew
                view={view}
                isGrowing={replay.isPlaying}
              />
            )}
          </section>
        </>
      )}
      <section aria-label="Link and waits">
        <h3>Now, for all requests</h3>
        <Link engine={engine} />
      </section>
    </div>
  );
}

function Headline({ totals }: { totals: Totals }): JSX.Element {
  const { tokens, passes, each } = totals;
  const figures = [
    { name: "tokens a pass", text: each === null ? "–" : figureText(Number(each.toFixed(1))) },
    { name: tokens === 1 ? "token" : "tokens", text: countText(tokens) },
    { name: passes === 1 ? "pass" : "passes", text: countText(passes) },
  ];
  return (
    <dl class="headline">
      {figures.map(({ name, text }) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{text}</dd>
        </div>
      ))}
    </dl>
  );
}

interface ChoiceProps {
  views: readonly PassView[];
  view: PassView;
  replay: Replay;
}

/** The slider over the passes, and the buttons of the replay. */
function Choice({ views, view, replay }: ChoiceProps): JSX.Element {
  const { current, isPlaying, slower, choose } = replay;
  const last = views.length - 1;
  return (
    <>
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
      <div class="replay">
        <IconButton icon="left" name="Pass before" disabled={current <= 0} onClick={() => choose(current - 1)} />
        <Button kind="plain" onClick={replay.play} data-testid="replay">
          {isPlaying ? "Pause" : "Replay"}
        </Button>
        <IconButton icon="right" name="Next pass" disabled={current >= last} onClick={() => choose(current + 1)} />
        <select
          class="input"
          aria-label="Speed"
          value={slower}
          onChange={(event) => replay.setSlower(Number(event.currentTarget.value))}
        >
          {SLOWER.map((own) => (
            <option key={own} value={own}>
              {own === 1 ? "as it was" : `${own}× slower`}
            </option>
          ))}
        </select>
      </div>
    </>
  );
}

function OnePass({ view }: { view: PassView }): JSX.Element {
  const { title, details } = wordsOf(view);
  return (
    <div data-testid="pass">
      <h3>{title}</h3>
      <p class="muted details">
        {details.map((detail, at) => (
          <span key={detail}>
            {detail}
            {at < details.length - 1 && " ·"}
          </span>
        ))}
      </p>
    </div>
  );
}

/** The answer as it was after a pass, at its end. */
function Replayed({ trace, pass }: { trace: AnswerTrace; pass: number }): JSX.Element {
  const box = useRef<HTMLDivElement>(null);
  useAfterLayout(box, (element) => element.scrollTo({ top: element.scrollHeight }), [pass]);
  return (
    <div class="replayed" ref={box} role="group" aria-label="The answer after this pass" tabIndex={0}>
      <PaintedText stretches={trace.stretches("reasoning", pass)} />
      <PaintedText stretches={trace.stretches("content", pass)} />
    </div>
  );
}
