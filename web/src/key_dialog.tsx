/** The question for the API key. */
import type { JSX } from "preact";
import { useState } from "preact/hooks";

import { giveKey, keyQuestion } from "./api/key.ts";
import { Button } from "./ui/button.tsx";
import { Dialog } from "./ui/dialog.tsx";
import { TextField } from "./ui/fields.tsx";

export function KeyDialog(): JSX.Element | null {
  return keyQuestion.value === null ? null : <Question isWrong={keyQuestion.value === "wrong"} />;
}

function Question({ isWrong }: { isWrong: boolean }): JSX.Element {
  const [key, setKey] = useState("");
  const submit = (event: Event): void => {
    event.preventDefault();
    if (key.trim()) giveKey(key.trim());
  };
  return (
    <Dialog title="This server asks for a key" onClose={() => giveKey(null)}>
      <form onSubmit={submit}>
        <TextField
          label="API key"
          isSecret
          value={key}
          onInput={setKey}
          error={isWrong ? "The server does not know this key." : null}
          hint="It is kept in this tab only, and forgotten when the tab is closed."
        />
        <div class="row end">
          <Button kind="quiet" onClick={() => giveKey(null)}>
            Cancel
          </Button>
          <Button kind="primary" type="submit" disabled={!key.trim()}>
            Use this key
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
