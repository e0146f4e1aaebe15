/** What is planned: the model, the machine, and the latest answer. */
import { computed, signal } from "@preact/signals";

import { postJson } from "../../api/client.ts";
import { ApiError, ConnectionError } from "../../api/errors.ts";
import { announce } from "../../ui/announce.tsx";
import { figureText } from "../../units.ts";
import type { Asked, FigureName, PlanAnswer } from "./answer.ts";
import { go, hashOf, route } from "../../router.ts";
import { Latest } from "./latest.ts";
import { figuresFor, inSliderWords, machineFrom, type MachineKind, queryOf } from "./sliders.ts";

const DELAY_MS = 300; // for which a slider has to rest

interface Question {
  model: string;
  figures: Asked;
}

export const machineKind = signal<MachineKind>("own");
export const asked = signal<Asked>({});

/** The latest plan; it stays while another one is computed, and where none fits. */
export const answer = signal<PlanAnswer | null>(null);

/** Why there is no plan for the figures that are shown. */
export const problem = signal<{ text: string; doesNotFit: boolean } | null>(null);

export const isComputing = signal(false);

/** The figures that are sent. */
export const figures = computed(() => figuresFor(machineKind.value, asked.value));

const plans = new Latest<Question, PlanAnswer>(
  ({ model, figures: asked_ }, abort) => postJson<PlanAnswer>("v1/plan", { model, ...asked_ }, { signal: abort }),
  ({ question, answer: plan, error }) => {
    isComputing.value = false;
    if (plan) {
      answer.value = plan;
      problem.value = null;
      announce(speedSentence(plan));
    } else {
      if (answer.peek()?.model_id !== question.model) answer.value = null;
      problem.value = problemOf(error);
      announce(problem.value.text);
    }
  },
  DELAY_MS,
);

/** Ask for the plan of a model on the machine that is described now. */
export function planNow(model: string, { isAtOnce = false } = {}): void {
  isComputing.value = true;
  plans.ask({ model, figures: figures.peek() }, isAtOnce ? 0 : DELAY_MS);
}

/** Ask for nothing more, as the view is left. */
export function stopPlanning(): void {
  plans.cancel();
  isComputing.value = false;
}

/** Plan for the machine that the address describes, if it does. */
export function readAddress(): void {
  const { query } = route.peek();
  if (query.size === 0 || query.toString() === queryOf(machineKind.peek(), asked.peek()).toString()) return;
  const found = machineFrom(query);
  machineKind.value = found.kind;
  asked.value = found.asked;
}

/** Have the address describe the machine, so that it can be kept and sent to others. */
export function writeAddress(): void {
  const { view, rest, query } = route.peek();
  const wanted = queryOf(machineKind.peek(), asked.peek()).toString();
  if (query.toString() === wanted) return;
  go(`${hashOf(view, ...rest)}${wanted && `?${wanted}`}`, { replace: true });
}

export function setFigure(name: FigureName, value: number | null): void {
  const { [name]: _, ...others } = asked.peek();
  asked.value = value === null ? others : { ...others, [name]: value };
}

export function speedSentence({ model_id: model, forecast }: PlanAnswer): string {
  const one = figureText(forecast.tokens_per_second);
  const all = figureText(forecast.tokens_per_second_all);
  return `${model}: ${one} tokens a second for one user, ${all} for ${forecast.users} users together.`;
}

function problemOf(error: unknown): { text: string; doesNotFit: boolean } {
  if (error instanceof ApiError) return { text: inSliderWords(error.message), doesNotFit: error.code === "does_not_fit" };
  if (error instanceof ConnectionError) return { text: error.message, doesNotFit: false };
  throw error;
}
