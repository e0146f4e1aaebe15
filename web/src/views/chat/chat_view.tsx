/** The view of chats: their list, the open one, and a panel beside it. */
import { signal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect } from "preact/hooks";

import { useBarContent } from "../../bar.ts";
import { open, openChat, startChats } from "../../chat/chats.ts";
import { running } from "../../chat/generation.ts";
import { modelsState, refreshModelsUnasked } from "../../models.ts";
import { go, hashOf, route } from "../../router.ts";
import { IconButton } from "../../ui/button.tsx";
import { toast } from "../../ui/toast.tsx";
import { stop } from "./actions.ts";
import { ChatList, startNew } from "./chat_list.tsx";
import { addFiles, Composer } from "./composer.tsx";
import { focusComposer } from "./focus.ts";
import { loadMarkdown } from "./markdown_text.tsx";
import { ModelMenu } from "./model_menu.tsx";
import { isListOpen, openPanel, PANELS } from "./panels.ts";
import { Thread } from "./thread.tsx";

const isDropTarget = signal(false);
const MODELS_AGAIN_MS = 5000;
const MARKDOWN_AFTER_MS = 500; // once the page itself is there

export function ChatView(): JSX.Element {
  useOpenedChat();
  useModels();
  useShortcuts();
  useFileDrop();
  useBarContent(<BarContent />);
  useEffect(() => {
    void startChats();
    focusComposer();
    const timer = setTimeout(loadMarkdown, MARKDOWN_AFTER_MS);
    return () => clearTimeout(timer);
  }, []);
  return (
    <div class={openPanel.value ? "chat-view with-panel" : "chat-view"}>
      <aside class={isListOpen.value ? "side open" : "side"} aria-label="List of chats">
        <ChatList />
      </aside>
      {isListOpen.value && <div class="side-cover" onClick={() => (isListOpen.value = false)} />}
      <main class="chat-main">
        <Thread />
        <Composer />
      </main>
      <OpenPanel />
      {isDropTarget.value && <div class="drop-target">Drop text files to add them to your message</div>}
    </div>
  );
}

function BarContent(): JSX.Element {
  return (
    <>
      <IconButton
        icon="menu"
        name="List of chats"
        class="list-button"
        aria-expanded={isListOpen.value}
        onClick={() => (isListOpen.value = !isListOpen.value)}
      />
      <span class="grow" />
      <ModelMenu />
      {PANELS.map((panel) => (
        <IconButton
          key={panel.name}
          class={`open-${panel.name}`}
          icon={panel.icon}
          name={panel.title}
          aria-expanded={openPanel.value === panel.name}
          onClick={() => (openPanel.value = openPanel.value === panel.name ? null : panel.name)}
        />
      ))}
    </>
  );
}

function OpenPanel(): JSX.Element | null {
  const panel = PANELS.find(({ name }) => name === openPanel.value);
  if (panel === undefined) return null;
  const Content = panel.component;
  const close = (): void => {
    openPanel.value = null;
  };
  return (
    <aside class="panel" aria-label={panel.title}>
      <div class="panel-head">
        <h2>{panel.title}</h2>
        <IconButton icon="close" name={`Close ${panel.title.toLowerCase()}`} onClick={close} />
      </div>
      <Content />
    </aside>
  );
}

/** Keep the open chat that of the address. */
function useOpenedChat(): void {
  const wanted = route.value.rest[0] ?? null;
  useEffect(() => {
    void open(wanted).then((isFound) => {
      if (wanted !== null && !isFound) {
        toast({ text: "This browser has no such chat." });
        go(hashOf("chat"), { replace: true });
      }
      focusComposer();
    });
  }, [wanted]);
  useEffect(() => {
    document.title = `${openChat.value.title} · Understudy`;
  }, [openChat.value.title]);
}

/** Read the list of models when answers begin or end, and again while the server is not there. */
function useModels(): void {
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout>;
    const read = (): void => {
      void refreshModelsUnasked().then(() => {
        if (modelsState.value === "gone") timer = setTimeout(read, MODELS_AGAIN_MS);
      });
    };
    read();
    return () => clearTimeout(timer);
  }, [running.value.size]);
}

function useShortcuts(): void {
  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
      const isTyping = event.target instanceof HTMLElement && event.target.matches("input, textarea, select");
      const isCommand = (event.ctrlKey || event.metaKey) && event.shiftKey;
      if (event.key === "Escape") escape();
      else if (isCommand && event.key.toLowerCase() === "o") startNew();
      else if (event.key === "/" && !isTyping) focusComposer();
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
}

/** Close what lies over the chat; where nothing does, stop the answer. */
function escape(): void {
  if (isListOpen.value) {
    isListOpen.value = false;
    document.querySelector<HTMLElement>(".list-button")?.focus();
  } else if (document.activeElement?.closest(".panel")) {
    openPanel.value = null;
    focusComposer();
  } else {
    stop();
  }
}

/** Take text files that are dropped anywhere. */
function useFileDrop(): void {
  useEffect(() => {
    const hasFiles = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") ?? false;
    const onDrag = (event: DragEvent): void => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      isDropTarget.value = event.type === "dragover";
    };
    const onDrop = (event: DragEvent): void => {
      onDrag(event);
      if (hasFiles(event)) void addFiles([...(event.dataTransfer?.files ?? [])]);
    };
    addEventListener("dragover", onDrag);
    addEventListener("dragleave", onDrag);
    addEventListener("drop", onDrop);
    return () => {
      removeEventListener("dragover", onDrag);
      removeEventListener("dragleave", onDrag);
      removeEventListener("drop", onDrop);
    };
  }, []);
}
