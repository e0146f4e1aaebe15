/** The list of chats and the open one, as signals, and what users do with them. */
import { signal } from "@preact/signals";

import { type ChatTitle, deleteChat, isKept, readAll, readChat, readTitles, writeChat } from "./database.ts";
import { type Chat, DEFAULTS, newChat, type Settings, titleOf } from "./model.ts";
import { exportChats, importChats } from "./transfer.ts";
import { withChanged } from "./tree.ts";
import { isAhead, takeUnsaved } from "./unsaved.ts";

/** The chats that are kept, the latest first. */
export const titles = signal<ChatTitle[]>([]);

/** The open chat. A new one is kept from its first message on. */
export const openChat = signal<Chat>(newChat(DEFAULTS));

/** Whether the browser refuses to keep chats. */
export const isForgetful = signal(false);

const SETTINGS = "understudy.settings"; // of the next new chat

// Other tabs change the same database. A message is the id of a chat that was changed or deleted.
const tabs = new BroadcastChannel("understudy.chats");
tabs.onmessage = (event: MessageEvent<string>) => {
  void refreshTitles();
  if (event.data === openChat.value.id) void readChat(event.data).then(showChanged);
};

function showChanged(chat: Chat | null): void {
  if (chat !== null && chat.id === openChat.value.id && chat.updated > openChat.value.updated) openChat.value = chat;
}

export async function refreshTitles(): Promise<void> {
  titles.value = (await readTitles()).sort((a, b) => b.updated - a.updated);
}

let recovered: Promise<void> | null = null;

/** Bring back, once, what was written of answers before the page was left. */
function recover(): Promise<void> {
  recovered ??= (async () => {
    for (const { chatId, message } of takeUnsaved()) {
      const chat = await readChat(chatId);
      const kept = chat?.messages[message.id];
      if (chat && kept && isAhead(message, kept)) await writeChat(withChanged(chat, message));
    }
  })();
  return recovered;
}

/** Read the list of chats when the page starts. */
export async function startChats(): Promise<void> {
  isForgetful.value = !(await isKept());
  await recover();
  await refreshTitles();
}

/** Open a kept chat, or a new one where there is none with this id. Return whether there is. */
export async function open(id: string | null): Promise<boolean> {
  if (id !== null && openChat.value.id === id) return true;
  await recover();
  const found = id === null ? null : await readChat(id);
  openChat.value = found ?? newChat(lastSettings());
  return found !== null;
}

/** Change a chat: show the change if the chat is open, and keep it. */
export async function change(chat: Chat): Promise<void> {
  const changed = { ...chat, updated: Date.now() };
  if (openChat.value.id === chat.id) openChat.value = changed;
  await keep(changed);
}

/** Change the chat that has an id as it is now, wherever it is. */
export async function update(id: string, edit: (chat: Chat) => Chat): Promise<void> {
  const chat = openChat.value.id === id ? openChat.value : await readChat(id);
  if (chat !== null) await change(edit(chat));
}

async function keep(chat: Chat): Promise<void> {
  if (Object.keys(chat.messages).length === 0) return;
  try {
    await writeChat(chat);
  } catch {
    isForgetful.value = true; // the disk is full, or the user has cleared what the page keeps
    return;
  }
  await refreshTitles();
  tabs.postMessage(chat.id);
}

/** Return a chat that is named after its first message, unless the user has named it. */
export function withTitle(chat: Chat): Chat {
  const first = Object.values(chat.messages).find((message) => message.parent === null);
  return chat.isNamed || first === undefined ? chat : { ...chat, title: titleOf(first.text, first.files) };
}

export async function rename(id: string, title: string): Promise<void> {
  await update(id, (chat) => ({ ...chat, title, isNamed: true }));
}

/** Delete a chat. Return it, so that it can be put back. */
export async function remove(id: string): Promise<Chat | null> {
  const chat = await readChat(id);
  await deleteChat(id);
  await refreshTitles();
  tabs.postMessage(id);
  return chat;
}

export async function putBack(chat: Chat): Promise<void> {
  await writeChat(chat);
  await refreshTitles();
  tabs.postMessage(chat.id);
}

/** Keep the settings of the open chat, also for the next new one. */
export function changeSettings(change_: Partial<Settings>): void {
  const settings = { ...openChat.value.settings, ...change_ };
  localStorage.setItem(SETTINGS, JSON.stringify({ ...settings, seed: null }));
  void change({ ...openChat.value, settings });
}

/** Have the next new chat talk to a model. */
export function chooseModel(model: string): void {
  localStorage.setItem(SETTINGS, JSON.stringify({ ...lastSettings(), model, seed: null }));
}

function lastSettings(): Settings {
  try {
    const stored: unknown = JSON.parse(localStorage.getItem(SETTINGS) ?? "{}");
    return { ...DEFAULTS, ...(stored as Partial<Settings>) };
  } catch {
    return DEFAULTS;
  }
}

export async function exportAll(): Promise<string> {
  return exportChats(await readAll());
}

export async function exportOne(id: string): Promise<string> {
  const chat = await readChat(id);
  return exportChats(chat === null ? [] : [chat]);
}

/** Keep the chats of a file. Return how many there were; throw an `Error` that says what is wrong. */
export async function importAll(text: string): Promise<number> {
  const chats = importChats(text);
  for (const chat of chats) await putBack(chat);
  return chats.length;
}
