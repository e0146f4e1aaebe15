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
      <div class="thought">
        {piecesOf(text).map(({ start, piece }) => (
          <span key={start} data-start={start}>
            {piece}
          </span>
        ))}
      </div>
    </details>
  );
}

const PIECE = 2000; // characters, so that only the last piece of a long text is drawn again

/** Return a text without the white space around it, in pieces. */
function piecesOf(text: string): { start: number; piece: string }[] {
  const end = text.trimEnd().length;
  const pieces = [];
  for (let start = text.length - text.trimStart().length; start < end; start += PIECE) {
    pieces.push({ start, piece: text.slice(start, Math.min(start + PIECE, end)) });
  }
  return pieces;
}
