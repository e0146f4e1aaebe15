import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import type { Browser } from "playwright-core";

import { leave, needsChromium, serveFake, type Server, startBrowser, visit } from "./harness.ts";

let server: Server;
let browser: Browser;

if (!("skip" in needsChromium)) {
  before(async () => {
    [server, browser] = await Promise.all([serveFake("--key", "right"), startBrowser()]);
  });
  after(async () => {
    await browser.close();
    await server.stop();
  });
}

test("the page asks for the key, refuses a wrong one, and keeps the right one for the tab", needsChromium, async () => {
  const opened = await visit(browser, server.url);
  const { page } = opened;
  await page.getByRole("heading", { name: "This server asks for a key" }).waitFor();
  await page.getByLabel("API key").fill("wrong");
  await page.keyboard.press("Enter");
  await page.getByText("The server does not know this key.").waitFor();
  await page.getByLabel("API key").fill("ключ");
  await page.getByText("A key has only English letters").waitFor();
  await page.keyboard.press("Enter"); // gives nothing: no header could carry it
  await page.getByLabel("API key").fill("right");
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "Model: main" }).waitFor();
  await page.reload();
  await page.getByRole("button", { name: "Model: main" }).waitFor();
  assert.equal(await page.getByRole("dialog").count(), 0);
  await page.getByLabel("Message", { exact: true }).fill("hi");
  await page.keyboard.press("Enter");
  await page.locator(".markdown").getByText("Hello there.").waitFor();
  await leave(opened);
});

test("whoever gives no key can give it later", needsChromium, async () => {
  const opened = await visit(browser, server.url);
  const { page } = opened;
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.getByRole("banner").getByRole("button", { name: "Enter a key" }).waitFor();
  await page.getByLabel("Message", { exact: true }).fill("hi");
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.locator(".problem").getByText("The server asks for a key.").waitFor();
  await page.locator(".problem").getByRole("button", { name: "Enter a key" }).click();
  await page.getByLabel("API key").fill("right");
  await page.keyboard.press("Enter");
  await page.locator(".markdown").getByText("Hello there.").waitFor();
  await leave(opened);
});
