/** What users do in a chat: send, answer again, edit, go on. */
import { openChat, change, withTitle } from "../../chat/chats.ts";
import { answerAfter, goOn, runningIn } from "../../chat/generation.ts";
import { type Chat, type Message, newId, type Sent, type TextFile } from "../../chat/model.ts";
import { problemOf, explain } from "../../chat/problems.ts";
import { drawSeed, sentFrom, SettingError } from "../../chat/request.ts";
import { pathOf, withMessage } from "../../chat/tree.ts";
import { go, hashOf } from "../../router.ts";
import { toast } from "../../ui/toast.tsx";
import { openPanel } from "./panels.ts";

/** Send a message at the end of the open chat. Return whether it could be sent. */
export function send(text: string, files: TextFile[]): boolean {
  const chat = openChat.value;
  return sendAfter(chat, pathOf(chat).at(-1)?.id ?? null, text, files);
}

/** Send a changed copy of a user's message, as an alternative to it. */
export function sendInstead(message: Message, text: string): boolean {
  return sendAfter(openChat.value, message.parent, text, message.files ?? []);
}

function sendAfter(chat: Chat, parent: string | null, text: string, files: TextFile[]): boolean {
  const sent = trySent(chat);
  if (sent === null) return false;
  const message: Message = { id: newId(), parent, role: "user", text, created: Date.now() };
  if (files.length > 0) message.files = files;
  answerAfter(withTitle(withMessage(chat, message)), message.id, sent);
  go(hashOf("chat", chat.id), { replace: true });
  return true;
}

/** Have an answer written again: with the same seed it has the same text. */
export function answerAgain(message: Message, seed: "same" | "new"): void {
  const { answer, parent } = message;
  if (parent === null) return;
  const chat = openChat.value;
  if (seed === "same" && answer) {
    answerAfter(chat, parent, answer.sent, answer.begun);
    return;
  }
  const sent = trySent(chat);
  if (sent) answerAfter(chat, parent, { ...sent, fields: { ...sent.fields, seed: drawSeed() } });
}

/** Try a failed answer again, as the settings are now. */
export function tryAgain(message: Message): void {
  if (message.answer && (message.answer.ids.length > 0 || message.text)) goOn(openChat.value, message);
  else answerAgain(message, "new");
}

/** Keep an edited copy of an answer, as an alternative to it. */
export function keepInstead(message: Message, text: string): void {
  const copy: Message = { id: newId(), parent: message.parent, role: message.role, text, created: Date.now() };
  if (message.answer) {
    const { answer } = message;
    copy.answer = { ...answer, ids: [], begun: null, figures: null, end: "stop", problem: null, paint: null };
  }
  void change(withMessage(openChat.value, copy));
}

/** Give the results of all calls of an answer, and have the model go on. */
export function giveResults(message: Message, results: string[]): void {
  const chat = openChat.value;
  const sent = trySent(chat);
  if (sent === null) return;
  let changed = chat;
  let parent = message.id;
  message.answer?.calls.forEach((call, index) => {
    const text = results[index] ?? "";
    const result: Message = { id: newId(), parent, role: "tool", text, created: Date.now(), callId: call.id };
    changed = withMessage(changed, result);
    parent = result.id;
  });
  answerAfter(changed, parent, sent);
}

/** Return whether messages that are older than its question are sent for an answer. */
export function canShorten(message: Message): boolean {
  const chat = openChat.value;
  return pathOf(chat).findIndex(({ id }) => id === message.id) - chat.skipped > 1;
}

/** Leave out the older half of the messages that are sent, and answer again. */
export function shorten(message: Message): void {
  const chat = openChat.value;
  const length = pathOf(chat).findIndex(({ id }) => id === message.id);
  const left = Math.max(1, length - chat.skipped);
  const skipped = Math.min(length - 1, chat.skipped + Math.ceil(left / 2));
  const shorter = { ...chat, skipped };
  const sent = trySent(shorter);
  if (sent && message.parent !== null) answerAfter(shorter, message.parent, sent);
}

export function stop(): void {
  runningIn(openChat.value.id)?.stop();
}

function trySent(chat: Chat): Sent | null {
  try {
    return sentFrom(chat.settings, chat.skipped);
  } catch (error) {
    if (!(error instanceof SettingError)) throw error;
    openPanel.value = "parameters";
    toast({ text: explain(problemOf(error)).title });
    return null;
  }
}
