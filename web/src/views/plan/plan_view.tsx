/** The view of plans: where a model's weights would be on a machine, and how fast it would be. */
import type { JSX } from "preact";
import { useEffect } from "preact/hooks";

import { modelOf, models, modelsState, refreshModels, refreshModelsUnasked } from "../../models.ts";
import { go, hashOf, route } from "../../router.ts";
import { Button } from "../../ui/button.tsx";
import { Field } from "../../ui/fields.tsx";
import {
  answer,
  asked,
  figures,
  isComputing,
  machineKind,
  planNow,
  problem,
  readAddress,
  stopPlanning,
  writeAddress,
} from "./state.ts";
import { PlanResult } from "./plan_result.tsx";
import { Sliders } from "./plan_sliders.tsx";
import { Speeds } from "./plan_speeds.tsx";
import type { MachineKind } from "./sliders.ts";

const MODELS_AGAIN_MS = 5000;
const ADDRESS_MS = 200; // for which a slider has to rest: browsers limit how often an address changes

export function PlanView(): JSX.Element {
  useModels();
  useAddress();
  const model = modelOf(route.value.rest.join("/") || null)?.id ?? null;
  useEffect(() => {
    if (model !== null) planNow(model, { isAtOnce: answer.peek() === null });
  }, [model, figures.value]);
  useEffect(() => stopPlanning, []);
  const isOfModel = answer.value !== null && answer.value.model_id === model;
  return (
    <main class="view page">
      <header class="page-head">
        <h1>Plan</h1>
        <p class="muted">Where the weights of a model would be, and how fast it would answer. Nothing is loaded.</p>
      </header>
      <ServerProblem />
      {modelsState.value === "known" && model === null ? (
        <NoModel />
      ) : (
        <div class="plan" aria-busy={isComputing.value}>
          <Machine model={model} />
          <div class="plan-figures">
            {model !== null && <Speeds plan={isOfModel ? answer.value : null} />}
            <Sliders />
          </div>
          <section class="plan-result" aria-label="What lives where">
            {problem.value && !isComputing.value && model !== null && <Problem model={model} />}
            {isOfModel && answer.value && <PlanResult plan={answer.value} />}
          </section>
        </div>
      )}
    </main>
  );
}

/** Say why there is no list of models. */
function ServerProblem(): JSX.Element | null {
  const state = modelsState.value;
  if (state !== "gone" && state !== "refused") return null;
  return (
    <div class="problem" role="group" aria-label="Problem">
      <strong>{state === "gone" ? "The server does not answer. The page goes on trying." : "The server asks for a key."}</strong>
      {state === "refused" && (
        <div class="row">
          <Button kind="danger" onClick={() => void refreshModels()}>
            Enter a key
          </Button>
        </div>
      )}
    </div>
  );
}

function NoModel(): JSX.Element {
  const named = route.value.rest.join("/");
  return (
    <div class="problem" role="group" aria-label="Problem">
      <strong>{named ? `The server has no model called ${named}.` : "The server knows no model."}</strong>
      <div class="row">
        <a href={hashOf("models")}>See its models</a>
      </div>
    </div>
  );
}

const KINDS: Record<MachineKind, string> = { own: "This server's", card: "One with another card" };

function Machine({ model }: { model: string | null }): JSX.Element {
  return (
    <section class="plan-machine" aria-label="What is planned">
      <Field
        label="Model"
        control={(wiring) => (
          <select
            {...wiring}
            class="input"
            value={model ?? ""}
            onChange={(event) => {
              go(hashOf("plan", event.currentTarget.value), { replace: true });
              writeAddress();
            }}
          >
            {models.value.map(({ id }) => (
              <option key={id} value={id}>
                {id}
              </option>
            ))}
          </select>
        )}
      />
      <fieldset class="choice">
        <legend>Machine</legend>
        {(Object.keys(KINDS) as MachineKind[]).map((kind) => (
          <label key={kind}>
            <input
              type="radio"
              name="machine"
              checked={machineKind.value === kind}
              onChange={() => (machineKind.value = kind)}
            />
            <span>{KINDS[kind]}</span>
          </label>
        ))}
      </fieldset>
    </section>
  );
}

function Problem({ model }: { model: string }): JSX.Element {
  const { text, doesNotFit } = problem.value!;
  const isChanged = Object.keys(asked.value).length > 0;
  return (
    <div class="problem" role="group" aria-label="Problem">
      <strong>{doesNotFit ? "This does not fit." : "There is no plan."}</strong>
      <p>{text}</p>
      {answer.value?.model_id === model && <p>Below is the plan before.</p>}
      <div class="row">
        {!doesNotFit && (
          <Button kind="danger" onClick={() => planNow(model, { isAtOnce: true })}>
            Try again
          </Button>
        )}
        {isChanged && (
          <Button kind={doesNotFit ? "danger" : "quiet"} onClick={() => (asked.value = {})}>
            Reset the sliders
          </Button>
        )}
      </div>
    </div>
  );
}

/** Keep the figures and the address the same. */
function useAddress(): void {
  useEffect(readAddress, [route.value]);
  useEffect(() => {
    const timer = setTimeout(writeAddress, ADDRESS_MS);
    return () => clearTimeout(timer);
  }, [machineKind.value, asked.value, route.value]);
}

/** Read the list of models, again and again while the server does not answer. */
function useModels(): void {
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    let isLeft = false;
    const read = async (refresh: () => Promise<void>): Promise<void> => {
      await refresh();
      if (!isLeft && modelsState.value !== "known") {
        timer = setTimeout(() => void read(refreshModelsUnasked), MODELS_AGAIN_MS);
      }
    };
    void read(refreshModels);
    return () => {
      isLeft = true;
      clearTimeout(timer);
    };
  }, []);
}
