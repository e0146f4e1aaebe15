/** What another view wants to race. */
import { signal } from "@preact/signals";

import { go, hashOf } from "../../router.ts";
import type { RaceMessage } from "./question.ts";

export interface Prepared {
  /** All messages; the last one is the question. */
  messages: RaceMessage[];
  /** The other fields of the request. */
  fields: Record<string, unknown>;
}

export const prepared = signal<Prepared | null>(null);

/** Show the view of races with a question. */
export function openRace(question: Prepared): void {
  prepared.value = question;
  go(hashOf("race"));
}
