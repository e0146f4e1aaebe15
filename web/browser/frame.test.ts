import assert from "node:assert/strict";
import { test } from "node:test";

import { leave, needsChromium, sharedFake, withServer } from "./harness.ts";

const fake = withServer(sharedFake);

test("the page opens without errors and without requests to other hosts", needsChromium, async () => {
  const opened = await fake.visit();
  assert.equal(await opened.page.title(), "Chat · Understudy");
  await leave(opened);
});

test("on a narrow page the list of chats opens over the chat, and Escape closes it", needsChromium, async () => {
  const opened = await fake.visit({ viewport: { width: 390, height: 700 } });
  const { page } = opened;
  await page.getByRole("button", { name: "List of chats" }).click();
  await page.getByRole("button", { name: "New chat" }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "New chat" }).waitFor({ state: "hidden" });
  await leave(opened);
});

test("everything is reached by keyboard", needsChromium, async () => {
  const opened = await fake.visit();
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
  const opened = await fake.visit({ colorScheme: "light" });
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
