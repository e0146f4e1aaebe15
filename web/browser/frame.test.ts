import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import type { Browser } from "playwright-core";

import { leave, needsChromium, sharedFake, type Shared, startBrowser, visit } from "./harness.ts";

let server: Shared;
let browser: Browser;

if (!("skip" in needsChromium)) {
  before(async () => {
    [server, browser] = await Promise.all([sharedFake(), startBrowser()]);
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

test("on a narrow page the list of chats opens over the chat, and Escape closes it", needsChromium, async () => {
  const opened = await visit(browser, server.url, { viewport: { width: 390, height: 700 } });
  const { page } = opened;
  await page.getByRole("button", { name: "List of chats" }).click();
  await page.getByRole("button", { name: "New chat" }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "New chat" }).waitFor({ state: "hidden" });
  await leave(opened);
});

test("everything is reached by keyboard", needsChromium, async () => {
  const opened = await visit(browser, server.url);
  const { page } = opened;
  await page.getByLabel("Message", { exact: true }).fill("hi");
  await page.keyboard.press("Enter");
  await page.locator(".figures").waitFor();
  const reached = new Set<string>();
  for (let presses = 0; presses < 40; presses++) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement?.getAttribute("aria-label") ?? document.activeElement?.textContent ?? ""));
  }
  const wanted = ["Understudy", "Model: main", "Parameters", "Theme", "New chat", "Search chats", "Actions of hi"];
  wanted.push("Edit the message", "Copy the message", "Answer again", "Edit the answer", "Message", "Add text files");
  assert.deepEqual(wanted.filter((name) => !reached.has(name)), []);
  await leave(opened);
});

test("the chosen theme stays after a reload", needsChromium, async () => {
  const opened = await visit(browser, server.url, { colorScheme: "light" });
  const { page } = opened;
  const paper = (): Promise<string> => page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
  const light = await paper();
  await page.getByRole("button", { name: "Theme" }).press("Enter");
  await page.locator(".menu-item:focus").waitFor();
  await page.keyboard.press("End");
  await page.keyboard.press("Enter");
  const dark = await paper();
  assert.notEqual(dark, light);
  await page.reload();
  assert.equal(await paper(), dark);
  await leave(opened);
});
