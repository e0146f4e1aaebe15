/** Messages that have not been sent: each belongs to its chat, and outlives the page in its tab. */
import { signal } from "@preact/signals";

import { onLeave } from "../leaving.ts";
import type { Chat, TextFile } from "./model.ts";

export interface Draft {
  text: string;
  files: TextFile[];
}

const STORED = "understudy.drafts";
const NEW = "new"; // of chats without messages, which get another id each time one is begun
const EMPTY: Draft = { text: "", files: [] };

const drafts = signal<Readonly<Record<string, Draft>>>(stored());

function keyOf(chat: Chat): string {
  return Object.keys(chat.messages).length === 0 ? NEW : chat.id;
}

/** Return what has been written for a chat. */
export function draftOf(chat: Chat): Draft {
  return drafts.value[keyOf(chat)] ?? EMPTY;
}

export function changeDraft(chat: Chat, change: Partial<Draft>): void {
  const key = keyOf(chat);
  const { [key]: before = EMPTY, ...others } = drafts.peek();
  const draft = { ...before, ...change };
  drafts.value = draft.text === "" && draft.files.length === 0 ? others : { ...others, [key]: draft };
}

function stored(): Record<string, Draft> {
  try {
    return JSON.parse(sessionStorage.getItem(STORED) ?? "{}") as Record<string, Draft>;
  } catch {
    return {};
  }
}

onLeave(() => {
  const all = drafts.peek();
  const texts = Object.fromEntries(Object.entries(all).map(([key, { text }]) => [key, { text, files: [] }]));
  for (const kept of [all, texts]) {
    try {
      return sessionStorage.setItem(STORED, JSON.stringify(kept));
    } catch {
      // large files have no room there: the texts alone have
    }
  }
});
