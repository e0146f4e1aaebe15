/** The API key, which is kept for this tab only, and the question for it. */
import { signal } from "@preact/signals";

const STORED = "understudy.key";

/** Why the key is asked for; null while it is not. */
export const keyQuestion = signal<"missing" | "wrong" | null>(null);

let key = sessionStorage.getItem(STORED);
let answered: Promise<boolean> | null = null;
let answer: (isGiven: boolean) => void = () => undefined;

/** Return the header that carries the key, if there is one. */
export function keyHeader(): Record<string, string> {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Return the key that requests are sent with now. */
export function currentKey(): string | null {
  return key;
}

/** Ask for another key than `refused`. Resolve to false if the user gives none. */
export function askForKey(refused: string | null): Promise<boolean> {
  if (refused !== key) return Promise.resolve(true); // another request has asked meanwhile
  keyQuestion.value = key ? "wrong" : "missing";
  answered ??= new Promise((resolve) => (answer = resolve));
  return answered;
}

/** Answer the question for the key; null declines. */
export function giveKey(given: string | null): void {
  if (given !== null) {
    key = given;
    sessionStorage.setItem(STORED, given);
  }
  keyQuestion.value = null;
  answered = null;
  answer(given !== null);
}
