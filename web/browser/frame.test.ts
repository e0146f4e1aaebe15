import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import type { Browser } from "playwright-core";

import { leave, needsChromium, serveFake, type Server, startBrowser, visit } from "./harness.ts";

let server: Server;
let browser: Browser;

if (!("skip" in needsChromium)) {
  before(async () => {
    [server, browser] = await Promise.all([serveFake(), startBrowser()]);
  });
  after(async () => {
    await browser.close();
    await server.stop();
  });
}

test("the page opens without errors and without requests to other hosts", needsChromium, async () => {
  const opened = await visit(browser, server.url);
  assert.equal(await opened.page.title(), "Chat · Understudy");
  await leave(opened);
});

test("the chosen theme stays after a reload", needsChromium, async () => {
  const opened = await visit(browser, server.url, { colorScheme: "light" });
  const { page } = opened;
  const paper = (): Promise<string> => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
  const light = await paper();
  await page.getByRole("button", { name: "Theme" }).press("Enter");
  await page.keyboard.press("End");
  await page.keyboard.press("Enter");
  const dark = await paper();
  assert.notEqual(dark, light);
  await page.reload();
  assert.equal(await paper(), dark);
  await leave(opened);
});
