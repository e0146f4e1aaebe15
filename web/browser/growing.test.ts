/** What a pass costs the page as an answer grows, in what is drawn: `npm run frames` measures the time. */
import assert from "node:assert/strict";
import { test } from "node:test";

import { growing, KINDS } from "./growing.ts";
import { leave, needsChromium, sharedFake, withServer } from "./harness.ts";
import { scriptAnswers } from "./scripted.ts";

const fake = withServer(sharedFake);

interface Work {
  /** Characters of text that became part of the page anew. */
  characters: number;
  /** Ranges that were made to tint text. */
  ranges: number;
  /** Ranges that tint text. */
  tinted: number;
}

declare global {
  interface Window {
    works: Record<string, Work>;
  }
}

/** Count the work of the page, and keep the count at each mark. */
function countWork(): void {
  const work: Work = { characters: 0, ranges: 0, tinted: 0 };
  window.works = {};
  window.StaticRange = class extends StaticRange {
    constructor(places: StaticRangeInit) {
      super(places);
      work.ranges++;
    }
  };
  const observer = new MutationObserver((records) => {
    for (const { addedNodes } of records) {
      for (const node of addedNodes) if (node.parentElement?.closest(".markdown")) work.characters += node.textContent!.length;
    }
  });
  observer.observe(document, { childList: true, subtree: true });
  const mark = performance.mark.bind(performance);
  performance.mark = (name) => {
    const tinted = [...CSS.highlights.values()].reduce((sum, highlight) => sum + highlight.size, 0);
    window.works[name] = { ...work, tinted };
    return mark(name);
  };
}

const [SHORT, LONG] = [900, 3000]; // tokens
const PASSES = 6;
const PAUSE_MS = 40; // more than a frame

// Not a table: its cost still grows, since all its rows are one element.
for (const name of ["short blocks", "paragraph", "code", "list", "item", "quote"]) {
  test(`a pass costs no more in a long answer: ${name}`, needsChromium, async () => {
    const steps = growing(KINDS[name]!, [SHORT, LONG], PASSES, PAUSE_MS);
    const opened = await fake.visit({
      prepare: async (context) => {
        await scriptAnswers(context, [{ steps }]);
        await context.addInitScript(countWork);
      },
    });
    const { page } = opened;
    await page.getByLabel("Message", { exact: true }).fill("hi");
    await page.keyboard.press("Enter");
    await page.locator(".figures").waitFor();
    const works = await page.evaluate(() => window.works);
    const [early, late] = [SHORT, LONG].map((length) => {
      const [from, to] = [works[`from ${length}`]!, works[`to ${length}`]!];
      return { characters: to.characters - from.characters, ranges: to.ranges - from.ranges, tinted: to.tinted };
    }) as [Work, Work];
    console.log(`${name}: ${JSON.stringify(early)}, later ${JSON.stringify(late)}`);
    assert.ok(early.characters + early.ranges > 0 && early.tinted > 0, "something is drawn");
    // The answer is 3.3 times as long. What is drawn of a pass depends on where lines break, too.
    assert.ok(late.characters <= 2 * early.characters + 20_000, "more is parsed in a pass");
    assert.ok(late.ranges <= 2 * early.ranges + 500, "more is tinted in a pass");
    assert.ok(late.tinted <= 2 * early.tinted + 100, "text that is far away is tinted");
    const text = await page.locator(".markdown").textContent();
    assert.equal(text!.match(/word/g)!.length, LONG + PASSES * 60);
    await leave(opened);
  });
}
