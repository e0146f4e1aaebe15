/** The field in which a message is written, with the files that are sent with it. */
import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";

import { openChat } from "../../chat/chats.ts";
import { changeDraft, draftOf } from "../../chat/drafts.ts";
import { runningIn } from "../../chat/generation.ts";
import { readTextFiles } from "../../files.ts";
import { IconButton } from "../../ui/button.tsx";
import { toast } from "../../ui/toast.tsx";
import { send, stop } from "./actions.ts";
import { fitHeight } from "./fit_height.ts";
import { Files } from "./user_message.tsx";

/** Read dropped or chosen files into the message that is being written. */
export async function addFiles(list: Iterable<File>): Promise<void> {
  const chat = openChat.value;
  const { texts, refused } = await readTextFiles(list);
  const names = new Set(texts.map((file) => file.name));
  const others = draftOf(chat).files.filter((file) => !names.has(file.name));
  changeDraft(chat, { files: [...others, ...texts] });
  if (refused.length > 0) toast({ text: refused.join("\n") });
}

export function Composer(): JSX.Element {
  const chat = openChat.value;
  const { text, files } = draftOf(chat);
  const isWriting = runningIn(chat.id) !== undefined;
  const isEmpty = text.trim() === "" && files.length === 0;
  const submit = (): void => {
    if (isEmpty || isWriting || !send(text, files)) return;
    changeDraft(chat, { text: "", files: [] });
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
        <Files
          files={files}
          onRemove={(file) => changeDraft(chat, { files: files.filter((other) => other !== file) })}
        />
        <MessageField text={text} onInput={(typed) => changeDraft(chat, { text: typed })} onSubmit={submit} />
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

interface FieldProps {
  text: string;
  onInput: (text: string) => void;
  onSubmit: () => void;
}

function MessageField({ text, onInput, onSubmit }: FieldProps): JSX.Element {
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    if (field.current) fitHeight(field.current);
  }, [text]);
  return (
    <textarea
      ref={field}
      rows={1}
      aria-label="Message"
      placeholder="Write a message"
      value={text}
      onInput={(event) => onInput(event.currentTarget.value)}
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
