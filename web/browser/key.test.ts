import assert from "node:assert/strict";
import { test } from "node:test";

import { leave, needsChromium, serveFake, withServer } from "./harness.ts";

const fake = withServer(() => serveFake("--key", "right"));

test("the page asks for the key, refuses a wrong one, and keeps the right one for the tab", needsChromium, async () => {
  const opened = await fake.visit();
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
  const opened = await fake.visit();
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
