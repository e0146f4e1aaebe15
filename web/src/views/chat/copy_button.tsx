import type { JSX } from "preact";
import { useState } from "preact/hooks";

import { IconButton } from "../../ui/button.tsx";
import { copyText } from "../../ui/copy.ts";

const SHOWN_MS = 1500;

/** A button that copies the source of a message. */
export function CopyButton({ text }: { text: string }): JSX.Element {
  const [isDone, setDone] = useState(false);
  const copy = async (): Promise<void> => {
    if (!(await copyText(text, "The message was copied."))) return;
    setDone(true);
    setTimeout(() => setDone(false), SHOWN_MS);
  };
  return <IconButton icon={isDone ? "check" : "copy"} name="Copy the message" onClick={() => void copy()} />;
}
