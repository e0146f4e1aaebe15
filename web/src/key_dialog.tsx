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

// Other characters cannot be sent in a header.
const SENDABLE = /^[\x20-\x7e]*$/;

function Question({ isWrong }: { isWrong: boolean }): JSX.Element {
  const [key, setKey] = useState("");
  const isUsable = key.trim() !== "" && SENDABLE.test(key);
  const submit = (event: Event): void => {
    event.preventDefault();
    if (isUsable) giveKey(key.trim());
  };
  let error = isWrong ? "The server does not know this key." : null;
  if (!SENDABLE.test(key)) error = "A key has only English letters, digits and signs.";
  return (
    <Dialog title="This server asks for a key" onClose={() => giveKey(null)}>
      <form onSubmit={submit}>
        <TextField
          label="API key"
          isSecret
          value={key}
          onInput={setKey}
          error={error}
          hint="It is kept in this tab only, and forgotten when the tab is closed."
        />
        <div class="row end">
          <Button kind="quiet" onClick={() => giveKey(null)}>
            Cancel
          </Button>
          <Button kind="primary" type="submit" disabled={!isUsable}>
            Use this key
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
