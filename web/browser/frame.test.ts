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

test("on a phone the menu of views closes by a choice, a tap elsewhere and Escape", needsChromium, async () => {
  const opened = await fake.visit({ viewport: { width: 390, height: 700 }, hasTouch: true, isMobile: true });
  const { page } = opened;
  const menu = page.getByRole("menu", { name: "Views" });
  const open = async (): Promise<void> => {
    await page.getByTitle("Views").tap();
    await menu.waitFor();
  };
  const closed = (): Promise<void> => menu.waitFor({ state: "detached" });
  await open();
  await page.getByRole("menuitemradio", { name: "Models" }).tap();
  await closed();
  await page.waitForFunction(() => document.title === "Models · Understudy");
  await open();
  await page.touchscreen.tap(200, 600);
  await closed();
  await open();
  await page.getByRole("menuitemradio", { name: "Chat" }).tap();
  await closed();
  await open();
  await page.touchscreen.tap(200, 300);
  await closed();
  await open();
  await page.getByLabel("Message", { exact: true }).tap();
  await closed();
  await open();
  await page.keyboard.press("Escape");
  await closed();
  await open();
  await page.evaluate(() => (document.activeElement as HTMLElement).blur());
  await page.keyboard.press("Escape");
  await closed();
  // a tap before the next frame
  const isOpen = await page.evaluate(async () => {
    const button = document.querySelector<HTMLElement>("[title=Views]")!;
    const changed = new Promise((resolve) => new MutationObserver(resolve).observe(button.parentElement!, { childList: true }));
    button.click();
    await changed;
    document.body.dispatchEvent(new PointerEvent("pointerdown", { bubbles: true }));
    await new Promise((resolve) => setTimeout(resolve));
    return button.ariaExpanded;
  });
  assert.equal(isOpen, "false");
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
