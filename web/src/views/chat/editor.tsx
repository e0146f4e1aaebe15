/** A field in which a message is edited in its place. */
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { Button } from "../../ui/button.tsx";
import { fitHeight } from "./fit_height.ts";

interface EditorProps {
  text: string;
  label: string;
  /** What the button that keeps the text is called. */
  action: string;
  onSave: (text: string) => void;
  onCancel: () => void;
}

export function Editor({ text, label, action, onSave, onCancel }: EditorProps): JSX.Element {
  const [value, setValue] = useState(text);
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    field.current?.focus();
    field.current?.setSelectionRange(text.length, text.length);
  }, []);
  useEffect(() => {
    if (field.current) fitHeight(field.current);
  }, [value]);
  const save = (): void => {
    if (value.trim()) onSave(value);
  };
  return (
    <div class="editor">
      <textarea
        ref={field}
        class="input"
        aria-label={label}
        value={value}
        onInput={(event) => setValue(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Escape") onCancel();
          else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
          else return;
          event.preventDefault();
          event.stopPropagation();
        }}
      />
      <div class="row end">
        <Button kind="quiet" onClick={onCancel}>
          Cancel
        </Button>
        <Button kind="primary" onClick={save} disabled={!value.trim()} title="Ctrl+Enter">
          {action}
        </Button>
      </div>
    </div>
  );
}
