/** The calls of tools in an answer. The user types their results, and the model goes on. */
import type { JSX } from "preact";
import { useId, useState } from "preact/hooks";

import { openChat } from "../../chat/chats.ts";
import type { Message, ToolCall } from "../../chat/model.ts";
import { pathOf } from "../../chat/tree.ts";
import { Button } from "../../ui/button.tsx";
import { giveResults } from "./actions.ts";

interface CallsProps {
  message: Message;
  calls: ToolCall[];
  isComplete: boolean;
  isLast: boolean;
}

export function ToolCalls({ message, calls, isComplete, isLast }: CallsProps): JSX.Element {
  const [typed, setTyped] = useState<string[]>([]);
  const given = resultsAfter(message);
  const isAsked = isComplete && isLast;
  const submit = (event: Event): void => {
    event.preventDefault();
    giveResults(message, typed);
  };
  return (
    <form class="calls" onSubmit={submit}>
      {calls.map((call, index) => (
        <Call
          key={index}
          call={call}
          result={given[index]?.text}
          typed={isAsked ? (typed[index] ?? "") : null}
          onInput={(text) => setTyped(Object.assign([...typed], { [index]: text }))}
        />
      ))}
      {isAsked && (
        <div class="row end">
          <Button kind="primary" type="submit">
            {calls.length === 1 ? "Send the result" : "Send the results"}
          </Button>
        </div>
      )}
    </form>
  );
}

/** Return the tool results that follow an answer on the path that is shown. */
function resultsAfter(message: Message): Message[] {
  const path = pathOf(openChat.value);
  const after = path.slice(path.findIndex(({ id }) => id === message.id) + 1);
  const end = after.findIndex(({ role }) => role !== "tool");
  return end < 0 ? after : after.slice(0, end);
}

interface CallProps {
  call: ToolCall;
  result: string | undefined;
  /** What has been typed so far; null while no result is asked for. */
  typed: string | null;
  onInput: (text: string) => void;
}

function Call({ call, result, typed, onInput }: CallProps): JSX.Element {
  const id = useId();
  return (
    <section class="call" aria-label={`Call of ${call.name || "a tool"}`}>
      <h3>
        <span class="muted">Calls</span> {call.name}
      </h3>
      <pre tabIndex={0} role="group" aria-label="Arguments">
        {indented(call.arguments)}
      </pre>
      {result !== undefined && (
        <>
          <h4>Result</h4>
          <pre tabIndex={0} role="group" aria-label="Result">
            {result || "(empty)"}
          </pre>
        </>
      )}
      {result === undefined && typed !== null && (
        <>
          <label for={id}>Result of {call.name}</label>
          <textarea
            id={id}
            class="input code"
            rows={3}
            value={typed}
            placeholder="What the tool would answer"
            onInput={(event) => onInput(event.currentTarget.value)}
          />
        </>
      )}
    </section>
  );
}

function indented(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // it is not complete yet, or is no JSON
  }
}
