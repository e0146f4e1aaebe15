/** Looks at a page: what axe finds wrong with it, in both themes, and pictures for somebody to look at. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

import type { Page } from "playwright-core";

import { PICTURES } from "./harness.ts";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** The widths at which pages are looked at, in pixels; all of them by `make test-page-long`. */
export const WIDTHS: readonly number[] = process.env.UNDERSTUDY_TEST_LONG ? [320, 390, 1280] : [320, 1280];

/** The rules that the colours of a page decide. */
const OF_COLOURS = ["color-contrast", "link-in-text-block"];

interface AxeResult {
  violations: { id: string; help: string; nodes: { html: string; failureSummary?: string }[] }[];
}

/**
 * Return the violations on a page as it is now.
 *
 * @param rules what is checked; everything if undefined
 */
export async function violations(page: Page, rules?: readonly string[]): Promise<string[]> {
  if (!(await page.evaluate("'axe' in window"))) await page.evaluate(AXE);
  const options = { resultTypes: ["violations"], ...(rules && { runOnly: { type: "rule", values: rules } }) };
  const { violations: found } = (await page.evaluate(`axe.run(${JSON.stringify(options)})`)) as AxeResult;
  return found.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html} ${node.failureSummary ?? ""}`));
}

/** Look at a page in both themes: take a picture, find nothing that axe forbids, and nothing wider than the page. */
export async function look(page: Page, name: string): Promise<void> {
  // The themes differ in colours alone.
  for (const [colorScheme, rules] of [["light", undefined], ["dark", OF_COLOURS]] as const) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    await page.screenshot({ path: join(PICTURES, `${name}-${colorScheme}.png`) });
    assert.deepEqual(await violations(page, rules), [], `${name}, ${colorScheme}`);
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth > innerWidth), false, name);
  }
}
