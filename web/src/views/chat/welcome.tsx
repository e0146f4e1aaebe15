/** What an empty chat shows. */
import type { JSX } from "preact";

import { openChat } from "../../chat/chats.ts";
import { modelOf } from "../../models.ts";
import { send } from "./actions.ts";

const BEGINNINGS = [
  "What is Understudy?",
  "Tell me a short story about a fox named Mia.",
  "Why is the sky blue?",
];

export function Welcome(): JSX.Element {
  const model = modelOf(openChat.value.settings.model);
  return (
    <div class="welcome">
      <h1>What would you like to ask?</h1>
      <p class="muted">
        {model ? `${model.id} answers` : "The model answers"} on your own machine. Its drafts make it faster and
        never change its words.
      </p>
      <ul class="beginnings">
        {BEGINNINGS.map((text) => (
          <li key={text}>
            <button type="button" onClick={() => send(text, [])}>
              {text}
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}
