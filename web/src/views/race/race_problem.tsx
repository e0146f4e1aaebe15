/** What went wrong with a race, in the words of the chat, and what can be done about it here. */
import type { JSX } from "preact";

import { askForKey, currentKey } from "../../api/key.ts";
import { explain, problemOf } from "../../chat/problems.ts";
import { hashOf } from "../../router.ts";
import { Button } from "../../ui/button.tsx";

interface ProblemProps {
  error: unknown;
  onAgain: () => void;
  /** Is given where the question comes from a chat: race it without the messages before it and their parameters. */
  onAlone?: (() => void) | undefined;
}

export function RaceProblem({ error, onAgain, onAlone }: ProblemProps): JSX.Element {
  const { title, detail, ways } = explain(problemOf(error));
  const isTooLong = ways.includes("shorten");
  const isAboutRequest = isTooLong || ways.includes("parameters");
  return (
    <div class="problem" role="alert">
      <strong>{title}</strong>
      {detail && <p>{detail}</p>}
      {isTooLong && <p>Shorten the question{onAlone ? ", or ask it without its chat" : ""}.</p>}
      <div class="row">
        {ways.includes("key") && (
          <Button kind="danger" onClick={() => void askForKey(currentKey()).then((isGiven) => isGiven && onAgain())}>
            Enter a key
          </Button>
        )}
        {isAboutRequest && onAlone && <Button onClick={onAlone}>Ask it without its chat</Button>}
        {ways.includes("again") && <Button onClick={onAgain}>Try again</Button>}
        {ways.includes("model") && (
          <a class="button quiet" href={hashOf("models")}>
            Models
          </a>
        )}
      </div>
    </div>
  );
}
