/** The chats in the browser's database. Without one (a private window) they live in memory. */
import type { Chat } from "./model.ts";

/** What the list of chats needs of each. */
export interface ChatTitle {
  id: string;
  title: string;
  updated: number;
}

const NAME = "understudy";
const CHATS = "chats";
const TITLES = "titles"; // so that the list need not read every chat

let opened: Promise<IDBDatabase | null> | null = null;
const inMemory = new Map<string, Chat>();

/** Return whether chats outlive the page. */
export async function isKept(): Promise<boolean> {
  return (await open()) !== null;
}

export async function readTitles(): Promise<ChatTitle[]> {
  const database = await open();
  if (database === null) return [...inMemory.values()].map(titleFrom);
  return request(database.transaction(TITLES).objectStore(TITLES).getAll() as IDBRequest<ChatTitle[]>);
}

export async function readChat(id: string): Promise<Chat | null> {
  const database = await open();
  if (database === null) return inMemory.get(id) ?? null;
  const found = database.transaction(CHATS).objectStore(CHATS).get(id) as IDBRequest<Chat | undefined>;
  return (await request(found)) ?? null;
}

export async function readAll(): Promise<Chat[]> {
  const database = await open();
  if (database === null) return [...inMemory.values()];
  return request(database.transaction(CHATS).objectStore(CHATS).getAll() as IDBRequest<Chat[]>);
}

export async function writeChat(chat: Chat): Promise<void> {
  const database = await open();
  if (database === null) return void inMemory.set(chat.id, chat);
  const transaction = database.transaction([CHATS, TITLES], "readwrite");
  transaction.objectStore(CHATS).put(chat);
  transaction.objectStore(TITLES).put(titleFrom(chat));
  transaction.commit(); // at once, as the page may be on its way out
  await completed(transaction);
}

export async function deleteChat(id: string): Promise<void> {
  const database = await open();
  if (database === null) return void inMemory.delete(id);
  const transaction = database.transaction([CHATS, TITLES], "readwrite");
  transaction.objectStore(CHATS).delete(id);
  transaction.objectStore(TITLES).delete(id);
  await completed(transaction);
}

/** Return the ids of the chats that contain a text, in their title or in a message. */
export async function findChats(text: string): Promise<Set<string>> {
  const wanted = text.toLowerCase();
  const has = (part: string): boolean => part.toLowerCase().includes(wanted);
  const found = (await readAll()).filter(
    (chat) => has(chat.title) || Object.values(chat.messages).some((message) => has(message.text)),
  );
  return new Set(found.map((chat) => chat.id));
}

function titleFrom({ id, title, updated }: Chat): ChatTitle {
  return { id, title, updated };
}

function open(): Promise<IDBDatabase | null> {
  opened ??= new Promise((resolve) => {
    let opening: IDBOpenDBRequest;
    try {
      opening = indexedDB.open(NAME, 1);
    } catch {
      return resolve(null); // the browser forbids it here
    }
    opening.onupgradeneeded = () => {
      for (const store of [CHATS, TITLES]) opening.result.createObjectStore(store, { keyPath: "id" });
    };
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => resolve(null);
  });
  return opened;
}

function request<T>(running: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    running.onsuccess = () => resolve(running.result);
    running.onerror = () => reject(running.error ?? new Error("the database failed"));
  });
}

function completed(transaction: IDBTransaction): Promise<void> {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new Error("the database failed"));
  });
}
