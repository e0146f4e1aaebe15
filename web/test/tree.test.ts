import assert from "node:assert/strict";
import { test } from "node:test";

import { type Chat, DEFAULTS, type Message, newChat, titleOf } from "../src/chat/model.ts";
import { alternatives, choose, pathOf, pathTo, withChanged, withMessage, without } from "../src/chat/tree.ts";

function message(id: string, parent: string | null, created = 0): Message {
  return { id, parent, role: "user", text: id, created };
}

/** Return a chat with messages that are added in order. */
function chatOf(...messages: [id: string, parent: string | null][]): Chat {
  return messages.reduce(
    (chat, [id, parent], index) => withMessage(chat, message(id, parent, index)),
    newChat(DEFAULTS),
  );
}

function shown(chat: Chat): string {
  return pathOf(chat).map(({ id }) => id).join(" ");
}

test("an empty chat shows nothing", () => assert.equal(shown(chatOf()), ""));

test("a message that is added is shown, and what followed another one is not", () => {
  const chat = chatOf(["a", null], ["b", "a"], ["c", "b"], ["b2", "a"]);
  assert.equal(shown(chat), "a b2");
});

test("choosing another branch shows what was shown of it last", () => {
  const chat = chatOf(["a", null], ["b", "a"], ["c", "b"], ["c2", "b"], ["b2", "a"], ["d", "b2"]);
  assert.equal(shown(chat), "a b2 d");
  assert.equal(shown(choose(chat, "b")), "a b c2");
  assert.equal(shown(choose(choose(chat, "c"), "b")), "a b c");
});

test("the first message has alternatives too", () => {
  const chat = chatOf(["a", null], ["b", "a"], ["a2", null]);
  assert.equal(shown(chat), "a2");
  assert.equal(shown(choose(chat, "a")), "a b");
  assert.deepEqual(alternatives(chat, null).map(({ id }) => id), ["a", "a2"]);
});

test("alternatives are in the order of their age", () => {
  let chat = newChat(DEFAULTS);
  for (const [id, created] of [["late", 3], ["early", 1], ["middle", 2]] as const) {
    chat = withMessage(chat, message(id, null, created));
  }
  assert.deepEqual(alternatives(chat, null).map(({ id }) => id), ["early", "middle", "late"]);
});

test("removing a message removes what follows it, in all branches", () => {
  const chat = chatOf(["a", null], ["b", "a"], ["c", "b"], ["c2", "b"], ["b2", "a"]);
  const left = without(chat, "b");
  assert.deepEqual(Object.keys(left.messages).sort(), ["a", "b2"]);
  assert.equal(shown(left), "a b2");
  assert.equal(shown(without(chat, "a")), "");
});

test("the path to a message does not depend on what is shown", () => {
  const chat = chatOf(["a", null], ["b", "a"], ["c", "b"], ["b2", "a"]);
  assert.deepEqual(pathTo(chat, "c").map(({ id }) => id), ["a", "b", "c"]);
  assert.deepEqual(pathTo(chat, null), []);
});

test("the functions leave the chat as it was", () => {
  const chat = chatOf(["a", null], ["b", "a"]);
  const before = structuredClone(chat);
  withMessage(chat, message("x", "a"));
  withChanged(chat, { ...message("a", null), text: "changed" });
  choose(chat, "a");
  without(chat, "a");
  assert.deepEqual(chat, before);
});

test("unknown ids change nothing", () => {
  const chat = chatOf(["a", null]);
  assert.equal(shown(choose(chat, "nothing")), "a");
  assert.equal(shown(without(chat, "nothing")), "a");
});

const TITLES: [text: string, title: string][] = [
  ["What is it?", "What is it?"],
  ["  \nfirst line\nsecond", "first line"],
  ["", "New chat"],
  ["x".repeat(70), `${"x".repeat(59)}…`],
  ["🎭".repeat(61), `${"🎭".repeat(59)}…`],
];

for (const [text, title] of TITLES) {
  test(`the title of ${JSON.stringify(text.slice(0, 20))}`, () => assert.equal(titleOf(text), title));
}

test("a message of files alone is named after the first", () => {
  assert.equal(titleOf("", [{ name: "notes.txt", text: "" }]), "notes.txt");
});
