/** The traces of answers that were written while the page is open, by the ids of their messages. */
import { type Signal, signal } from "@preact/signals";

import type { Chunk } from "../api/types.ts";
import { AnswerTrace } from "./trace.ts";
import type { TracedChoice } from "./types.ts";

const MOST = 30; // answers; a trace is larger than its text

export interface Traced {
  trace: AnswerTrace;
  /** Is counted up when the trace has grown. */
  version: number;
}

const STORED = "understudy.paint";

/** Whether answers are tinted. */
export const isPainting = signal(localStorage.getItem(STORED) !== "no");

/** The traces, which change only as a whole; each has its own signal. */
const traces = signal<ReadonlyMap<string, Signal<Traced>>>(new Map());

/** Return the trace of a message; null if it was not written since the page was opened. */
export function traceOf(id: string): Traced | null {
  return traces.value.get(id)?.value ?? null;
}

export function setPainting(isOn: boolean): void {
  isPainting.value = isOn;
  localStorage.setItem(STORED, isOn ? "yes" : "no");
}

/** Begin to trace a request for an answer, which has `content` and `reasoning` already. */
export function beginTrace(id: string, content: string, reasoning: string): void {
  const known = traces.peek().get(id)?.peek().trace;
  const goesOn = known?.text("content") === content && known.text("reasoning") === reasoning;
  const trace = goesOn ? known! : new AnswerTrace({ content, reasoning });
  trace.begin();
  const kept = new Map(traces.peek());
  kept.delete(id);
  kept.set(id, signal({ trace, version: 0 }));
  for (const oldest of [...kept.keys()].slice(0, -MOST)) kept.delete(oldest);
  traces.value = kept;
}

/** Add a chunk to the trace of a message. */
export function addToTrace(id: string, chunk: Chunk): void {
  const choice = chunk.choices[0];
  if (choice !== undefined) traces.peek().get(id)?.peek().trace.add(choice as TracedChoice);
}

/** Show what was added to the trace of a message. */
export function showTrace(id: string): void {
  const own = traces.peek().get(id);
  if (own !== undefined) own.value = { trace: own.peek().trace, version: own.peek().version + 1 };
}
