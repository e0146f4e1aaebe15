import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { documentOf } from "../src/export/document.ts";
import { AnswerTrace } from "../src/paint/trace.ts";
import { needsChromium, startBrowser } from "./harness.ts";
import { HOSTILE } from "./hostile.ts";

const AT_ONCE = 200; // texts in one file
const SOURCES = ["target", "subspec", "ngram", "<img src=x onerror=hit()>"];
const TAGS = new Set([
  ...["HTML", "HEAD", "META", "TITLE", "STYLE", "BODY", "MAIN", "H1", "H2", "P", "TIME", "SECTION", "SPAN", "UL", "LI"],
  ...["DIV", "DL", "DT", "DD", "svg", "g", "title", "rect"],
]);
const ATTRIBUTES =
  /^(?:lang|charset|http-equiv|content|name|class|datetime|role|aria-label|width|height|x|y)$/;

/** Return an answer whose every character is a token, so that the paint cuts the text everywhere. */
function traceOf(text: string): AnswerTrace {
  const trace = new AnswerTrace();
  trace.begin();
  const provenance = [...text].map((token, at) => ({ token, source: SOURCES[at % 4]!, depth: 0, pass: at }));
  trace.add({ delta: { content: text, reasoning_content: "" }, provenance, finish_reason: "stop" });
  return trace;
}

/** Return a text as a browser reads it from HTML, where other characters cannot be. */
function asRead(text: string): string {
  return text.replace(/[\0-\x08\x0b-\x1f\x7f]/g, "\ufffd").replace(/[\ud800-\udfff]/gu, "\ufffd");
}

test("nothing in a saved answer runs or loads anything", needsChromium, async () => {
  const browser = await startBrowser();
  const folder = mkdtempSync(join(tmpdir(), "understudy-export-"));
  try {
    const page = await browser.newPage();
    const problems: string[] = [];
    page.on("dialog", (dialog) => problems.push(dialog.message()));
    page.on("console", (message) => problems.push(message.text()));
    page.on("pageerror", (error) => problems.push(error.message));
    page.on("request", (request) => request.url().startsWith("file:") || problems.push(request.url()));
    for (let at = 0; at < HOSTILE.length; at += AT_ONCE) {
      const texts = HOSTILE.slice(at, at + AT_ONCE);
      const messages = texts.map((text) => ({ role: text, content: text }));
      const answer = texts.join("\n");
      const figures = texts.slice(0, 9).map((text): [string, string] => [text, text]);
      const path = join(folder, `${at}.html`);
      writeFileSync(path, documentOf({ messages, trace: traceOf(answer), model: texts[0]!, figures, date: new Date(0) }));
      await page.goto(`file://${path}`);
      const found = await page.evaluate(() => ({
        tags: [...document.querySelectorAll("*")].map((element) => element.tagName),
        attributes: [...document.querySelectorAll("*")].flatMap((element) => element.getAttributeNames()),
        texts: [...document.querySelectorAll(".text")].map((element) => element.textContent),
      }));
      assert.deepEqual(found.tags.filter((tag) => !TAGS.has(tag)), []);
      assert.deepEqual(found.attributes.filter((name) => !ATTRIBUTES.test(name)), []);
      assert.deepEqual(found.texts, [...texts.map(asRead), asRead(answer)]);
    }
    assert.deepEqual(problems, []);
  } finally {
    await browser.close();
    rmSync(folder, { recursive: true });
  }
});
