/** The branches of a chat. These functions return a changed copy and leave the chat as it is. */
import type { Chat, Message } from "./model.ts";

const ROOT = ""; // the key of the first message in `chosen`

/** Return the messages with the same parent, the oldest first. */
export function alternatives(chat: Chat, parent: string | null): Message[] {
  return Object.values(chat.messages)
    .filter((message) => message.parent === parent)
    .sort(byAge);
}

/** Return the messages that are shown, from the first to the last. */
export function pathOf(chat: Chat): Message[] {
  const path: Message[] = [];
  const children = groupByParent(chat);
  let parent: string | null = null;
  for (;;) {
    const candidates: Message[] = children.get(parent) ?? [];
    const wanted: string | undefined = chat.chosen[parent ?? ROOT];
    const next: Message | undefined = candidates.find(({ id }) => id === wanted) ?? candidates.at(-1);
    if (next === undefined) return path;
    path.push(next);
    parent = next.id;
  }
}

/** Return the messages up to one, the first of the chat first. */
export function pathTo(chat: Chat, id: string | null): Message[] {
  const path: Message[] = [];
  for (let at = id; at !== null; ) {
    const message: Message | undefined = chat.messages[at];
    if (message === undefined) break;
    path.unshift(message);
    at = message.parent;
  }
  return path;
}

/** Add a message, and show it. */
export function withMessage(chat: Chat, message: Message): Chat {
  return choose({ ...chat, messages: { ...chat.messages, [message.id]: message } }, message.id);
}

/** Replace a message by one with the same id. */
export function withChanged(chat: Chat, message: Message): Chat {
  return { ...chat, messages: { ...chat.messages, [message.id]: message } };
}

/** Show one of the alternatives, and what follows it. */
export function choose(chat: Chat, id: string): Chat {
  const message = chat.messages[id];
  if (message === undefined) return chat;
  return { ...chat, chosen: { ...chat.chosen, [message.parent ?? ROOT]: id } };
}

/** Remove a message and everything that follows it. */
export function without(chat: Chat, id: string): Chat {
  const children = groupByParent(chat);
  const removed = new Set<string>();
  const left = [id];
  for (let at = left.pop(); at !== undefined; at = left.pop()) {
    removed.add(at);
    left.push(...(children.get(at) ?? []).map((message) => message.id));
  }
  const messages = Object.fromEntries(Object.entries(chat.messages).filter(([key]) => !removed.has(key)));
  const chosen = Object.fromEntries(Object.entries(chat.chosen).filter(([, child]) => !removed.has(child)));
  return { ...chat, messages, chosen };
}

function groupByParent(chat: Chat): Map<string | null, Message[]> {
  const groups = new Map<string | null, Message[]>();
  for (const message of Object.values(chat.messages)) {
    const group = groups.get(message.parent);
    if (group) group.push(message);
    else groups.set(message.parent, [message]);
  }
  for (const group of groups.values()) group.sort(byAge);
  return groups;
}

function byAge(a: Message, b: Message): number {
  return a.created - b.created || (a.id < b.id ? -1 : 1);
}
