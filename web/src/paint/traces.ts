/** The traces of answers: whole ones of those that were written while the page is open, and kept paint. */
import { type Signal, signal } from "@preact/signals";

import type { Chunk } from "../api/types.ts";
import type { StoredPaint } from "./stored.ts";
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

/** An answer, as far as its paint depends on it. */
interface Painted {
  id: string;
  text: string;
  answer?: { reasoning: string; paint: StoredPaint | null };
}

const restored = new WeakMap<StoredPaint, Traced>();

/**
 * Return the trace of a message. One that was written before the page was opened has its kept paint
 * only, without tokens and passes; null where there is none.
 */
export function traceOf(message: Painted): Traced | null {
  return traces.value.get(message.id)?.value ?? restoredTrace(message);
}

function restoredTrace({ text, answer }: Painted): Traced | null {
  const paint = answer?.paint;
  if (!answer || !paint) return null;
  let traced = restored.get(paint);
  if (traced === undefined) {
    traced = { trace: new AnswerTrace({ content: text, reasoning: answer.reasoning }, paint), version: 0 };
    restored.set(paint, traced);
  }
  return traced;
}

/** Return the paint of a message as it is to be kept. */
export function storedPaint(message: Painted): StoredPaint | null {
  return traces.peek().get(message.id)?.peek().trace.stored() ?? message.answer?.paint ?? null;
}

export function setPainting(isOn: boolean): void {
  isPainting.value = isOn;
  localStorage.setItem(STORED, isOn ? "yes" : "no");
}

/** Begin to trace a request for an answer, which may have begun. */
export function beginTrace({ id, text: content, answer }: Painted): void {
  const known = traces.peek().get(id)?.peek().trace;
  const reasoning = answer?.reasoning ?? "";
  const goesOn = known?.text("content") === content && known.text("reasoning") === reasoning;
  const trace = goesOn ? known! : new AnswerTrace({ content, reasoning }, answer?.paint);
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
