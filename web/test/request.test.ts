import assert from "node:assert/strict";
import { test } from "node:test";

import { DEFAULTS, type Message, newAnswer, type Settings } from "../src/chat/model.ts";
import { bodyOf, continuing, parseTools, sentFrom, SettingError, withFiles } from "../src/chat/request.ts";

const PATH: Message[] = [
  { id: "1", parent: null, role: "user", text: "first", created: 0 },
  { id: "2", parent: "1", role: "assistant", text: "answer", created: 0 },
  { id: "3", parent: "2", role: "user", text: "second", created: 0 },
];

function settings(changed: Partial<Settings>): Settings {
  return { ...DEFAULTS, ...changed };
}

const FIELDS: [name: string, changed: Partial<Settings>, fields: Record<string, unknown>][] = [
  ["nothing but a seed", { seed: 1 }, { seed: 1 }],
  ["temperature 0", { seed: 1, temperature: 0 }, { seed: 1, temperature: 0 }],
  ["all numbers", { seed: 1, topP: 0.5, maxTokens: 9 }, { seed: 1, top_p: 0.5, max_tokens: 9 }],
  ["thinking", { seed: 1, thinking: "off" }, { seed: 1, enable_thinking: false }],
  [
    "a schema",
    { seed: 1, schema: '{"type": "object"}' },
    { seed: 1, response_format: { type: "json_schema", json_schema: { name: "answer", schema: { type: "object" } } } },
  ],
];

for (const [name, changed, fields] of FIELDS) {
  test(`settings: ${name}`, () => assert.deepEqual(sentFrom(settings(changed), 0).fields, fields));
}

test("a seed is drawn where none is set", () => {
  const seeds = new Set(Array.from({ length: 8 }, () => sentFrom(DEFAULTS, 0).fields["seed"]));
  assert.ok(seeds.size > 1);
  assert.ok([...seeds].every((seed) => Number.isSafeInteger(seed)));
});

test("tools are a list of tools, of functions, or one of either", () => {
  const tool = { type: "function", function: { name: "f" } };
  for (const text of ['[{"name": "f"}]', '{"name": "f"}', `[${JSON.stringify(tool)}]`, JSON.stringify(tool)]) {
    assert.deepEqual(parseTools(text), [tool], text);
  }
});

const WRONG: [changed: Partial<Settings>, words: RegExp][] = [
  [{ schema: "{" }, /^The schema is not JSON/],
  [{ schema: "[]" }, /^The schema is not a JSON object/],
  [{ tools: "x" }, /^The list of tools is not JSON/],
  [{ tools: '[{"name": "f"}, {}]' }, /^Tool 2 has no name/],
  [{ tools: '[{"function": 3}]' }, /^Tool 1 has no name/],
];

for (const [changed, words] of WRONG) {
  test(`a wrong setting: ${JSON.stringify(changed)}`, () => {
    const isRight = (error: unknown): boolean => error instanceof SettingError && words.test(error.message);
    assert.throws(() => sentFrom(settings(changed), 0), isRight);
  });
}

test("a body has the system prompt, and the messages that are not skipped", () => {
  const sent = { model: "m", system: "Be brief.", skipped: 2, fields: { seed: 1 } };
  const body = bodyOf(PATH, sent, null);
  assert.deepEqual(body["messages"], [
    { role: "system", content: "Be brief." },
    { role: "user", content: "second" },
  ]);
  assert.equal(body["model"], "m");
  assert.equal(body["seed"], 1);
});

test("the server's first model is named by leaving the field out", () => {
  assert.ok(!("model" in bodyOf(PATH, { model: null, system: "", skipped: 0, fields: {} }, null)));
});

test("calls and their results are sent as such", () => {
  const answer = { ...newAnswer({ model: null, system: "", skipped: 0, fields: {} }) };
  answer.calls = [{ id: "c", name: "f", arguments: "{}" }];
  const path: Message[] = [
    { id: "1", parent: null, role: "assistant", text: "", created: 0, answer },
    { id: "2", parent: "1", role: "tool", text: "12", created: 0, callId: "c" },
  ];
  const messages = bodyOf(path, answer.sent, null)["messages"];
  assert.deepEqual(messages, [
    {
      role: "assistant",
      content: null,
      tool_calls: [{ id: "c", type: "function", function: { name: "f", arguments: "{}" } }],
    },
    { role: "tool", content: "12", tool_call_id: "c" },
  ]);
});

test("an answer that was begun is the last message", () => {
  const sent = { model: null, system: "", skipped: 0, fields: {} };
  const messages = bodyOf(PATH, sent, { text: "So", reasoning: "hm" })["messages"] as unknown[];
  assert.deepEqual(messages.at(-1), { role: "assistant", content: "So", reasoning_content: "hm" });
});

test("an answer goes on with its ids and its fingerprint", () => {
  const answer = newAnswer({ model: null, system: "", skipped: 0, fields: {} });
  assert.deepEqual(continuing(answer), {});
  answer.ids = [4, 5];
  answer.fingerprint = "abc";
  assert.deepEqual(continuing(answer), { continue_tokens: { "0": [4, 5] }, fingerprint: "abc" });
});

test("nothing in a file closes its block", () => {
  const text = withFiles("What is it?", [{ name: "a.md", text: "````\ninside\n````\n" }]);
  assert.equal(text, "File a.md:\n`````\n````\ninside\n````\n`````\n\nWhat is it?");
});
