import type { JSX } from "preact";
import { useState } from "preact/hooks";

import { announce } from "../../ui/announce.tsx";
import { IconButton } from "../../ui/button.tsx";
import { toast } from "../../ui/toast.tsx";

const SHOWN_MS = 1500;

/** A button that copies the source of a message. */
export function CopyButton({ text }: { text: string }): JSX.Element {
  const [isDone, setDone] = useState(false);
  const copy = async (): Promise<void> => {
    try {
      await navigator.clipboard.writeText(text);
      setDone(true);
      announce("The message was copied.");
      setTimeout(() => setDone(false), SHOWN_MS);
    } catch {
      toast({ text: "The browser does not let this page copy: it came without HTTPS from another machine." });
    }
  };
  return <IconButton icon={isDone ? "check" : "copy"} name="Copy the message" onClick={() => void copy()} />;
}
