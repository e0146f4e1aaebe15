/** One model of the server: its state, its figures, and what can be done with it. */
import type { JSX } from "preact";
import { useState } from "preact/hooks";

import type { ModelStatus, ServerStatus } from "../../api/types.ts";
import { chooseModel } from "../../chat/chats.ts";
import { hashOf } from "../../router.ts";
import { Button } from "../../ui/button.tsx";
import { Dialog } from "../../ui/dialog.tsx";
import { Meter } from "../../ui/meter.tsx";
import { countText, several } from "../../units.ts";
import { type Action, asked, failures, load, unload, WAIT_FOR_ALL } from "./actions.ts";
import { engineFigures, idleSentence, planParts, stateWords, stepShare, stepText, tiersText } from "./words.ts";

interface CardProps {
  model: ModelStatus;
  status: ServerStatus;
}

export function ModelCard({ model, status }: CardProps): JSX.Element {
  const { text, tone } = stateWords(model);
  const engine = status.engine?.model === model.id ? status.engine : null;
  return (
    <li class="model-card" data-testid={`model ${model.id}`}>
      <div class="model-head">
        <h2>{model.id}</h2>
        <p class={`state ${tone}`}>{text}</p>
      </div>
      <Names model={model} />
      {model.context !== undefined && <Facts model={model} />}
      {engine && (
        <dl class="live" aria-label="The last seconds">
          {engineFigures(engine, status.queue).map(({ name, text: figure, share }) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>
                {figure}
                {share !== undefined && <Meter share={share} />}
              </dd>
            </div>
          ))}
        </dl>
      )}
      {idleSentence(model) && <p class="muted small">{idleSentence(model)}</p>}
      <Progress model={model} />
      <Waiting model={model} status={status} />
      <Failure model={model} />
      <Actions model={model} status={status} />
    </li>
  );
}

function Names({ model }: { model: ModelStatus }): JSX.Element | null {
  const parts: string[] = [];
  if (model.aliases.length) parts.push(`Also called ${model.aliases.join(", ")}.`);
  if (model.default) parts.push("Requests that name no model get this one.");
  return parts.length ? <p class="muted small">{parts.join(" ")}</p> : null;
}

function Facts({ model }: { model: ModelStatus }): JSX.Element {
  return (
    <>
      <dl class="facts">
        <div>
          <dt>Context</dt>
          <dd>{countText(model.context ?? 0)} tokens</dd>
        </div>
        <div>
          <dt>Drafts</dt>
          <dd>{model.draft}</dd>
        </div>
        <div>
          <dt>Units of weights</dt>
          <dd>{tiersText(model.tiers ?? {})}</dd>
        </div>
      </dl>
      {model.plan && (
        <details>
          <summary>What is in memory</summary>
          <ul class="plan-parts">
            {planParts(model.plan).map((part) => (
              <li key={part}>{part}</li>
            ))}
          </ul>
        </details>
      )}
    </>
  );
}

function Progress({ model }: { model: ModelStatus }): JSX.Element | null {
  if (model.state !== "loading" && model.state !== "restarting") return null;
  const share = stepShare(model.step);
  return (
    <div class="load-progress">
      <progress aria-label={`Loading ${model.id}`} max={1} {...(share === null ? {} : { value: share })} />
      <p class="small">{model.step ? stepText(model.step) : "starting the engine"}</p>
    </div>
  );
}

/** Say what a request to load or unload waits for. */
function Waiting({ model, status }: CardProps): JSX.Element | null {
  const request = asked.value[model.id];
  const isWaiting = request?.action === "load" ? model.state === "unloaded" : model.state === "unloading";
  if (!isWaiting) return null;
  const others = status.models.find(({ id, state }) => id !== model.id && state === "loaded");
  const running = status.queue.in_engine;
  let text = "The server does other requests first.";
  if (model.state === "unloading") text = running ? `Waiting for ${several(running, "request")}.` : "";
  else if (others && running) text = `Waiting until ${others.id} has answered ${several(running, "request")}.`;
  return text ? (
    <div class="row">
      <p class="small">{text}</p>
      {request?.action === "load" && (
        <Button kind="quiet" onClick={request.stop}>
          Stop waiting
        </Button>
      )}
    </div>
  ) : null;
}

function Failure({ model }: { model: ModelStatus }): JSX.Element | null {
  const failure = failures.value[model.id];
  const isFailedLoad = model.state === "unloaded" && model.error !== undefined;
  if (!isFailedLoad && failure === undefined) return null;
  const title = isFailedLoad || failure?.action === "load" ? "It could not be loaded." : "It could not be unloaded.";
  return (
    <div class="problem" role="group" aria-label={`Problem with ${model.id}`}>
      <strong>{title}</strong>
      <p>{(isFailedLoad && model.error) || failure?.text}</p>
    </div>
  );
}

function Actions({ model, status }: CardProps): JSX.Element {
  const [isAsking, setAsking] = useState(false);
  const running = status.queue.in_engine;
  const change = changeOf(model, status);
  const start = (): void => {
    if (change.run === "load") void load(model.id);
    else if (change.run === "unload" && running > 0) setAsking(true);
    else if (change.run === "unload") void unload(model.id, 0);
  };
  const end = (grace: number): void => {
    setAsking(false);
    void unload(model.id, grace);
  };
  return (
    <div class="row">
      {/* one button in all states, and never a disabled one, so that it keeps the focus */}
      <Button aria-disabled={change.run === null} onClick={start} aria-label={change.name}>
        {change.text}
      </Button>
      <a
        class={model.state === "loaded" ? "button primary" : "button quiet"}
        href={hashOf("chat")}
        onClick={() => chooseModel(model.id)}
        aria-label={`Chat with ${model.id}`}
      >
        Chat
      </a>
      <a class="button quiet" href={hashOf("plan", model.id)} aria-label={`Plan ${model.id}`}>
        Plan
      </a>
      {isAsking && (
        <Dialog title={`Unload ${model.id}?`} onClose={() => setAsking(false)}>
          <p>
            {running === 1
              ? "A request is running. It can be done first, or end with an error."
              : `${several(running, "request")} are running. They can be done first, or end with an error.`}
          </p>
          <div class="row end">
            <Button kind="quiet" onClick={() => setAsking(false)}>
              Cancel
            </Button>
            <Button kind="danger" onClick={() => end(0)}>
              {running === 1 ? "End it" : "End them"}
            </Button>
            <Button kind="primary" onClick={() => end(WAIT_FOR_ALL)}>
              {running === 1 ? "Wait for it" : "Wait for them"}
            </Button>
          </div>
        </Dialog>
      )}
    </div>
  );
}

interface Change {
  /** null: nothing can be done now. */
  run: Action | null;
  text: string;
  name: string;
}

/** Return what the button of a model does. */
function changeOf(model: ModelStatus, status: ServerStatus): Change {
  const { id, state } = model;
  const request = asked.value[id];
  if (state === "loading" || state === "unloading") {
    const text = state === "loading" ? "Loading …" : "Unloading …";
    return { run: null, text, name: `${text} ${id}` };
  }
  if (state === "unloaded") {
    const run = request || status.state === "stopping" ? null : "load";
    const hasFailed = model.error !== undefined || failures.value[id]?.action === "load";
    return hasFailed
      ? { run, text: "Try again", name: `Try again to load ${id}` }
      : { run, text: "Load", name: `Load ${id}` };
  }
  return { run: request ? null : "unload", text: "Unload", name: `Unload ${id}` };
}
