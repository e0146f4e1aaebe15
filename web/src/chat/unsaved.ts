/**
 * Answers that are being written, as they were when the page was left. The database writes later than
 * the page may go; what is stored here is there at once.
 */
import type { Written } from "./answer.ts";
import type { Message } from "./model.ts";

export interface Unsaved {
  chatId: string;
  message: Written;
}

const PREFIX = "understudy.unsaved."; // the id of the message follows

export function keepUnsaved(chatId: string, message: Written): void {
  try {
    localStorage.setItem(PREFIX + message.id, JSON.stringify({ chatId, message } satisfies Unsaved));
  } catch {
    // there is no room: the copy in the database is at most a second older
  }
}

export function forgetUnsaved(id: string): void {
  localStorage.removeItem(PREFIX + id);
}

/** Return what was kept, and forget it. */
export function takeUnsaved(): Unsaved[] {
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  return keys.flatMap((key) => {
    const text = localStorage.getItem(key);
    localStorage.removeItem(key);
    try {
      return text === null ? [] : [JSON.parse(text) as Unsaved];
    } catch {
      return []; // somebody has changed it
    }
  });
}

/** Return whether what was kept of an answer is more than another copy of it has. */
export function isAhead({ text, answer }: Written, other: Message): boolean {
  const own = answer.ids.length + text.length + answer.reasoning.length;
  const theirs = other.answer;
  if (theirs === undefined || theirs.end !== null) return false;
  return own >= theirs.ids.length + other.text.length + theirs.reasoning.length;
}
