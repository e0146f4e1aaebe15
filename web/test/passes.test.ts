import assert from "node:assert/strict";
import { test } from "node:test";

import { AnswerTrace } from "../src/paint/trace.ts";
import type { AnswerPass, DraftNode } from "../src/paint/types.ts";
import { ownToken, passViews, sentenceOf, totalsOf, visible } from "../src/passes/figures.ts";
import { layOut, neighbour } from "../src/passes/layout.ts";
import { fitted, measure, NODE_HEIGHT, STEP } from "../src/passes/measure.ts";
import { questionOf, withQuestion } from "../src/views/race/question.ts";
import { seedProblem } from "../src/views/race/seed.ts";
import { savingOf, soFar, verdictOf } from "../src/views/race/verdict.ts";

function node(parent: number, token: string, score: number, accepted = false): DraftNode {
  return { parent, id: 1, token, source: "subspec", score, accepted };
}

const OWN = { token: "!", source: "target", depth: 0, pass: 2 };

const NODES = [
  node(-1, "bad", -0.1),
  node(-1, "good", -0.5, true),
  node(1, "better", -0.9),
  node(1, "best", -1.5, true),
  node(0, "worse", -0.4),
  node(3, "late", -2),
];

test("the accepted path is straight, and the model's own token ends it", () => {
  const { nodes, levels, lines } = layOut(NODES, "start", OWN);
  const path = nodes.filter(({ kind }) => kind !== "rejected");
  assert.deepEqual(path.map(({ token, level, line }) => [token, level, line]), [
    ["start", 0, 0],
    ["good", 1, 0],
    ["best", 2, 0],
    ["!", 3, 0],
  ]);
  assert.deepEqual([levels, lines, nodes.length], [4, 3, NODES.length + 2]);
});

test("no two nodes are at one place, and children are after their parents", () => {
  const { nodes } = layOut(NODES, "start", null);
  assert.equal(new Set(nodes.map(({ level, line }) => `${level} ${line}`)).size, nodes.length);
  for (const { parent, level, line } of nodes.slice(1)) {
    assert.equal(nodes[parent]!.level + 1, level);
    assert.ok(nodes[parent]!.line <= line);
  }
});

test("a line is as wide as its widest token, and texts are cut to it", () => {
  const layout = layOut(NODES, "start", OWN);
  const { lefts, boxes, width, height } = measure(layout, ({ kind }) => (kind === "accepted" ? "60 %" : ""));
  assert.equal(lefts.length, layout.lines);
  assert.equal(height, 3 * STEP + NODE_HEIGHT + 4);
  for (let line = 1; line < layout.lines; line++) {
    assert.ok(lefts[line]! > lefts[line - 1]! + boxes[line - 1]!);
  }
  assert.ok(lefts[1]! - boxes[0]! > lefts[2]! - lefts[1]! - boxes[1]!, "the notes have their place");
  assert.ok(width >= lefts.at(-1)! + boxes.at(-1)!);
  assert.equal(fitted("internationalization"), "internation…");
  assert.equal(fitted("不多于十二个字符的半数"), "不多于十二…");
  assert.equal(fitted("short"), "short");
});

test("arrow keys reach every node", () => {
  const layout = layOut(NODES, "start", OWN);
  const reached = new Set([0]);
  for (const at of reached) {
    for (const key of ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home"]) {
      reached.add(neighbour(layout, at, key)!);
    }
  }
  assert.equal(reached.size, layout.nodes.length);
  assert.equal(neighbour(layout, 0, "x"), null);
});

function pass(number: number, tokens: number, nodes: DraftNode[] = [], own_rows = 1 + nodes.length): AnswerPass {
  const figures = { pass_ms: 200, draft_ms: 50, copy_stall_ms: 150, link_bytes: 8_300_000, rows: 9, sequences: 1 };
  return { pass: number, tokens, own_rows, ...figures, nodes, nodes_left_out: 0, passes_left_out: 0 };
}

test("each pass has its tokens, and the token before them", () => {
  const trace = new AnswerTrace();
  trace.begin();
  trace.add({
    delta: { content: "good best!" },
    finish_reason: "stop",
    provenance: [
      { token: "good", source: "subspec", depth: 1, pass: 2 },
      { token: " best", source: "subspec", depth: 2, pass: 2 },
      { token: "!", source: "target", depth: 0, pass: 2 },
    ],
    passes: [pass(1, 0, [], 64), pass(2, 3, NODES), pass(3, 0, [], 1)],
  });
  const [first, second, third] = passViews(trace);
  assert.deepEqual([first!.tokens.length, second!.tokens.length, third!.before], [0, 3, "!"]);
  assert.deepEqual(totalsOf(passViews(trace)), { tokens: 3, passes: 1, each: 3 });
  assert.equal(ownToken(first!), null);
  assert.equal(ownToken(second!)?.token, "!");
  assert.equal(sentenceOf(first!), "Pass 1 computed 64 tokens of the prompt: 250 ms, 8.3 MB over the link.");
  assert.equal(
    sentenceOf(second!),
    "Pass 2 brought 3 tokens: 2 of 6 drafted tokens accepted, 250 ms, 8.3 MB over the link.",
  );
});

test("blanks of a token can be seen", () => {
  assert.deepEqual([" a", "\n", "", "b"].map(visible), ["␣a", "⏎", "∅", "b"]);
});

test("answers that are still written are compared as far as both are", () => {
  assert.equal(soFar([1, 2, 3], [1, 2]), "identical so far: 2 of 2 tokens");
  assert.equal(soFar([1, 2, 3], [1, 4, 3]), "identical so far: 1 of 3 tokens");
  assert.equal(soFar([], []), "identical so far: 0 of 0 tokens");
});

test("a verdict counts the tokens up to the first difference", () => {
  assert.deepEqual(verdictOf([1, 2, 3], [1, 2, 3]), { isSame: true, text: "identical: 3 of 3 tokens" });
  assert.deepEqual(verdictOf([], []), { isSame: true, text: "identical: 0 of 0 tokens" });
  for (const other of [[1, 2], [1, 2, 4], [1, 2, 4, 5]]) {
    const { isSame, text } = verdictOf([1, 2, 3], other);
    assert.equal(isSame, false);
    assert.match(text, new RegExp(`^identical: 2 of ${Math.max(3, other.length)} tokens;`));
  }
});

test("figures of a race have the right number of their nouns", () => {
  assert.equal(verdictOf([1], [1]).text, "identical: 1 of 1 token");
  assert.equal(savingOf(8, 90), "With drafts it took 8 passes instead of 90: 11.3 times fewer.");
  assert.equal(savingOf(1, 2), "With drafts it took 1 pass instead of 2: 2 times fewer.");
  assert.deepEqual([savingOf(2, 2), savingOf(0, 0), savingOf(3, 2)], ["", "", ""]);
});

test("a seed is refused for what is wrong with it", () => {
  for (const good of ["0", " 7 ", "999999999999999", "007"]) assert.equal(seedProblem(good), null);
  assert.match(seedProblem("-4")!, /not negative/);
  assert.match(seedProblem(" ")!, /need a seed/);
  assert.match(seedProblem("1234567890123456")!, /at most 15 digits/);
  for (const odd of ["1.5", "seven", "1e3", "--4"]) assert.match(seedProblem(odd)!, /whole number, such as 7/);
});

test("a changed question replaces the last message, and an unchanged one leaves it", () => {
  const before = { role: "system", content: "s" };
  const result = { role: "tool", content: "sunny", tool_call_id: "c" };
  assert.equal(questionOf([before, result]), "sunny");
  assert.deepEqual(withQuestion([before, result], "sunny"), [before, result]);
  assert.deepEqual(withQuestion([before, result], "rain?"), [before, { role: "user", content: "rain?" }]);
  assert.equal(questionOf([{ role: "assistant", content: null }]), null);
  assert.deepEqual(withQuestion([], "hi"), [{ role: "user", content: "hi" }]);
});
