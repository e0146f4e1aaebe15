/** An answer: what the model thought, wrote and called, how it ended, and what can be done next. */
import type { JSX } from "preact";
import { useState } from "preact/hooks";

import { openChat } from "../../chat/chats.ts";
import { goOn, running, type Running } from "../../chat/generation.ts";
import type { Answer, Figures, Message } from "../../chat/model.ts";
import { IconButton, Button } from "../../ui/button.tsx";
import { Menu } from "../../ui/menu.tsx";
import { several } from "../../units.ts";
import { answerAgain, keepInstead } from "./actions.ts";
import { Branches } from "./branches.tsx";
import { CopyButton } from "./copy_button.tsx";
import { Editor } from "./editor.tsx";
import { focusComposer } from "./focus.ts";
import { MarkdownText } from "./markdown_text.tsx";
import { ProblemView } from "./problem_view.tsx";
import { Thinking } from "./thinking.tsx";
import { ToolCalls } from "./tool_calls.tsx";
import { Paint, TraceTools } from "./traced.tsx";
import { WaitingView } from "./waiting_view.tsx";

interface AnswerProps {
  message: Message;
  isLast: boolean;
}

export function AnswerView({ message, isLast }: AnswerProps): JSX.Element {
  const [isEdited, setEdited] = useState(false);
  const close = (): void => {
    setEdited(false);
    focusComposer();
  };
  const writing = running.value.get(message.id);
  const shown = writing ? writing.shown.value : message;
  if (isEdited && !writing) {
    return (
      <article class="message answer edited" aria-label="Answer">
        <Editor
          text={message.text}
          label="Edit the answer"
          action="Keep"
          onSave={(text) => {
            keepInstead(message, text);
            close();
          }}
          onCancel={close}
        />
      </article>
    );
  }
  return (
    <article class="message answer" aria-label="Answer" aria-busy={writing !== undefined}>
      <h2 class="only-read">Answer</h2>
      <Content message={shown} isComplete={!writing} isLast={isLast} />
      <Paint message={shown} />
      {writing ? (
        <WaitingOf writing={writing} />
      ) : (
        <Footer message={message} isLast={isLast} onEdit={() => setEdited(true)} />
      )}
    </article>
  );
}

function Content({ message, isComplete, isLast }: AnswerProps & { isComplete: boolean }): JSX.Element {
  const { answer } = message;
  const isThinking = !isComplete && message.text === "" && !answer?.calls.length;
  return (
    <>
      {answer?.reasoning && (
        <Thinking text={answer.reasoning} seconds={answer.reasoningSeconds} isRunning={isThinking} />
      )}
      {message.text && <MarkdownText text={message.text} isComplete={isComplete} />}
      {answer && answer.calls.length > 0 && (
        <ToolCalls message={message} calls={answer.calls} isComplete={isComplete} isLast={isLast} />
      )}
    </>
  );
}

function WaitingOf({ writing }: { writing: Running }): JSX.Element | null {
  return writing.waiting.value && <WaitingView waiting={writing.waiting.value} />;
}

interface FooterProps extends AnswerProps {
  onEdit: () => void;
}

function Footer({ message, isLast, onEdit }: FooterProps): JSX.Element {
  const { answer } = message;
  return (
    <>
      {answer?.problem && <ProblemView message={message} problem={answer.problem} />}
      {answer && !answer.problem && <Ending answer={answer} message={message} isLast={isLast} />}
      <div class="message-tools">
        <Branches message={message} />
        <CopyButton text={message.text} />
        <Menu
          name="Answer again"
          icon="redo"
          items={[
            { name: "With the same seed", run: () => answerAgain(message, "same") },
            { name: "With a new seed", run: () => answerAgain(message, "new") },
          ]}
        />
        <IconButton icon="edit" name="Edit the answer" onClick={onEdit} />
        <TraceTools message={message} />
        {answer?.figures && <FiguresView figures={answer.figures} />}
      </div>
    </>
  );
}

const ENDINGS: Partial<Record<string, string>> = {
  stopped: "Stopped.",
  length: "The answer has reached its limit.",
  cut: "The answer was cut off.",
};

/** Say that an answer is not complete, and offer to go on. An answer without an end was cut off. */
function Ending({ answer, message, isLast }: AnswerProps & { answer: Answer }): JSX.Element | null {
  const words = ENDINGS[answer.end ?? "cut"];
  // an edited or imported answer has no ids: the model goes on with its text
  const isChanged = answer.end === "stop" && answer.ids.length === 0 && message.text !== "";
  if (!isLast || (words === undefined && !isChanged)) return null;
  return (
    <div class="ending">
      {words && <span class="muted">{words}</span>}
      <Button onClick={() => goOn(openChat.value, message)}>Continue</Button>
    </div>
  );
}

function FiguresView({ figures }: { figures: Figures }): JSX.Element {
  const parts = [
    several(figures.tokens, "token"),
    `${figures.tokensPerSecond.toFixed(1)} a second`,
    `${figures.tokensPerPass.toFixed(1)} a pass`,
  ];
  if (figures.seed !== null) parts.push(`seed ${figures.seed}`);
  if (figures.resumed > 0) parts.push("went on after a restart");
  return <span class="figures">{parts.join(" · ")}</span>;
}
