/** How the chunks of a stream become an answer. These functions change the message they are given. */
import type { Chunk, Delta } from "../api/types.ts";
import type { Answer, Covered, End, Message, ToolCall } from "./model.ts";

const MORE_TOKENS = 1024; // for an answer that its limit ended

/** A message whose answer is being written. */
export type Written = Message & { answer: Answer };

/** Add a chunk to an answer. */
export function applyChunk(message: Written, chunk: Chunk): void {
  const { answer } = message;
  answer.model = chunk.model ?? answer.model;
  answer.fingerprint = chunk.system_fingerprint ?? answer.fingerprint;
  const choice = chunk.choices[0];
  if (choice !== undefined) {
    applyDelta(message, choice.delta);
    if (choice.finish_reason) answer.end = choice.finish_reason as End;
    if (choice.token_ids?.length) {
      for (const id of choice.token_ids) answer.ids.push(id);
      answer.covered = lengthsOf(message);
    }
  }
  const { usage, timings } = chunk;
  if (usage && timings) {
    answer.figures = {
      tokens: usage.completion_tokens,
      promptTokens: usage.prompt_tokens,
      tokensPerSecond: timings.predicted_per_second,
      tokensPerPass: timings.tokens_per_pass,
      seed: timings.seed,
      resumed: timings.resumed,
    };
  }
}

function applyDelta(message: Written, delta: Delta): void {
  message.text += delta.content ?? "";
  message.answer.reasoning += delta.reasoning_content ?? "";
  for (const part of delta.tool_calls ?? []) {
    const call: ToolCall = (message.answer.calls[part.index] ??= { id: "", name: "", arguments: "" });
    call.id ||= part.id ?? "";
    call.name ||= part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
}

function lengthsOf(message: Written): Covered {
  const { reasoning, calls } = message.answer;
  return {
    text: message.text.length,
    reasoning: reasoning.length,
    calls: calls.map((call) => call.arguments.length),
  };
}

/** Drop what the token ids do not cover: it comes again when the answer goes on. */
export function dropUncovered(message: Written): void {
  const { answer } = message;
  const { text, reasoning, calls } = answer.covered;
  message.text = message.text.slice(0, text);
  answer.reasoning = answer.reasoning.slice(0, reasoning);
  answer.calls = answer.calls
    .slice(0, calls.length)
    .map((call, index) => ({ ...call, arguments: call.arguments.slice(0, calls[index]) }));
  answer.end = null;
  answer.problem = null;
}

/** Prepare an answer that has ended to be gone on with. */
export function reopen(message: Written): void {
  const { answer } = message;
  if (answer.end === "length") {
    const fields = { ...answer.sent.fields, max_tokens: answer.ids.length + MORE_TOKENS };
    answer.sent = { ...answer.sent, fields };
  }
  if (answer.ids.length === 0) beginWithText(message);
  dropUncovered(message);
}

/** Have the model go on with the text as it is, instead of with token ids. */
export function beginWithText(message: Written): void {
  const { answer, text } = message;
  answer.begun = text || answer.reasoning ? { text, reasoning: answer.reasoning } : null;
  answer.ids = [];
  answer.fingerprint = null;
  answer.covered = lengthsOf(message);
}

/** Return a copy that later chunks do not change. */
export function copyOf(message: Written): Written {
  const { answer } = message;
  return {
    ...message,
    answer: { ...answer, ids: [...answer.ids], calls: answer.calls.map((call) => ({ ...call })) },
  };
}
