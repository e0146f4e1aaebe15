import assert from "node:assert/strict";
import { test } from "node:test";

import type { PlanAnswer, PlanPlaces } from "../src/views/plan/answer.ts";
import { barSentence, barsOf, fillText, isEnlarged, placed, usedBytes } from "../src/views/plan/bars.ts";
import { canTry, gainWords, withGain } from "../src/views/plan/gains.ts";
import { Latest, type Outcome } from "../src/views/plan/latest.ts";
import { commandOf, figureOf, figuresFor, inSliderWords, machineFrom, presentFigure, queryOf, slidersFor, stepAt } from "../src/views/plan/sliders.ts";
import { countText, figureText, secondsText, several, sizeText } from "../src/units.ts";

const GIB = 2 ** 30;
const NOTHING = {
  ring_slots: 0,
  num_pages: 0,
  max_sequences: 0,
  max_rows: 0,
  resident_bytes: 0,
  ring_bytes: 0,
  kv_bytes: 0,
  draft_bytes: 0,
  activation_bytes: 0,
  other_bytes: 0,
  state_bytes: 0,
  host_pages: 0,
  host_kv_bytes: 0,
  ram_unit_bytes: 0,
  disk_unit_bytes: 0,
  staging_bytes: 0,
  embedding_bytes: 0,
  making_bytes: 0,
};

function planned(isCuda: boolean, places: Partial<PlanPlaces> = {}): PlanAnswer {
  const memory = { device: 7 * GIB, ram: 20 * GIB, is_cuda: isCuda, device_runtime: 0, host_runtime: GIB, code: 0 };
  return {
    model_id: "m",
    model_type: "llama",
    device: isCuda ? "cuda" : "cpu",
    has_weights: true,
    machine: { device_memory: 8 * GIB, ram: 20 * GIB, link_gbps: 25, disk_gbps: 3, device_gbps: null },
    gains: [],
    assumptions: [],
    draft: "subspec",
    packed: false,
    coded: false,
    plan: { ...NOTHING, tiers: { resident: 1, ram: 6 }, memory, ...places },
    forecast: {
      tokens_per_second: 1,
      users: 8,
      users_asked: 8,
      tokens_per_second_all: 2,
      first_token_seconds: 1,
      tokens_per_pass: 1,
      pass_seconds: 1,
      link_seconds: 1,
      draft_seconds: 0,
    },
    file: "",
  };
}

test("a card has its own bar, and what the driver keeps is a part of it", () => {
  const bars = barsOf(planned(true, { resident_bytes: 2 * GIB, kv_bytes: GIB, ram_unit_bytes: 12 * GIB }));
  assert.deepEqual(
    bars.map((bar) => [bar.name, fillText(bar), bar.parts.map(({ name }) => name)]),
    [
      ["Device memory", "4 GiB of 8 GiB", ["resident weights", "KV cache", "driver"]],
      ["RAM", "13 GiB of 21 GiB", ["weights in RAM", "process"]],
    ],
  );
});

test("without a card everything is in one bar", () => {
  const bars = barsOf(planned(false, { resident_bytes: 2 * GIB, ram_unit_bytes: 12 * GIB, embedding_bytes: GIB }));
  assert.deepEqual(bars.map(({ name }) => name), ["RAM"]);
  assert.equal(usedBytes(bars[0]!), 15 * GIB);
  assert.match(bars[0]!.remark!, /^1 GiB of the embedding/);
});

test("weights on disk have a bar without a limit", () => {
  const bars = barsOf(planned(true, { tiers: { resident: 1, disk: 3 }, disk_unit_bytes: 9 * GIB }));
  const disk = bars.at(-1)!;
  assert.deepEqual([disk.name, fillText(disk), disk.parts[0]!.note], ["Disk", "9 GiB", "3 of 4 units"]);
  assert.deepEqual(placed(disk).map(({ start, width }) => [start, width]), [[0, 100]]);
});

test("parts are drawn side by side, and never beyond the bar", () => {
  const [device] = barsOf(planned(true, { resident_bytes: 2 * GIB, ring_bytes: GIB }));
  const drawn = placed(device!);
  assert.deepEqual(drawn.map(({ start, width }) => [start, width]), [[0, 25], [25, 12.5], [37.5, 12.5]]);
  const [over] = barsOf(planned(true, { resident_bytes: 30 * GIB, ring_bytes: GIB }));
  const last = placed(over!).at(-1)!;
  assert.ok(Math.abs(last.start + last.width - 100) < 1e-9);
  assert.deepEqual(placed({ name: "none", parts: [], capacity: null, remark: null }), []);
});

test("a bar of a small part of the memory shows that part, and every piece can be seen", () => {
  const MIB = 2 ** 20;
  const [ram] = barsOf(planned(false, { resident_bytes: 2 * MIB, kv_bytes: 51 * MIB, draft_bytes: MIB }));
  assert.ok(isEnlarged(ram!));
  assert.equal(fillText(ram!), "1.1 GiB of 21 GiB");
  const drawn = placed(ram!);
  const last = drawn.at(-1)!;
  assert.ok(Math.abs(last.start + last.width - 100) < 1e-9);
  for (const { part, width } of drawn) assert.ok(width > 0.7, part.name);
  const shares = drawn.map(({ part, width }) => width - (100 * part.nbytes) / usedBytes(ram!));
  assert.ok(Math.max(...shares.map(Math.abs)) < 1.5, "but for the narrowest, widths are shares");
  const [device] = barsOf(planned(true, { resident_bytes: 2 * GIB }));
  assert.ok(!isEnlarged(device!));
});

test("a bar is also a sentence", () => {
  const [device] = barsOf(planned(true, { resident_bytes: 2 * GIB, draft_bytes: GIB }));
  const want = "Device memory: 4 GiB of 8 GiB. resident weights 2 GiB, drafts 1 GiB, driver 1 GiB, free 4 GiB.";
  assert.equal(barSentence(device!), want);
});

const GAINS: [change: string, text: string, figure: unknown][] = [
  ["memory.device: 8 GiB -> 12 GiB", "More device memory: 12 GiB instead of 8 GiB", { name: "device_memory", value: 12 * GIB }],
  ["memory.ram: 4 GiB -> 1.02e+03 GiB", "More RAM: 1.02e+03 GiB instead of 4 GiB", { name: "ram", value: 1020 * GIB }],
  ["link: 25 GB/s -> 50 GB/s", "A faster link: 50 GB/s instead of 25 GB/s", { name: "link_gbps", value: 50 }],
  ["disk: 1.5 GB/s -> 3 GB/s", "A faster disk: 3 GB/s instead of 1.5 GB/s", { name: "disk_gbps", value: 3 }],
  ["draft.method: none -> ngram", "Another drafting method: ngram instead of none", null],
  ["context_length: 8192 -> 4096", "A shorter context: 4096 instead of 8192", null],
  ["target.quantize: nf4 (4-bit weights: other tokens)", "target.quantize: nf4 (4-bit weights: other tokens)", null],
];

for (const [change, text, figure] of GAINS) {
  test(`the change "${change}" in words`, () => {
    const words = gainWords({ change, factor: 1.5 });
    assert.deepEqual(words, { text, effect: "1.5 times the speed", figure });
    assert.equal(canTry(words, ["ram"]), text.startsWith("More RAM"));
    assert.equal(Object.keys(withGain({ users: 3 }, words)).length, figure === null ? 1 : 2);
  });
}

test("only the figures of the chosen machine are sent", () => {
  const asked = { device_memory: 16 * GIB, device_gbps: 900, ram: 24 * GIB };
  assert.deepEqual(figuresFor("own", asked), { ram: 24 * GIB });
  assert.deepEqual(figuresFor("card", asked), asked);
  assert.deepEqual(figuresFor("card", {}), { device_memory: 8 * GIB });
});

test("a machine without a card has a slider for the link only where one is simulated", () => {
  const names = (isCuda: boolean, tiers: Record<string, number>): string[] =>
    slidersFor("own", planned(isCuda, { tiers })).map(({ name }) => name);
  assert.deepEqual(names(false, { resident: 4 }), ["ram", "disk_gbps", "users"]);
  assert.ok(names(false, { ram: 4 }).includes("link_gbps"));
  assert.ok(names(true, { resident: 4 }).includes("link_gbps"));
});

test("a slider begins at the figure of the machine", () => {
  const plan = planned(true);
  assert.equal(presentFigure("ram", {}, plan), 20 * GIB);
  assert.equal(presentFigure("ram", { ram: 5 * GIB }, plan), 5 * GIB);
  assert.equal(presentFigure("device_gbps", {}, plan), null);
  assert.equal(presentFigure("users", {}, null), 8);
  assert.equal(figureOf("ram", 20 * GIB), "20 GiB");
  assert.equal(figureOf("link_gbps", 12.5), "12.5 GB/s");
  const steps = [1, 2, 4, 8];
  assert.deepEqual([0, 1, 2.7, 2.9, 100].map((value) => stepAt(steps, value)), [0, 0, 1, 2, 3]);
});

test("the command has the figures that were asked", () => {
  assert.equal(commandOf("org/m", {}), "understudy plan org/m");
  const figures = { device_memory: 8 * GIB, ram: 1.5 * GIB, link_gbps: 12.5, disk_gbps: 3, device_gbps: 900, users: 4 };
  const want =
    "understudy plan 'it'\\''s' --device-memory 8GiB --ram 1610612736 --link-gbps 12.5 --disk-gbps 3 --device-gbps 900 --users 4";
  assert.equal(commandOf("it's", figures), want);
});

test("refusals name the sliders", () => {
  const message = "m does not fit. 'device_memory' (of which the driver keeps some): 'ram' and 'other' stay.";
  assert.equal(inSliderWords(message), "m does not fit. “Device memory” (of which the driver keeps some): “RAM” and 'other' stay.");
});

test("an address carries the machine that is planned for", () => {
  const asked = { device_memory: 8 * GIB, ram: 1.5 * GIB, link_gbps: 12.5, users: 4 };
  const query = queryOf("card", asked);
  assert.equal(query.toString(), "machine=card&device_memory=8GiB&ram=1610612736&link_gbps=12.5&users=4");
  assert.deepEqual(machineFrom(query), { kind: "card", asked });
  assert.deepEqual(machineFrom(new URLSearchParams("ram=512MiB")), { kind: "own", asked: { ram: GIB / 2 } });
  assert.equal(queryOf("own", {}).size, 0);
});

const WRONG_FIGURES = ["0", "1", "-8GiB", "8 GiB", "８GiB", "8GB", "9e99", "NaN", "9999999TiB", "", "1.0000000001GiB", "<b>"];

for (const text of WRONG_FIGURES) {
  test(`an address with the figure ${JSON.stringify(text)}`, () => {
    const query = new URLSearchParams({ ram: text, other: "8GiB", machine: "toaster" });
    assert.deepEqual(machineFrom(query), { kind: "own", asked: {} });
  });
}

test("speeds and users of an address have bounds of their own", () => {
  const found = (text: string): unknown => machineFrom(new URLSearchParams(text)).asked;
  assert.deepEqual(found("link_gbps=0.0000001&disk_gbps=2GiB&users=1.5&device_gbps=900"), { device_gbps: 900 });
  assert.deepEqual(found("users=1024&link_gbps=0.001"), { link_gbps: 0.001, users: 1024 });
  assert.deepEqual(found("users=1025"), {});
});

test("figures as text", () => {
  assert.deepEqual([0, 0.516, 9.99, 12.54, 99.94, 540.3, 17408].map(figureText), ["0", "0.52", "9.99", "12.5", "99.9", "540", "17,408"]);
  assert.deepEqual([0, 1023, 1024, 1024 ** 2 - 1, 8.25 * GIB].map(sizeText), ["0 bytes", "1,023 bytes", "1 KiB", "1 MiB", "8.3 GiB"]);
  assert.deepEqual([0, 0.0083, 0.34, 1.54, 40, 180, 4800, 7200].map(secondsText), ["0 ms", "8.3 ms", "340 ms", "1.54 s", "40 s", "3 min", "1 h 20 min", "2 h"]);
  assert.deepEqual([several(1, "unit"), several(2000, "unit")], ["1 unit", "2,000 units"]);
  assert.equal(countText(1234.6), "1,235");
});

interface Sent {
  question: string;
  signal: AbortSignal;
  answer: (text: string) => void;
}

function latest(): { asker: Latest<string, string>; sent: Sent[]; outcomes: Outcome<string, string>[] } {
  const sent: Sent[] = [];
  const outcomes: Outcome<string, string>[] = [];
  const send = (question: string, signal: AbortSignal): Promise<string> =>
    new Promise((resolve) => sent.push({ question, signal, answer: resolve }));
  return { asker: new Latest(send, (outcome) => outcomes.push(outcome), 0), sent, outcomes };
}

const soon = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 2));

test("only the last of many questions is sent", async () => {
  const { asker, sent } = latest();
  for (const question of ["a", "b", "c"]) asker.ask(question);
  await soon();
  assert.deepEqual(sent.map(({ question }) => question), ["c"]);
});

test("a newer question cancels the one that is on its way, whose answer then counts no more", async () => {
  const { asker, sent, outcomes } = latest();
  asker.ask("old");
  await soon();
  asker.ask("new");
  assert.ok(sent[0]!.signal.aborted);
  await soon();
  sent[1]!.answer("2");
  sent[0]!.answer("1");
  await soon();
  assert.deepEqual(outcomes, [{ question: "new", answer: "2" }]);
});

test("an error is an outcome, and nothing comes after the end", async () => {
  const outcomes: Outcome<string, string>[] = [];
  const failing = new Latest<string, string>(() => Promise.reject(new Error("no")), (outcome) => outcomes.push(outcome), 0);
  failing.ask("a");
  await soon();
  assert.match(String(outcomes[0]!.error), /no/);
  const { asker, sent, outcomes: none } = latest();
  asker.ask("a");
  await soon();
  asker.cancel();
  sent[0]!.answer("late");
  await soon();
  assert.deepEqual(none, []);
});
