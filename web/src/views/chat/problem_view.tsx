/** What went wrong with an answer, and the ways on. */
import type { JSX } from "preact";

import { askForKey, currentKey } from "../../api/key.ts";
import type { Message, Problem } from "../../chat/model.ts";
import { explain, type WayOn } from "../../chat/problems.ts";
import { Button } from "../../ui/button.tsx";
import { canShorten, shorten, tryAgain } from "./actions.ts";
import { startNew } from "./chat_list.tsx";
import { focusModels } from "./model_menu.tsx";
import { openPanel } from "./panels.ts";

interface Way {
  name: string;
  run: (message: Message) => void;
}

const WAYS: Record<WayOn, Way> = {
  again: { name: "Try again", run: tryAgain },
  key: {
    name: "Enter a key",
    run: (message) => void askForKey(currentKey()).then((isGiven) => isGiven && tryAgain(message)),
  },
  model: { name: "Choose another model", run: focusModels },
  parameters: { name: "Parameters", run: () => (openPanel.value = "parameters") },
  shorten: { name: "Leave out older messages", run: shorten },
  "new-chat": { name: "New chat", run: startNew },
};

export function ProblemView({ message, problem }: { message: Message; problem: Problem }): JSX.Element {
  const { title, detail, ways } = explain(problem);
  const possible = ways.filter((way) => way !== "shorten" || canShorten(message));
  return (
    <div class="problem" role="group" aria-label="Problem">
      <strong>{title}</strong>
      {detail && <p>{detail}</p>}
      <div class="row">
        {possible.map((way, index) => (
          <Button key={way} kind={index === 0 ? "danger" : "quiet"} onClick={() => WAYS[way].run(message)}>
            {WAYS[way].name}
          </Button>
        ))}
      </div>
    </div>
  );
}
