import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { documentOf, escape } from "../src/export/document.ts";
import { STYLE, STYLE_CHECKSUM } from "../src/export/style.ts";
import { AnswerTrace } from "../src/paint/trace.ts";

test("the policy allows the style sheet of the file", () => {
  assert.equal(createHash("sha256").update(STYLE).digest("base64"), STYLE_CHECKSUM);
});

test("characters that mean something in HTML are escaped", () => {
  assert.equal(escape(`<a href="x" title='y'>&amp;\0\x1b</a>`), "&lt;a href=&quot;x&quot; title=&#39;y&#39;&gt;&amp;amp;\ufffd\ufffd&lt;/a&gt;");
  assert.equal(escape("a\tb\nc é 🎭"), "a\tb\nc é 🎭");
});

test("a file has the question, the painted answer, the counts and the passes", () => {
  const trace = new AnswerTrace();
  trace.begin();
  trace.add({
    delta: { content: "Hi <b>", reasoning_content: "Hm" },
    finish_reason: "stop",
    provenance: [
      { token: "Hm", source: "target", depth: 0, pass: 1 },
      { token: "Hi", source: "target", depth: 0, pass: 1 },
      { token: " <b>", source: "ngram", depth: 1, pass: 1 },
    ],
  });
  const text = documentOf({
    messages: [{ role: "user", content: "Say <i>hi</i>" }],
    trace,
    model: "a & b",
    figures: [["Seed", "5"]],
    date: new Date(0),
  });
  assert.match(text, /<title>Answer of a &amp; b<\/title>/);
  assert.match(text, /Say &lt;i&gt;hi&lt;\/i&gt;/);
  assert.match(text, /Hi<span class="look draft-2"> &lt;b&gt;<\/span>/);
  assert.match(text, /the model itself<\/span> 2 \(67 %\)/);
  assert.match(text, /1970-01-01 00:00 UTC/);
  assert.doesNotMatch(text, /<script|javascript:|https?:/);
});
