import assert from "node:assert/strict";
import { test } from "node:test";

import { DEFAULTS, newAnswer, newChat } from "../src/chat/model.ts";
import { exportChats, importChats } from "../src/chat/transfer.ts";
import { pathOf, withMessage } from "../src/chat/tree.ts";

function chat() {
  const answer = newAnswer({ model: "m", system: "s", skipped: 0, fields: { seed: 3 } });
  answer.ids = [1, 2];
  answer.end = "stop";
  answer.paint = { sources: ["target", "ngram"], counts: [1, 2], content: "2a3b", reasoning: "" };
  answer.calls = [{ id: "c", name: "f", arguments: "{}" }];
  let made = newChat({ ...DEFAULTS, temperature: 0.5 });
  made = withMessage(made, { id: "u", parent: null, role: "user", text: "hi", created: 1, files: [{ name: "f", text: "x" }] });
  made = withMessage(made, { id: "a", parent: "u", role: "assistant", text: "hello", created: 2, answer });
  return { ...made, title: "Title", isNamed: true };
}

test("what is exported can be imported", () => {
  const given = chat();
  const [found] = importChats(exportChats([given]));
  assert.ok(found);
  assert.notEqual(found.id, given.id);
  assert.equal(found.title, "Title");
  assert.equal(found.settings.temperature, 0.5);
  assert.deepEqual(pathOf(found).map(({ text }) => text), ["hi", "hello"]);
  assert.deepEqual(found.messages["u"], given.messages["u"]);
  assert.deepEqual(found.messages["a"]?.answer?.calls, [{ id: "c", name: "f", arguments: "{}" }]);
  assert.deepEqual(found.messages["a"]?.answer?.ids, []);
  assert.deepEqual(found.messages["a"]?.answer?.paint, given.messages["a"]?.answer?.paint);
});

function file(chatFields: Record<string, unknown>): string {
  return JSON.stringify({ format: "understudy-chats", version: 1, chats: [chatFields] });
}

const WRONG: [text: string, words: RegExp][] = [
  ["", /not JSON/],
  ["[]", /no chats of Understudy/],
  ['{"format": "other"}', /no chats of Understudy/],
  ['{"format": "understudy-chats", "version": 2}', /another version/],
  ['{"format": "understudy-chats", "version": 1}', /no list of chats/],
  [file({ messages: { a: { role: "user" } } }), /chat 1 has no id/],
  [file({ messages: { a: { id: "__proto__", role: "user" } } }), /has no id/],
  [file({ messages: { a: { id: "a", role: "system" } } }), /unknown role "system"/],
  [file({ messages: { a: { id: "a", role: "user", parent: "b" } } }), /follows one that is missing/],
  [file({ messages: { a: { id: "a", role: "user", parent: "constructor" } } }), /follows one that is missing/],
  [
    file({ messages: { a: { id: "a", role: "user", parent: "b" }, b: { id: "b", role: "user", parent: "a" } } }),
    /in a circle/,
  ],
];

for (const [text, words] of WRONG) {
  test(`a file that is refused: ${text.slice(0, 60)}`, () => assert.throws(() => importChats(text), words));
}

test("fields of the wrong type are dropped", () => {
  const [found] = importChats(
    file({
      title: 3,
      settings: { temperature: "hot", model: {}, thinking: "maybe" },
      messages: { a: { id: "a", role: "assistant", text: [], answer: { calls: [null, 3], sent: 4, reasoning: {} } } },
      chosen: { "": "a", a: "missing" },
      skipped: -4,
    }),
  );
  assert.ok(found);
  assert.equal(found.title, "Imported chat");
  assert.deepEqual(found.settings, DEFAULTS);
  assert.deepEqual(found.chosen, { "": "a" });
  assert.equal(found.skipped, 0);
  assert.equal(found.messages["a"]?.text, "");
});
