import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import type { Locator, Page } from "playwright-core";

import { leave, needsChromium, serveSlowDemo, sharedDemo, withServer } from "./harness.ts";

const LONG = 120_000; // milliseconds for what the engine does on a busy machine
const STOP_MS = 2000;

const demo = withServer(sharedDemo);
const slow = withServer(serveSlowDemo); // whose answers do not end before something happens to them

function answers(page: Page): Locator {
  return page.locator(".message.answer");
}

async function ask(page: Page, question: string): Promise<void> {
  await page.getByLabel("Message", { exact: true }).fill(question);
  await page.getByLabel("Message", { exact: true }).press("Enter");
}

/** Wait for the end of the answer that is shown last, and return its text. */
async function answered(page: Page): Promise<string> {
  await page.locator(".message.answer[aria-busy=false]").last().waitFor({ timeout: LONG });
  await page.locator(".messages > :last-child .figures").waitFor({ timeout: LONG });
  return page.locator(".messages > :last-child .markdown").innerText();
}

async function setMaxTokens(page: Page, count: number): Promise<void> {
  await page.getByRole("button", { name: "Parameters", exact: true }).click();
  await page.getByLabel("Longest answer, in tokens").fill(String(count));
  await page.getByRole("button", { name: "Close parameters" }).click();
}

/** Return how many requests the engine has. */
async function inEngine(url: string): Promise<number> {
  const status = (await (await fetch(`${url}v1/status`)).json()) as { queue: { in_engine: number } };
  return status.queue.in_engine;
}

async function choose(page: Page, menu: string, item: string): Promise<void> {
  await page.getByRole("button", { name: menu }).last().click();
  await page.getByRole("menuitem", { name: item }).click();
}

test("a message is answered, and the chat is there after a reload", needsChromium, async () => {
  const opened = await demo.visit();
  const { page } = opened;
  await ask(page, "What is Understudy?");
  const text = await answered(page);
  assert.match(text, /Understudy/);
  await page.reload();
  assert.equal(await page.locator(".markdown").innerText(), text);
  await page.getByRole("link", { name: "What is Understudy?" }).waitFor();
  await leave(opened);
});

test("the same seed gives the same text, and a new one a new branch", needsChromium, async () => {
  const opened = await demo.visit();
  const { page } = opened;
  await setMaxTokens(page, 24);
  await ask(page, "Tell me a story.");
  const first = await answered(page);
  await choose(page, "Answer again", "With the same seed");
  await page.getByText("2/2").waitFor({ timeout: LONG });
  assert.equal(await answered(page), first);
  await choose(page, "Answer again", "With a new seed");
  await page.getByText("3/3").waitFor({ timeout: LONG });
  assert.notEqual(await answered(page), first);
  await page.getByRole("button", { name: "Previous version" }).click();
  await page.getByText("2/3").waitFor();
  assert.equal(await answered(page), first);
  await leave(opened);
});

test("an answer that is stopped leaves the engine idle, and goes on as it would have", needsChromium, async () => {
  const opened = await slow.visit();
  const { page } = opened;
  await setMaxTokens(page, 24);
  await ask(page, "Tell me a long story.");
  await page.locator(".markdown").filter({ hasText: /\w+ \w+ \w+/ }).waitFor({ timeout: LONG });
  await page.keyboard.press("Escape");
  const stopped = Date.now();
  while ((await inEngine(slow.server.url)) > 0) {
    assert.ok(Date.now() - stopped < STOP_MS, "the engine still works for a stopped answer");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await page.getByText("Stopped.", { exact: true }).waitFor();
  await page.getByRole("button", { name: "Continue" }).click();
  const whole = await answered(page);
  await choose(page, "Answer again", "With the same seed");
  await page.getByText("2/2").waitFor({ timeout: LONG });
  assert.equal(await answered(page), whole);
  await leave(opened);
});

test("an edited message begins a branch, and the switch shows both", needsChromium, async () => {
  const opened = await demo.visit();
  const { page } = opened;
  await setMaxTokens(page, 12);
  await ask(page, "What is Understudy?");
  await answered(page);
  await page.getByRole("button", { name: "Edit the message" }).click();
  await page.getByLabel("Edit your message").fill("Tell me a story.");
  await page.getByLabel("Edit your message").press("Control+Enter");
  await page.getByText("2/2").waitFor();
  await answered(page);
  await page.getByRole("button", { name: "Previous version" }).click();
  await page.getByText("1/2").waitFor();
  assert.equal(await page.locator(".typed").innerText(), "What is Understudy?");
  assert.equal(await answers(page).count(), 1);
  await leave(opened);
});

test("an edited answer is gone on with", needsChromium, async () => {
  const opened = await demo.visit();
  const { page } = opened;
  await setMaxTokens(page, 10);
  await ask(page, "What is Understudy?");
  await answered(page);
  await page.getByRole("button", { name: "Edit the answer" }).click();
  await page.getByLabel("Edit the answer").fill("Understudy is a server");
  await page.getByRole("button", { name: "Keep" }).click();
  await page.getByText("2/2").waitFor();
  await page.getByRole("button", { name: "Continue" }).click();
  const text = await answered(page);
  assert.match(text, /^Understudy is a server./);
  await choose(page, "Answer again", "With the same seed");
  await page.getByText("3/3").waitFor({ timeout: LONG });
  assert.equal(await answered(page), text);
  await leave(opened);
});

test("a chat is renamed, found, deleted and put back, exported and imported", needsChromium, async () => {
  const opened = await demo.visit();
  const { page } = opened;
  await setMaxTokens(page, 8);
  await ask(page, "What is Understudy?");
  await answered(page);
  await choose(page, "Actions of What is Understudy?", "Rename");
  await page.getByLabel("Title").fill("About it");
  await page.keyboard.press("Enter");
  await page.getByRole("link", { name: "About it" }).waitFor();
  await page.getByLabel("Search chats").fill("understudy?");
  await page.getByRole("link", { name: "About it" }).waitFor();
  await page.getByLabel("Search chats").fill("no such words");
  await page.getByText("No chat has this text.").waitFor();
  await page.getByLabel("Search chats").fill("");
  await choose(page, "Actions of About it", "Delete");
  await page.getByRole("link", { name: "About it" }).waitFor({ state: "detached" });
  await page.getByRole("button", { name: "Undo" }).click();
  await page.getByRole("link", { name: "About it" }).waitFor();
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    choose(page, "Import and export", "Export all chats"),
  ]);
  await page.getByLabel("File with chats").setInputFiles({
    name: "chats.json",
    mimeType: "application/json",
    buffer: readFileSync(await download.path()),
  });
  await page.getByText("1 chat was imported.").first().waitFor();
  assert.equal(await page.getByRole("link", { name: "About it" }).count(), 2);
  await leave(opened);
});

test("a prompt longer than the context has a way on", needsChromium, async () => {
  const opened = await demo.visit();
  const { page } = opened;
  await ask(page, "many words ".repeat(4000));
  await page.locator(".problem").getByText("This chat is longer than the model can read.").waitFor({ timeout: LONG });
  await page.locator(".problem").getByRole("button", { name: "New chat" }).click();
  await page.getByRole("heading", { name: "What would you like to ask?" }).waitFor();
  await leave(opened);
});

test("an answer goes on after its engine was killed", needsChromium, async () => {
  const opened = await slow.visit();
  const { page } = opened;
  await setMaxTokens(page, 24);
  await ask(page, "Tell me a long story.");
  await page.locator(".markdown").filter({ hasText: /\w+ \w+ \w+/ }).waitFor({ timeout: LONG });
  process.kill(engineOf(slow.server.process.pid!), "SIGKILL");
  const broken = await answered(page);
  await page.getByText("went on after a restart").waitFor();
  await choose(page, "Answer again", "With the same seed");
  await page.getByText("2/2").waitFor({ timeout: LONG });
  assert.equal(await answered(page), broken);
  await leave(opened);
});

/** Return the process id of a server's engine: of its children, the one with the most memory. */
function engineOf(pid: number): number {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").map(Number);
  const pages = (child: number): number => Number(readFileSync(`/proc/${child}/statm`, "utf8").split(" ")[1]);
  return children.sort((a, b) => pages(b) - pages(a))[0]!;
}
