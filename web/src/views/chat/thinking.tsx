/** What a model thought before it answered, folded. */
import type { JSX } from "preact";

import { Icon } from "../../ui/icons.tsx";

interface ThinkingProps {
  text: string;
  seconds: number;
  isRunning: boolean;
}

export function Thinking({ text, seconds, isRunning }: ThinkingProps): JSX.Element {
  const rounded = Math.max(1, Math.round(seconds));
  const title = isRunning ? "Thinking" : `Thought for ${rounded === 1 ? "a second" : `${rounded} seconds`}`;
  return (
    <details class={isRunning ? "thinking running" : "thinking"}>
      <summary>
        <Icon name="chevron" />
        <span>{title}</span>
      </summary>
      <div class="thought">{text.trim()}</div>
    </details>
  );
}
