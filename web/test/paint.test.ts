import assert from "node:assert/strict";
import { test } from "node:test";

import { lookOf, sharesOf } from "../src/paint/sources.ts";
import { type Part, SpanMapper } from "../src/paint/spans.ts";
import { checkedPaint, type StoredPaint } from "../src/paint/stored.ts";
import { AnswerTrace } from "../src/paint/trace.ts";
import type { TracedChoice } from "../src/paint/types.ts";

/** Pieces of an answer: the texts of tokens, and the text that is shown of each part. */
type Piece = [tokens: string[], content: string, reasoning?: string];

/** Return the text of each token that is shown, as "token number: text". */
function shownTokens(pieces: Piece[], part: Part = "content"): string[] {
  const mapper = new SpanMapper();
  let text = "";
  for (const [tokens, content, reasoning = ""] of pieces) {
    mapper.add(tokens, { content, reasoning });
    text += part === "content" ? content : reasoning;
  }
  return mapper.spans[part].map(({ start, end, token }) => `${token}: ${text.slice(start, end)}`);
}

const CASES: [name: string, pieces: Piece[], spans: string[]][] = [
  ["one token a chunk", [[["Hello"], "Hello"], [[" there"], " there"]], ["0: Hello", "1:  there"]],
  ["several tokens a chunk", [[["He", "llo", " you"], "Hello you"]], ["0: He", "1: llo", "2:  you"]],
  ["a character of several tokens belongs to the one that completes it", [[["a", "", "", "🙂", "b"], "a🙂b"]], ["0: a", "3: 🙂", "4: b"]],
  ["a character that comes before its token", [[["a", ""], "aé"], [["é", "b"], "b"]], ["0: a", "2: é", "3: b"]],
  ["the end has no text", [[["Hi", ""], "Hi"]], ["0: Hi"]],
  ["text that is held back comes with its tokens", [[[], ""], [["a", "<st", "x"], "a<stx"]], ["0: a", "1: <st", "2: x"]],
  ["a stop string is cut from a token", [[["on", "e s"], "one"], [[], ""]], ["0: on", "1: e"]],
  ["marks are not shown", [[["<th", "ink>", "\n"], ""], [["Hm"], "", "Hm"], [["</think>", "\n\n", "So"], "So"]], ["6: So"]],
  ["marks in a token with text", [[["</think>So"], "So"]], ["0: So"]],
  ["text that marks contain too", [[["<think>", "think", "</think>", "think"], "think", ""]], ["3: think"]],
  ["markdown stays as it is written", [[["**", "bo", "ld**", "\n\n", "- a"], "**bold**\n\n- a"]], ["0: **", "1: bo", "2: ld**", "3: \n\n", "4: - a"]],
  ["equal tokens keep their order", [[["a", "a"], "aa"], [["a"], "a"]], ["0: a", "1: a", "2: a"]],
  ["text without a token", [[[], "begun "], [["and"], "and"]], ["0: and"]],
];

for (const [name, pieces, spans] of CASES) {
  test(`tokens and text: ${name}`, () => {
    assert.deepEqual(shownTokens(pieces), name === "text without a token" ? [] : spans);
  });
}

test("reasoning and content have spans of their own", () => {
  const pieces: Piece[] = [
    [["<think>", "\n", "Let", " me"], "", "Let me"],
    [[" see", "\n</think>", "\n\n"], "", " see"],
    [["It", " is"], "It is"],
  ];
  assert.deepEqual(shownTokens(pieces, "reasoning"), ["2: Let", "3:  me", "4:  see"]);
  assert.deepEqual(shownTokens(pieces), ["7: It", "8:  is"]);
});

test("text of no token does not hold up the rest for ever", () => {
  const unknown = "x".repeat(300);
  assert.deepEqual(shownTokens([[[], unknown], [["a"], "a"], [["b"], "b"]]), ["0: a", "1: b"]);
});

test("every cut of an answer into chunks gives the same spans", () => {
  const tokens = ["Gr", "ü", "ße", ", ", "", "", "🎭", "!\n", "# T", "itle"];
  const text = tokens.join("");
  const whole = shownTokens([[tokens, text]]);
  for (let first = 1; first < tokens.length; first++) {
    const [before, after] = [tokens.slice(0, first), tokens.slice(first)];
    assert.deepEqual(shownTokens([[before, before.join("")], [after, after.join("")]]), whole);
  }
});

function choice(tokens: [text: string, source: string, pass: number][], content: string, ids = true): TracedChoice {
  return {
    delta: { content },
    provenance: tokens.map(([token, source, pass]) => ({ token, source, depth: source === "target" ? 0 : 1, pass })),
    token_ids: ids ? tokens.map((_, index) => index) : [],
  };
}

test("an answer is painted in stretches, up to any pass", () => {
  const trace = new AnswerTrace();
  trace.begin();
  trace.add(choice([["The", "target", 1]], "The"));
  trace.add(choice([[" big", "subspec", 2], [" cat", "subspec", 2], [".", "target", 2]], " big cat."));
  assert.deepEqual(
    trace.stretches("content").map(({ text, look }) => [text, look]),
    [["The", "plain"], [" big cat", "draft-1"], [".", "plain"]],
  );
  assert.deepEqual(trace.stretches("content", 1).map(({ text }) => text), ["The"]);
  assert.equal(trace.looksOf("content").filter((look) => look === "draft-1").length, " big cat".length);
  assert.deepEqual(
    trace.shares().map(({ source, count }) => [source, count]),
    [["target", 2], ["subspec", 2]],
  );
});

test("what a broken stream had not confirmed counts once", () => {
  const trace = new AnswerTrace();
  trace.begin();
  trace.add(choice([["a", "target", 1]], "a"));
  trace.add(choice([["b", "ngram", 2]], "b", false)); // the ids of its pass do not arrive
  trace.begin();
  trace.add(choice([["b", "ngram", 1], ["c", "target", 1]], "bc"));
  assert.equal(trace.text("content"), "abc");
  assert.deepEqual(trace.tokens.map(({ token, pass }) => [token, pass]), [["a", 1], ["b", 1], ["c", 1]]);
});

test("an answer that goes on after a text is painted after it", () => {
  const trace = new AnswerTrace({ content: "Begun ", reasoning: "" });
  trace.begin();
  trace.add(choice([["here", "recycling", 1]], "here"));
  assert.deepEqual(
    trace.stretches("content").map(({ text, look }) => [text, look]),
    [["Begun ", "plain"], ["here", "draft-3"]],
  );
});

test("kept paint shows what the trace did, and the answer goes on from it", () => {
  const trace = new AnswerTrace();
  trace.begin();
  trace.add({ ...choice([["<think>", "target", 1], ["Hm", "ngram", 1]], ""), delta: { reasoning_content: "Hm" } });
  trace.add(choice([["The", "target", 2], [" big", "subspec", 2], [" cat", "subspec", 2], [".", "target", 2]], "The big cat."));
  const kept = JSON.parse(JSON.stringify(trace.stored())) as StoredPaint;
  assert.deepEqual(kept, { sources: ["target", "ngram", "subspec"], counts: [3, 1, 2], content: "3a8c1a", reasoning: "2b" });
  const again = new AnswerTrace({ content: "The big cat.", reasoning: "Hm" }, kept);
  for (const part of ["content", "reasoning"] as const) {
    assert.deepEqual(again.stretches(part), trace.stretches(part));
    assert.deepEqual([...again.looksOf(part)], [...trace.looksOf(part)]);
  }
  assert.deepEqual(again.shares(), trace.shares());
  assert.deepEqual(again.stored(), kept);
  again.begin();
  again.add(choice([[" So", "ngram", 1]], " So"));
  assert.deepEqual(again.stretches("content").map(({ text }) => text), ["The", " big cat", ".", " So"]);
  assert.equal(again.stored()!.content, "3a8c1a3b");
  const cut = new AnswerTrace({ content: "The b", reasoning: "" }, kept);
  assert.deepEqual(cut.stretches("content").map(({ text, look }) => [text, look]), [["The", "plain"], [" b", "draft-1"]]);
});

test("kept paint is bounded, and none is kept where no token is known", () => {
  assert.equal(new AnswerTrace({ content: "Begun", reasoning: "" }).stored(), null);
  const trace = new AnswerTrace();
  trace.begin();
  for (let index = 0; index < 60_000; index++) {
    trace.add(choice([["a", index % 2 ? "ngram" : "target", index]], "a"));
  }
  const kept = trace.stored()!;
  assert.ok(kept.content.length < 100_010);
  assert.deepEqual(kept.counts, [30_000, 30_000]);
  assert.ok(new AnswerTrace({ content: "a".repeat(60_000), reasoning: "" }, kept).stretches("content").length > 40_000);
  for (let index = 0; index < 40; index++) trace.add(choice([["b", `draft ${index}`, index]], "b"));
  assert.equal(trace.stored()!.sources.length, 26);
});

const GOOD_PAINT = { sources: ["target"], counts: [1], content: "3a2_", reasoning: "" };
const WRONG_PAINT: unknown[] = [
  null,
  [],
  "3a",
  { ...GOOD_PAINT, sources: [3] },
  { ...GOOD_PAINT, sources: ["x".repeat(61)] },
  { ...GOOD_PAINT, sources: ["a", "a"], counts: [1, 1] },
  { ...GOOD_PAINT, sources: Array.from({ length: 27 }, (_, index) => `s${index}`) },
  { ...GOOD_PAINT, counts: [] },
  { ...GOOD_PAINT, counts: [-1] },
  { ...GOOD_PAINT, counts: [1.5] },
  { ...GOOD_PAINT, content: "3a<b>" },
  { ...GOOD_PAINT, content: "9999999999a" },
  { ...GOOD_PAINT, content: 3 },
  { ...GOOD_PAINT, reasoning: undefined },
];

test("paint of a file that others may have made is checked", () => {
  assert.deepEqual(checkedPaint({ ...GOOD_PAINT, more: 1 }), GOOD_PAINT);
  for (const wrong of WRONG_PAINT) assert.equal(checkedPaint(wrong), null, JSON.stringify(wrong));
});

test("each source has a look, whatever it is called", () => {
  for (const source of ["subspec", "other", "constructor", "__proto__", ""]) assert.match(lookOf(source), /^draft-\d$/);
  assert.equal(lookOf("target"), "plain");
  assert.deepEqual(sharesOf(new Map()), []);
});
