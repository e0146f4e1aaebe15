/** The list of chats: search, open, rename, delete, import and export. */
import { useSignal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { exportAll, exportOne, importAll, isForgetful, openChat, putBack, remove, rename, titles } from "../../chat/chats.ts";
import { type ChatTitle, findChats } from "../../chat/database.ts";
import { running, runningIn } from "../../chat/generation.ts";
import { go, hashOf } from "../../router.ts";
import { Button } from "../../ui/button.tsx";
import { Dialog } from "../../ui/dialog.tsx";
import { saveFile } from "../../files.ts";
import { TextField } from "../../ui/fields.tsx";
import { Icon } from "../../ui/icons.tsx";
import { Menu } from "../../ui/menu.tsx";
import { toast } from "../../ui/toast.tsx";
import { isListOpen } from "./panels.ts";

const SEARCH_AFTER_MS = 200;
const DAY_MS = 86_400_000;

export function ChatList(): JSX.Element {
  const [wanted, setWanted] = useState("");
  const found = useSearch(wanted);
  const [renamed, setRenamed] = useState<ChatTitle | null>(null);
  const shown = titles.value.filter((chat) => found === null || found.has(chat.id));
  return (
    <div class="chat-list">
      <div class="chat-list-head">
        <Button icon="plus" class="new-chat" title="Ctrl+Shift+O" onClick={startNew}>
          New chat
        </Button>
        <Transfer />
      </div>
      <div class="search">
        <Icon name="search" />
        <input
          class="input"
          type="search"
          aria-label="Search chats"
          placeholder="Search"
          value={wanted}
          onInput={(event) => setWanted(event.currentTarget.value)}
        />
      </div>
      <nav class="chats" aria-label="Chats">
        {groupByAge(shown).map(([name, chats]) => (
          <section key={name}>
            <h2>{name}</h2>
            <ul>
              {chats.map((chat) => (
                <Entry key={chat.id} chat={chat} onRename={() => setRenamed(chat)} />
              ))}
            </ul>
          </section>
        ))}
        {shown.length === 0 && (
          <p class="muted none">{wanted ? "No chat has this text." : "Your chats will be listed here."}</p>
        )}
      </nav>
      <p class="kept muted">
        {isForgetful.value ? "This browser does not keep chats: export them." : "Chats are kept in this browser only."}
      </p>
      {renamed && <Rename chat={renamed} onClose={() => setRenamed(null)} />}
    </div>
  );
}

function saveChats(text: string): void {
  saveFile("understudy-chats.json", text);
}

export function startNew(): void {
  isListOpen.value = false;
  go(hashOf("chat"));
}

/** Return the ids of the chats that have a text, null while none is searched for. */
function useSearch(wanted: string): Set<string> | null {
  const [found, setFound] = useState<Set<string> | null>(null);
  useEffect(() => {
    const text = wanted.trim();
    if (!text) {
      setFound(null);
      return undefined;
    }
    const timer = setTimeout(() => void findChats(text).then(setFound), SEARCH_AFTER_MS);
    return () => clearTimeout(timer);
  }, [wanted]);
  return found;
}

function Entry({ chat, onRename }: { chat: ChatTitle; onRename: () => void }): JSX.Element {
  const isOpen = openChat.value.id === chat.id;
  const isWriting = [...running.value.values()].some((one) => one.chatId === chat.id);
  return (
    <li class={isOpen ? "chat-entry open" : "chat-entry"}>
      <a
        href={hashOf("chat", chat.id)}
        aria-current={isOpen ? "page" : undefined}
        title={chat.title}
        onClick={() => (isListOpen.value = false)}
      >
        <span>{chat.title}</span>
        {isWriting && <span class="writing-dot" role="img" aria-label="An answer is being written" />}
      </a>
      <Menu
        name={`Actions of ${chat.title}`}
        icon="more"
        class="to-left"
        items={[
          { name: "Rename", icon: "edit", run: onRename },
          { name: "Export", icon: "file", run: () => void exportOne(chat.id).then(saveChats) },
          { name: "Delete", icon: "trash", isDanger: true, run: () => void removeWithUndo(chat.id) },
        ]}
      />
    </li>
  );
}

async function removeWithUndo(id: string): Promise<void> {
  const writing = runningIn(id);
  writing?.stop();
  await writing?.ended; // it would write the chat once more
  const wasOpen = openChat.value.id === id;
  const chat = await remove(id);
  if (wasOpen) go(hashOf("chat"));
  if (chat === null) return;
  const undo = async (): Promise<void> => {
    await putBack(chat);
    if (wasOpen) go(hashOf("chat", id));
  };
  toast({ text: "The chat was deleted.", action: { name: "Undo", run: () => void undo() } });
}

function Rename({ chat, onClose }: { chat: ChatTitle; onClose: () => void }): JSX.Element {
  const title = useSignal(chat.title);
  const submit = (event: Event): void => {
    event.preventDefault();
    if (title.value.trim()) void rename(chat.id, title.value.trim());
    onClose();
  };
  return (
    <Dialog title="Rename the chat" onClose={onClose}>
      <form onSubmit={submit}>
        <TextField label="Title" value={title.value} onInput={(value) => (title.value = value)} />
        <div class="row end">
          <Button kind="quiet" onClick={onClose}>
            Cancel
          </Button>
          <Button kind="primary" type="submit">
            Rename
          </Button>
        </div>
      </form>
    </Dialog>
  );
}

function Transfer(): JSX.Element {
  const input = useRef<HTMLInputElement>(null);
  const read = async (file: File | undefined): Promise<void> => {
    if (file === undefined) return;
    try {
      const count = await importAll(await file.text());
      toast({ text: count === 1 ? "1 chat was imported." : `${count} chats were imported.` });
    } catch (error) {
      toast({ text: `Nothing was imported. ${(error as Error).message}` });
    }
  };
  return (
    <>
      <Menu
        name="Import and export"
        icon="more"
        class="to-left"
        items={[
          { name: "Import chats…", icon: "file", run: () => input.current?.click() },
          {
            name: "Export all chats",
            icon: "copy",
            run: () => void exportAll().then(saveChats),
          },
        ]}
      />
      <input
        ref={input}
        type="file"
        accept=".json,application/json"
        hidden
        aria-label="File with chats"
        onChange={(event) => {
          void read(event.currentTarget.files?.[0]);
          event.currentTarget.value = "";
        }}
      />
    </>
  );
}

function groupByAge(chats: readonly ChatTitle[]): [string, ChatTitle[]][] {
  const today = new Date().setHours(0, 0, 0, 0);
  const limits: [string, number][] = [
    ["Today", today],
    ["Yesterday", today - DAY_MS],
    ["Last seven days", today - 7 * DAY_MS],
    ["Earlier", Number.NEGATIVE_INFINITY],
  ];
  const groups = new Map<string, ChatTitle[]>();
  for (const chat of chats) {
    const [name] = limits.find(([, from]) => chat.updated >= from)!;
    groups.set(name, [...(groups.get(name) ?? []), chat]);
  }
  return [...groups];
}
