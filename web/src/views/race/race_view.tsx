/** A race: one question answered with and without drafts, with the same seed, side by side. */
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { isAbort } from "../../api/errors.ts";
import { onNextFrame } from "../../chat/frames.ts";
import { drawSeed } from "../../chat/request.ts";
import { Legend, PaintedText } from "../../paint/painted.tsx";
import { announce } from "../../ui/announce.tsx";
import { Button } from "../../ui/button.tsx";
import { TextArea, TextField } from "../../ui/fields.tsx";
import { several } from "../../units.ts";
import { Lane } from "./lane.ts";
import { type Prepared, prepared } from "./prepared.ts";
import { questionOf, withQuestion } from "./question.ts";
import { RaceProblem } from "./race_problem.tsx";
import { seedProblem } from "./seed.ts";
import { savingOf, soFar, type Verdict, verdictOf } from "./verdict.ts";

const MOST_TOKENS = 256;
const FIRST_QUESTION = "What is Understudy?";

export function RaceView(): JSX.Element {
  const given = prepared.value;
  const [question, setQuestion] = useState(questionOf(given?.messages ?? []) ?? FIRST_QUESTION);
  const [seed, setSeed] = useState(String(given?.fields["seed"] ?? drawSeed()));
  const [lanes, setLanes] = useState<Lane[]>([]);
  const [, setVersion] = useState(0);
  const [failure, setFailure] = useState<unknown>(null);
  const running = useRef<AbortController | null>(null);
  const [isRunning, setRunning] = useState(false);
  useEffect(() => () => running.current?.abort(), []);

  const seedError = seedProblem(seed);
  const canStart = seedError === null && question.trim() !== "" && !isRunning;

  const start = async (): Promise<void> => {
    if (!canStart) return;
    const given = prepared.peek();
    const stop = new AbortController();
    running.current = stop;
    const pair = [new Lane(true), new Lane(false)];
    const messages = withQuestion(given?.messages ?? [], question);
    const asked = { max_tokens: MOST_TOKENS, ...given?.fields, messages, seed: Number(seed) };
    setLanes(pair);
    setFailure(null);
    setRunning(true);
    const count = (): void => setVersion((version) => version + 1);
    const draw = (): void => onNextFrame(count);
    try {
      await Promise.all(pair.map((lane) => lane.run(asked, stop.signal, draw)));
      announce(verdictOf(pair[0]!.ids, pair[1]!.ids).text);
    } catch (error) {
      if (!isAbort(error)) setFailure(error);
      stop.abort(); // one lane alone is no race
    }
    setRunning(false);
  };

  const alone = (): void => {
    const { model } = given?.fields ?? {};
    prepared.value = model === undefined ? null : { messages: [], fields: { model } };
    void start();
  };

  const [first, second] = lanes;
  const isOver = first?.isOver && second?.isOver;
  const verdict = isOver ? verdictOf(first.ids, second.ids) : null;
  const longest = Math.max(1, ...lanes.map((lane) => lane.ids.length));
  return (
    <main class="view page race">
      <header class="page-head">
        <h1>Race</h1>
        <p class="muted">
          One question is answered twice at once, with the same seed: with drafts, and without. Both answers share the
          passes of one engine, so compare how many tokens a pass brings each of them. Their tokens are compared one by
          one.
        </p>
      </header>
      <div class="race-head">
        <form
          class="race-form"
          onSubmit={(event) => {
            event.preventDefault();
            void start();
          }}
        >
          <TextArea label="Question" value={question} rows={2} hint={hintOf(given)} onInput={setQuestion} />
          <TextField label="Seed" value={seed} inputMode="numeric" error={seedError} onInput={setSeed} />
          <div class="row">
            {isRunning ? (
              <Button icon="stop" onClick={() => running.current?.abort()}>
                Stop
              </Button>
            ) : (
              <Button kind="primary" type="submit" disabled={!canStart}>
                Start the race
              </Button>
            )}
            <Button kind="quiet" disabled={isRunning} onClick={() => setSeed(String(drawSeed()))}>
              New seed
            </Button>
          </div>
        </form>
        {failure !== null && (
          <RaceProblem error={failure} onAgain={() => void start()} onAlone={given === null ? undefined : alone} />
        )}
        {verdict !== null && <Outcome verdict={verdict} lanes={lanes} />}
        {!isOver && failure === null && first && second && <SoFar first={first} second={second} />}
      </div>
      {lanes.length > 0 && (
        <div class="lanes">
          {lanes.map((lane) => (
            <LaneView key={String(lane.isDrafted)} lane={lane} longest={longest} />
          ))}
        </div>
      )}
    </main>
  );
}

/** Say what belongs to a question that comes from a chat. */
function hintOf(given: Prepared | null): string | undefined {
  const before = (given?.messages.length ?? 0) - 1;
  return before > 0 ? `It is asked after the ${several(before, "message")} of its chat.` : undefined;
}

function Outcome({ verdict, lanes }: { verdict: Verdict; lanes: readonly Lane[] }): JSX.Element {
  const [drafted, plain] = lanes.map((lane) => lane.passes);
  return (
    <p class={`verdict ${verdict.isSame ? "same" : "other"}`} data-testid="verdict">
      <strong>{verdict.text}</strong>.
      <span>{savingOf(drafted!, plain!)}</span>
    </p>
  );
}

/** Has the place of the outcome, so that the answers stay where they are when it comes. */
function SoFar({ first, second }: { first: Lane; second: Lane }): JSX.Element {
  return (
    <p class="verdict muted">
      {soFar(first.ids, second.ids)}
      <span>
        Passes: {first.passes} with drafts, {second.passes} without.
      </span>
    </p>
  );
}

function LaneView({ lane, longest }: { lane: Lane; longest: number }): JSX.Element {
  const name = lane.isDrafted ? "With drafts" : "Without drafts";
  return (
    <section class="lane" aria-label={name} aria-busy={!lane.isOver}>
      <header>
        <h2>{name}</h2>
        <p class="muted">{lane.note || lane.figures}</p>
        <span class="track" aria-hidden="true">
          <span style={{ width: `${(100 * lane.ids.length) / longest}%` }} />
        </span>
      </header>
      <div class="lane-text">
        <PaintedText stretches={lane.trace.stretches("reasoning")} />
        <PaintedText stretches={lane.trace.stretches("content")} />
      </div>
      {lane.isOver && <Legend shares={lane.trace.shares()} />}
    </section>
  );
}
