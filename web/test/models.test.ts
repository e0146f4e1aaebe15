import assert from "node:assert/strict";
import { test } from "node:test";

import type { EngineStatus, LoadStep, ModelStatus, ServerStatus } from "../src/api/types.ts";
import { changes, engineFigures, idleSentence, peerFigures, peerState, planParts, queueText, stateWords, stepShare, stepText, summary, tiersText } from "../src/views/models/words.ts";

const GIB = 2 ** 30;

function step(more: Partial<LoadStep>): LoadStep {
  return { what: "packing", done: 0, total: 0, unit: "bytes", per_second: 0, seconds_left: null, ...more };
}

const STEPS: [LoadStep, text: string, share: number | null][] = [
  [step({}), "packing", null],
  [step({ done: 3 * GIB, total: 8 * GIB }), "packing: 3 GiB of 8 GiB", 0.375],
  [step({ done: 3 * GIB }), "packing: 3 GiB", null],
  [
    step({ done: 3 * GIB, total: 8 * GIB, per_second: 1.2 * GIB, seconds_left: 3.2 }),
    "packing: 3 GiB of 8 GiB, 1.2 GiB/s, about 4 s left",
    0.375,
  ],
  [step({ unit: "steps", done: 2, total: 8, per_second: 0.3 }), "packing: 2 of 8 steps", 0.25],
  [step({ unit: "tokens", done: 20, total: 10, per_second: 50 }), "packing: 20 of 10 tokens, 50 tokens/s", 1],
];

for (const [given, text, share] of STEPS) {
  test(`a step as text: ${text}`, () => {
    assert.equal(stepText(given), text);
    assert.equal(stepShare(given), share);
  });
}

test("a model whose load has failed says so until it is loaded again", () => {
  const model: ModelStatus = { id: "m", aliases: [], default: false, state: "unloaded" };
  assert.equal(stateWords(model).text, "Not loaded");
  assert.deepEqual(stateWords({ ...model, error: "no" }), { text: "Loading failed", tone: "bad" });
  assert.equal(stateWords({ ...model, error: "no", state: "loading" }).tone, "busy");
});

test("tiers and plans as text", () => {
  assert.equal(tiersText({ ram: 6, resident: 1, disk: 0 }), "1 on the device, 6 in RAM");
  const plan = "1 of 7 units resident (2 MiB), 6 streamed from disk, ram, ring of 3 slots (4 MiB)";
  assert.deepEqual(planParts(plan), ["1 of 7 units resident (2 MiB)", "6 streamed from disk, ram", "ring of 3 slots (4 MiB)"]);
});

function status(models: Partial<ModelStatus>[]): ServerStatus {
  const queue = { waiting_for_model: 0, waiting_for_pass: 0, in_engine: 0 };
  const known = models.map((model, at) => ({ id: `m${at}`, aliases: [], default: false, state: "unloaded", ...model }));
  return { state: "running", version: "0", models: known as ModelStatus[], queue, engine: null, peers: [] };
}

test("changes are whole sentences", () => {
  const before = status([{}, { state: "loading" }, { state: "loading" }, { state: "loaded" }, { state: "loaded" }]);
  const now = status([{}, { state: "loaded" }, { error: "No weights." }, {}, { state: "restarting" }]);
  assert.deepEqual(changes(before, now), [
    "m1 is in memory.",
    "m2 could not be loaded. No weights.",
    "m3 is not in memory any more.",
    "The engine of m4 restarts.",
  ]);
  assert.deepEqual(changes(now, now), []);
});

test("the server is summed up", () => {
  assert.equal(summary(status([{}])), "No model is ready. No requests are running.");
  const busy = { ...status([{ state: "loaded" }]), queue: { waiting_for_model: 1, waiting_for_pass: 0, in_engine: 2 } };
  assert.equal(summary(busy), "m0 is in memory. Requests: 2 running, 1 waiting.");
});

test("the figures of the engine have shares of their limits", () => {
  const passes = { seconds: 1, passes: 2, tokens: 9, link_bytes: 0, stall_seconds: { copy: 0, draft: 0, host: 0 } };
  const engine: EngineStatus = {
    model: "m",
    recent: { ...passes, tokens_per_second: 12.54, tokens_per_pass: 4.5, link_gbps: 20 },
    total: passes,
    link_gbps: 20,
    link_limit_gbps: 25,
    link_bits_per_weight: 16,
    kv_pages: 100,
    kv_pages_used: 25,
  };
  const queue = { waiting_for_model: 1, waiting_for_pass: 2, in_engine: 5 };
  assert.deepEqual(engineFigures(engine, queue), [
    { name: "Speed", text: "12.5 tokens/s" },
    { name: "Tokens a pass", text: "4.5" },
    { name: "Requests", text: "3 running, 3 waiting" },
    { name: "Link", text: "20 of 25 GB/s", share: 0.8 },
    { name: "KV cache", text: "25 of 100 pages", share: 0.25 },
  ]);
  const without = engineFigures({ ...engine, link_limit_gbps: 0, kv_pages: 0 }, { ...queue, in_engine: 0 });
  assert.deepEqual(without.map(({ name }) => name), ["Speed", "Tokens a pass", "Requests"]);
  assert.equal(queueText({ waiting_for_model: 0, waiting_for_pass: 0, in_engine: 0 }), "none");
});

test("a model says what becomes of it without requests", () => {
  const model: ModelStatus = { id: "a", aliases: [], default: true, state: "loaded" };
  assert.equal(idleSentence(model), "");
  assert.match(idleSentence({ ...model, unloads_in: 240.2 }), /^Its memory is given back in 4 min if no request comes/);
  assert.match(idleSentence({ ...model, unloads_in: 0 }), / in 1 s /);
  const asleep = idleSentence({ ...model, state: "unloaded", idle_unloaded_ago: 5400 });
  assert.match(asleep, /^Sleeping: .* 1 h 30 min ago.* The next one loads it/);
});

test("the figures of another server", () => {
  const peer = {
    url: "http://peer:8000",
    state: "ready" as const,
    note: "",
    model: "demo",
    requests: 3,
    running: 2,
    tokens_per_second: 12.34,
  };
  const texts = peerFigures(peer).map(({ name, text }) => `${name}: ${text}`);
  assert.deepEqual(texts, ["Model: demo", "Speed: 12.3 tokens/s", "Requests: 3, 2 from here"]);
  assert.equal(peerFigures({ ...peer, model: null, running: 0 })[2]!.text, "3");
  assert.equal(peerState(peer).tone, "good");
  assert.equal(peerState({ ...peer, state: "away" }).text, "Away");
});
