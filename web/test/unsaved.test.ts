import assert from "node:assert/strict";
import { test } from "node:test";

import type { Written } from "../src/chat/answer.ts";
import { newAnswer } from "../src/chat/model.ts";

const stored = new Map<string, string>();
const storage = new Proxy({} as Record<string, unknown>, {
  get: (_, name: string) =>
    ({
      getItem: (key: string) => stored.get(key) ?? null,
      setItem: (key: string, value: string) => stored.set(key, value),
      removeItem: (key: string) => stored.delete(key),
    })[name],
  ownKeys: () => [...stored.keys()],
  getOwnPropertyDescriptor: () => ({ enumerable: true, configurable: true }),
});
Object.assign(globalThis, { localStorage: storage });
const { forgetUnsaved, isAhead, keepUnsaved, takeUnsaved } = await import("../src/chat/unsaved.ts");

function written(text: string, ids: number[]): Written {
  const answer = { ...newAnswer({ model: null, system: "", skipped: 0, fields: {} }), ids };
  return { id: "a", parent: "u", role: "assistant", text, created: 0, answer };
}

test("what was being written is taken once, and what somebody has broken is left out", () => {
  keepUnsaved("chat", written("Hello", [1, 2]));
  keepUnsaved("chat", { ...written("other", []), id: "b" });
  forgetUnsaved("b");
  stored.set("understudy.unsaved.c", "{");
  stored.set("understudy.paint", "no");
  assert.deepEqual(takeUnsaved(), [{ chatId: "chat", message: written("Hello", [1, 2]) }]);
  assert.deepEqual([...stored.keys()], ["understudy.paint"]);
  assert.deepEqual(takeUnsaved(), []);
});

test("an answer that has gone on, or has ended, is not replaced by an older copy", () => {
  const kept = written("Hello", [1]);
  assert.ok(isAhead(written("Hello", [1]), kept));
  assert.ok(isAhead(written("Hello you", [1, 2]), kept));
  assert.ok(!isAhead(written("Hell", [1]), kept));
  const ended = { ...kept, answer: { ...kept.answer, end: "stop" as const } };
  assert.ok(!isAhead(written("Hello you", [1, 2]), ended));
});
