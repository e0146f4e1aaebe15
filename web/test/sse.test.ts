import assert from "node:assert/strict";
import { test } from "node:test";

import { readSse, type SseItem, SseParser } from "../src/api/sse.ts";

function event(data: string, name = ""): SseItem {
  return { kind: "event", event: name, data };
}

function comment(text: string): SseItem {
  return { kind: "comment", text };
}

const CASES: [name: string, text: string, items: SseItem[]][] = [
  ["one event", "data: a\n\n", [event("a")]],
  ["two events", "data: a\n\ndata: b\n\n", [event("a"), event("b")]],
  ["several lines of data", "data: a\ndata: b\n\n", [event("a\nb")]],
  ["no space after the colon", "data:a\n\n", [event("a")]],
  ["only one space is removed", "data:  a\n\n", [event(" a")]],
  ["a field without a colon", "data\n\n", [event("")]],
  ["a named event", "event: ping\ndata: {}\n\n", [event("{}", "ping")]],
  ["an event without data is none", "event: ping\n\ndata: a\n\n", [event("a")]],
  ["a comment", ": prompt 8192 of 21340\n\n", [comment("prompt 8192 of 21340")]],
  ["a comment inside an event", "data: a\n: b\ndata: c\n\n", [comment("b"), event("a\nc")]],
  ["unknown fields", "id: 1\nretry: 5\nfoo: bar\ndata: a\n\n", [event("a")]],
  ["carriage returns", "data: a\r\n\r\ndata: b\r\rdata: c\n\n", [event("a"), event("b"), event("c")]],
  ["a byte order mark", "\uFEFFdata: a\n\n", [event("a")]],
  ["an event that is not complete", "data: a\n\ndata: b\n", [event("a")]],
  ["colons in data", "data: {\"a\": \"b:c\"}\n\n", [event('{"a": "b:c"}')]],
];

for (const [name, text, items] of CASES) {
  test(`${name}, in pieces of every size`, () => {
    for (let size = 1; size <= text.length; size++) {
      const parser = new SseParser();
      const found: SseItem[] = [];
      for (let at = 0; at < text.length; at += size) found.push(...parser.push(text.slice(at, at + size)));
      assert.deepEqual(found, items, `pieces of ${size}`);
    }
  });
}

test("characters of several bytes may be cut", async () => {
  const bytes = new TextEncoder().encode("data: Grüße 🎭\n\n");
  for (let cut = 1; cut < bytes.length; cut++) {
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(bytes.slice(0, cut));
        controller.enqueue(bytes.slice(cut));
        controller.close();
      },
    });
    const found: SseItem[] = [];
    for await (const item of readSse(body)) found.push(item);
    assert.deepEqual(found, [event("Grüße 🎭")]);
  }
});

test("a reader that stops cancels the body", async () => {
  let isCancelled = false;
  const body = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(new TextEncoder().encode("data: a\n\n")),
    cancel: () => void (isCancelled = true),
  });
  for await (const item of readSse(body)) {
    assert.deepEqual(item, event("a"));
    break;
  }
  assert.ok(isCancelled);
});
