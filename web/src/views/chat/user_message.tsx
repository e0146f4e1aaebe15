/** A message of the user, which can be edited: the edited one is an alternative to it. */
import type { JSX } from "preact";
import { useState } from "preact/hooks";

import type { Message, TextFile } from "../../chat/model.ts";
import { IconButton } from "../../ui/button.tsx";
import { Icon } from "../../ui/icons.tsx";
import { several } from "../../units.ts";
import { sendInstead } from "./actions.ts";
import { Branches } from "./branches.tsx";
import { CopyButton } from "./copy_button.tsx";
import { Editor } from "./editor.tsx";
import { focusComposer } from "./focus.ts";

export function UserMessage({ message }: { message: Message }): JSX.Element {
  const [isEdited, setEdited] = useState(false);
  const close = (): void => {
    setEdited(false);
    focusComposer();
  };
  if (isEdited) {
    return (
      <article class="message user edited" aria-label="Your message">
        <Editor
          text={message.text}
          label="Edit your message"
          action="Send"
          onSave={(text) => {
            if (sendInstead(message, text)) close();
          }}
          onCancel={close}
        />
      </article>
    );
  }
  return (
    <article class="message user" aria-label="Your message">
      <h2 class="only-read">Your message</h2>
      <div class="bubble">
        <Files files={message.files ?? []} />
        {message.text && <div class="typed">{message.text}</div>}
      </div>
      <div class="message-tools">
        <Branches message={message} />
        <CopyButton text={message.text} />
        <IconButton icon="edit" name="Edit the message" onClick={() => setEdited(true)} />
      </div>
    </article>
  );
}

export function Files({ files, onRemove }: { files: TextFile[]; onRemove?: (file: TextFile) => void }): JSX.Element | null {
  if (files.length === 0) return null;
  return (
    <ul class="files" aria-label="Files">
      {files.map((file) => (
        <li key={file.name}>
          <Icon name="file" />
          <span class="file-name">{file.name}</span>
          <span class="muted">{sizeOf(file.text)}</span>
          {onRemove && <IconButton icon="close" name={`Remove ${file.name}`} onClick={() => onRemove(file)} />}
        </li>
      ))}
    </ul>
  );
}

function sizeOf(text: string): string {
  return text.length < 1000 ? several(text.length, "character") : `${(text.length / 1000).toFixed(1)} k characters`;
}
