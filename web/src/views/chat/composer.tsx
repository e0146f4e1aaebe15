/** The field in which a message is written, with the files that are sent with it. */
import { signal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";

import { openChat } from "../../chat/chats.ts";
import { runningIn } from "../../chat/generation.ts";
import type { TextFile } from "../../chat/model.ts";
import { readTextFiles } from "../../files.ts";
import { IconButton } from "../../ui/button.tsx";
import { toast } from "../../ui/toast.tsx";
import { send, stop } from "./actions.ts";
import { fitHeight } from "./fit_height.ts";
import { Files } from "./user_message.tsx";

const text = signal("");
const files = signal<TextFile[]>([]);

/** Read dropped or chosen files into the message that is being written. */
export async function addFiles(list: Iterable<File>): Promise<void> {
  const { texts, refused } = await readTextFiles(list);
  const names = new Set(texts.map((file) => file.name));
  files.value = [...files.value.filter((file) => !names.has(file.name)), ...texts];
  if (refused.length > 0) toast({ text: refused.join(" ") });
}

export function Composer(): JSX.Element {
  const isWriting = runningIn(openChat.value.id) !== undefined;
  const isEmpty = text.value.trim() === "" && files.value.length === 0;
  const submit = (): void => {
    if (isEmpty || isWriting || !send(text.value, files.value)) return;
    text.value = "";
    files.value = [];
  };
  return (
    <form
      class="composer"
      aria-label="New message"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <div class="composer-box">
        <Files files={files.value} onRemove={(file) => (files.value = files.value.filter((other) => other !== file))} />
        <MessageField onSubmit={submit} />
        <div class="composer-tools">
          <AddFiles />
          <span class="hint muted">Enter sends, Shift+Enter begins a line</span>
          {isWriting ? (
            <IconButton icon="stop" name="Stop the answer" class="send" onClick={stop} />
          ) : (
            <IconButton icon="send" name="Send" class="send" type="submit" disabled={isEmpty} />
          )}
        </div>
      </div>
    </form>
  );
}

function MessageField({ onSubmit }: { onSubmit: () => void }): JSX.Element {
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    if (field.current) fitHeight(field.current);
  }, [text.value]);
  return (
    <textarea
      ref={field}
      rows={1}
      aria-label="Message"
      placeholder="Write a message"
      value={text.value}
      onInput={(event) => (text.value = event.currentTarget.value)}
      onKeyDown={(event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        onSubmit();
      }}
      onPaste={(event) => {
        const pasted = [...(event.clipboardData?.files ?? [])];
        if (pasted.length === 0) return;
        event.preventDefault();
        void addFiles(pasted);
      }}
    />
  );
}

function AddFiles(): JSX.Element {
  const input = useRef<HTMLInputElement>(null);
  return (
    <>
      <IconButton icon="plus" name="Add text files" onClick={() => input.current?.click()} />
      <input
        ref={input}
        type="file"
        multiple
        hidden
        aria-label="Text files"
        onChange={(event) => {
          void addFiles([...(event.currentTarget.files ?? [])]);
          event.currentTarget.value = "";
        }}
      />
    </>
  );
}
