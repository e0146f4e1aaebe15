import assert from "node:assert/strict";
import { test } from "node:test";

import type { Chunk, Delta } from "../src/api/types.ts";
import { applyChunk, copyOf, dropUncovered, reopen, type Written } from "../src/chat/answer.ts";
import { newAnswer } from "../src/chat/model.ts";

function written(): Written {
  const sent = { model: "m", system: "", skipped: 0, fields: { seed: 1 } };
  return { id: "a", parent: "u", role: "assistant", text: "", created: 0, answer: newAnswer(sent) };
}

function chunk(delta: Delta, ids?: number[], finish?: string): Chunk {
  return { choices: [{ index: 0, delta, finish_reason: finish ?? null, ...(ids ? { token_ids: ids } : {}) }] };
}

function apply(...chunks: Chunk[]): Written {
  const message = written();
  for (const one of chunks) applyChunk(message, one);
  return message;
}

test("text, reasoning and ids are added up", () => {
  const message = apply(
    chunk({ role: "assistant", content: "" }, []),
    chunk({ reasoning_content: "hm" }, [1]),
    chunk({ content: "He" }, [2]),
    chunk({ content: "llo" }, [3, 4], "stop"),
  );
  assert.equal(message.text, "Hello");
  assert.equal(message.answer.reasoning, "hm");
  assert.deepEqual(message.answer.ids, [1, 2, 3, 4]);
  assert.equal(message.answer.end, "stop");
});

test("calls are put together by their index", () => {
  const { answer } = apply(
    chunk({ tool_calls: [{ index: 0, id: "c0", function: { name: "f", arguments: "" } }] }),
    chunk({ tool_calls: [{ index: 0, function: { arguments: '{"a"' } }] }),
    chunk({ tool_calls: [{ index: 1, id: "c1", function: { name: "g", arguments: "{}" } }] }),
    chunk({ tool_calls: [{ index: 0, function: { arguments: ": 1}" } }] }, [9], "tool_calls"),
  );
  assert.deepEqual(answer.calls, [
    { id: "c0", name: "f", arguments: '{"a": 1}' },
    { id: "c1", name: "g", arguments: "{}" },
  ]);
  assert.deepEqual(answer.covered.calls, [8, 2]);
});

test("what came after the last ids is dropped before an answer goes on", () => {
  const message = apply(
    chunk({ content: "one " }, [1]),
    chunk({ content: "two " }, []), // the ids of this pass are on its last chunk
    chunk({ content: "three " }),
  );
  dropUncovered(message);
  assert.equal(message.text, "one ");
  applyChunk(message, chunk({ content: "two three " }, [2, 3], "stop"));
  assert.equal(message.text, "one two three ");
  assert.deepEqual(message.answer.ids, [1, 2, 3]);
});

test("calls after the last ids are dropped too", () => {
  const message = apply(
    chunk({ tool_calls: [{ index: 0, id: "c", function: { name: "f", arguments: "{" } }] }, [1]),
    chunk({ tool_calls: [{ index: 0, function: { arguments: '"a' } }] }),
    chunk({ tool_calls: [{ index: 1, id: "d", function: { name: "g", arguments: "{" } }] }),
  );
  dropUncovered(message);
  assert.deepEqual(message.answer.calls, [{ id: "c", name: "f", arguments: "{" }]);
});

test("an answer at its limit goes on with a higher one", () => {
  const message = apply(chunk({ content: "a" }, [1, 2], "length"));
  reopen(message);
  assert.equal(message.answer.sent.fields["max_tokens"], 2 + 1024);
  assert.equal(message.answer.end, null);
  assert.equal(message.text, "a");
});

test("an answer without ids goes on with its text", () => {
  const message = written();
  message.text = "edited";
  message.answer.end = "stop";
  reopen(message);
  assert.deepEqual(message.answer.begun, { text: "edited", reasoning: "" });
  applyChunk(message, chunk({ content: " more" }, [5]));
  applyChunk(message, chunk({ content: " lost" }));
  dropUncovered(message);
  assert.equal(message.text, "edited more");
});

test("the last chunk has the figures", () => {
  const message = apply({
    choices: [],
    usage: { prompt_tokens: 3, completion_tokens: 5, total_tokens: 8 },
    timings: { predicted_per_second: 2.5, tokens_per_pass: 4, passes: 2, seed: 7, resumed: 1 },
  });
  assert.deepEqual(message.answer.figures, {
    tokens: 5,
    promptTokens: 3,
    tokensPerSecond: 2.5,
    tokensPerPass: 4,
    seed: 7,
    resumed: 1,
  });
});

test("later chunks do not change a copy", () => {
  const message = apply(chunk({ content: "a" }, [1]));
  const copy = copyOf(message);
  applyChunk(message, chunk({ content: "b", tool_calls: [{ index: 0, id: "c" }] }, [2]));
  assert.deepEqual(copy.answer.ids, [1]);
  assert.deepEqual(copy.answer.calls, []);
});
