import assert from "node:assert/strict";
import { test } from "node:test";

import { ApiError, ConnectionError } from "../src/api/errors.ts";
import type { ModelStatus, ServerStatus } from "../src/api/types.ts";
import { explain, inPageWords, problemOf, retryDelay } from "../src/chat/problems.ts";
import { Sentences } from "../src/chat/sentences.ts";
import { readComment, readStatus, RESTARTING, type Waiting } from "../src/chat/waiting.ts";

const COMMENTS: [comment: string, text: string | null, share?: number][] = [
  ["prompt 8192 of 21340", "Reading the prompt: 8,192 of 21,340 tokens", 8192 / 21340],
  ["engine restarting", RESTARTING.text],
  ["the engine restarts", RESTARTING.text],
  ["the engine restarts: packing 4 %", "The engine is restarting: packing 4 %"],
  ["loading demo, position 1", "Loading demo"],
  ["loading org/name:Q4_K_M, position 3", "Loading org/name:Q4_K_M. Place 3 in the queue"],
  ["loading demo: packing 42 %, 3.2 GB of 7.6 GB, 4 s left, position 1", "Loading demo: packing 42 %, 3.2 GB of 7.6 GB, 4 s left"],
  ["waiting for demo, position 2", "Waiting until demo can be loaded. Place 2 in the queue"],
  ["waiting, position 5", "Place 5 in the queue"],
  ["waiting", "Waiting for the model"],
  ["running", null],
  ["", null],
];

for (const [comment, text, share] of COMMENTS) {
  test(`the comment ${JSON.stringify(comment)}`, () => {
    const expected: Waiting | null = text === null ? null : { text, share: share ?? null };
    assert.deepEqual(readComment(comment), expected);
  });
}

function status(model: Partial<ModelStatus>, waiting = 0): ServerStatus {
  return {
    state: "running",
    version: "0",
    models: [{ id: "demo", aliases: [], default: true, state: "loaded", ...model }],
    queue: { waiting_for_model: 0, waiting_for_pass: waiting, in_engine: waiting + 1 },
    engine: null,
    peers: [],
  };
}

const step = { what: "packing", done: 3, total: 4, unit: "bytes" as const, per_second: 0, seconds_left: 1.2 };
const STATUSES: [status: ServerStatus, text: string, share: number | null][] = [
  [status({}), "Reading the prompt", null],
  [status({}, 4), "Waiting: 4 answers are in the queue", null],
  [status({ state: "unloading" }), "Unloading demo", null],
  [status({ state: "restarting" }), RESTARTING.text, null],
  [status({ state: "loading" }), "Loading demo", null],
  [status({ state: "loading", step }), "Loading demo: packing, 75 %, about 2 s left", 0.75],
  [status({ state: "loading", step: { ...step, total: 0 } }), "Loading demo: packing", null],
];

for (const [given, text, share] of STATUSES) {
  test(`the status: ${text}`, () => assert.deepEqual(readStatus(given), { text, share }));
}

const ERRORS: [error: unknown, title: RegExp, way: string | undefined, isTriedAgain: boolean][] = [
  [new ConnectionError("x"), /does not answer/, "again", true],
  [new ApiError("m", 401, "invalid_api_key"), /asks for a key/, "key", false],
  [new ApiError("m", 400, "context_length_exceeded"), /longer than the model can read/, "shorten", false],
  [new ApiError("m", 400, "context_length_exceeded", "messages"), /longer than the model can read/, "shorten", false],
  [new ApiError("m", 400, "context_length_exceeded", "max_tokens"), /“Longest answer” asks for more/, "parameters", false],
  [new ApiError("m", 503, "queue_full", null, 3), /too many requests/, "again", true],
  [new ApiError("m", 503, "model_loading"), /still being loaded/, "again", true],
  [new ApiError("m", 0, "engine_died"), /^m$/, "again", true],
  [new ApiError("m", 404, "model_not_found"), /does not have this model/, "model", false],
  [new ApiError("m", 500, "model_load_failed"), /cannot be loaded/, "model", false],
  [new ApiError("m", 400, "invalid_value", "temperature"), /^m$/, "parameters", false],
  [new ApiError("m", 500, null), /^m$/, "again", false],
  [new TypeError("x is undefined"), /page failed/, "again", false],
];

for (const [error, title, way, isTriedAgain] of ERRORS) {
  test(`${String(error)} has a way on`, () => {
    const explained = explain(problemOf(error));
    assert.match(explained.title, title);
    assert.equal(explained.ways[0], way);
    assert.equal(retryDelay(error, 0) !== null, isTriedAgain);
  });
}

const WORDS: [server: string, page: string][] = [
  ["Shorten the prompt or lower max_tokens.", "Shorten the prompt or lower “Longest answer”."],
  ["Invalid value for 'temperature': Input should be less than 2.", "Invalid value for “Temperature”: Input should be less than 2."],
  ["Invalid value for 'tools[0].function.name': too long.", "Invalid value for “Tools”: too long."],
  ["'tools.3.function' is wrong, and response_format too.", "“Tools” is wrong, and “Answer as JSON of this schema” too."],
  ["The temperature of my tools is top_k.", "The temperature of my tools is top_k."],
  ["raise memory.device for more", "raise memory.device for more"],
];

for (const [server, page] of WORDS) {
  test(`in the page's words: ${server}`, () => assert.equal(inPageWords(server), page));
}

test("the server's own delay is kept", () => {
  assert.equal(retryDelay(new ApiError("m", 503, "queue_full", null, 7), 0), 7);
});

test("whole sentences are spoken once", () => {
  const sentences = new Sentences();
  const text = "Hello there. This is **bold** text! And 3.5 is a number. Un";
  const spoken: string[] = [];
  for (let end = 1; end <= text.length; end++) {
    const next = sentences.next(text.slice(0, end));
    if (next) spoken.push(next);
  }
  assert.deepEqual(spoken, ["Hello there.", "This is bold text!", "And 3.5 is a number."]);
  assert.equal(sentences.rest(text), "Un");
  assert.equal(sentences.rest(text), "");
});

test("code is not read aloud", () => {
  const sentences = new Sentences();
  const text = "Look:\n```js\na. b();\nc. d();\n```\nDone. ";
  assert.equal(sentences.next(text.slice(0, 20)), "Look:");
  assert.equal(sentences.next(text), "A block of code. Done.");
});
