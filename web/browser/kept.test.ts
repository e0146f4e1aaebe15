/** What the page keeps: answers in the middle, paint, drafts; and what it says of files and settings. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import type { BrowserContext, Locator, Page } from "playwright-core";

import { violations } from "./axe.ts";
import { leave, needsChromium, PICTURES, sharedFake, type Visit, type VisitOptions, withServer } from "./harness.ts";
import { end, scriptAnswers, type Scripted, type Step } from "./scripted.ts";

const fake = withServer(sharedFake);

/** Return a step that brings tokens, all but the last of which were drafted. */
function tokens(texts: string[], ids: number[]): Step {
  const provenance = texts.map((token, index) => {
    const isDrafted = index < texts.length - 1;
    return { token, source: isDrafted ? "subspec" : "target", depth: isDrafted ? index + 1 : 0, pass: 1 };
  });
  return { data: { model: "main", choices: [{ index: 0, delta: { content: texts.join("") }, token_ids: ids, provenance }] } };
}

async function scripted(answers: Scripted[], options: VisitOptions = {}): Promise<Visit> {
  const prepare = async (context: BrowserContext): Promise<void> => {
    await scriptAnswers(context, answers);
    await options.prepare?.(context);
  };
  return fake.visit({ ...options, prepare });
}

function field(page: Page): Locator {
  return page.getByLabel("Message", { exact: true });
}

async function ask(page: Page, question: string): Promise<void> {
  await field(page).fill(question);
  await page.keyboard.press("Enter");
}

/** Return the sources of the paint that is shown, with their counts. */
async function legend(page: Page): Promise<string[]> {
  await page.locator(".paint-legend .legend").waitFor();
  return page.locator(".paint-legend .legend li").allTextContents();
}

function tinted(page: Page): Promise<number> {
  return page.evaluate(() => CSS.highlights.get("paint-draft-1")?.size ?? 0);
}

const LAST: Step = { pause: 60_000 };

test("a reload in the middle of an answer loses nothing of it, and it goes on", needsChromium, async () => {
  const half = tokens(["One", " two", " three"], [5, 6, 7]);
  const unconfirmed: Step = { data: { choices: [{ index: 0, delta: { content: " fo" } }] } };
  const opened = await scripted([{ steps: [half, unconfirmed, LAST] }]);
  const { page } = opened;
  await ask(page, "count");
  await page.getByText("One two three fo").waitFor();
  const before = await legend(page);
  await page.reload();
  await page.getByText("One two three fo").waitFor();
  await page.getByText("The answer was cut off.").waitFor();
  assert.deepEqual(await legend(page), before);
  await page.waitForFunction(() => (CSS.highlights.get("paint-draft-1")?.size ?? 0) > 0);
  await page.getByRole("button", { name: "Continue" }).click();
  await page.waitForFunction(() => window.asked.length === 1);
  const [body] = await page.evaluate(() => window.asked);
  assert.deepEqual(body!["continue_tokens"], { "0": [5, 6, 7] });
  assert.equal(await page.evaluate(() => Object.keys(localStorage).some((key) => key.includes("unsaved"))), false);
  await leave(opened);
});

test("the paint of an answer outlives the page, and export and import", needsChromium, async () => {
  const opened = await scripted([{ steps: [tokens(["**One**", " two", "."], [5, 6, 7]), ...end()] }]);
  const { page } = opened;
  await ask(page, "count");
  await page.locator(".figures").waitFor();
  const before = await legend(page);
  await page.waitForFunction(() => (CSS.highlights.get("paint-draft-1")?.size ?? 0) > 0);
  const ranges = await tinted(page);
  const same = async (): Promise<void> => {
    assert.deepEqual(await legend(page), before);
    await page.waitForFunction((size) => CSS.highlights.get("paint-draft-1")?.size === size, ranges);
  };
  await page.reload();
  await same();
  await page.getByRole("button", { name: "How it came about" }).click();
  assert.equal(await page.getByRole("menuitem", { name: "Show its passes" }).count(), 0);
  await page.getByRole("menuitem", { name: "Save it as a page" }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Import and export" }).click();
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.getByRole("menuitem", { name: "Export all chats" }).click(),
  ]);
  await page.getByLabel("File with chats").setInputFiles(await download.path());
  await page.getByText("1 chat was imported.").first().waitFor();
  await page.getByRole("link", { name: "count" }).and(page.locator(":not([aria-current])")).click();
  await same();
  await leave(opened);
});

test("a browser that cannot tint text shows a tinted copy", needsChromium, async () => {
  const prepare = (context: BrowserContext): Promise<unknown> =>
    context.addInitScript(() => delete (CSS as { highlights?: unknown }).highlights);
  const opened = await scripted([{ steps: [tokens(["One", " two", "."], [5, 6, 7]), ...end()] }], { prepare });
  const { page } = opened;
  await ask(page, "count");
  await page.getByText("This browser cannot tint the answer itself").click();
  assert.equal(await page.locator(".tinted-copy .look.draft-1").innerText(), "One two");
  assert.deepEqual(await violations(page), []);
  await page.screenshot({ path: join(PICTURES, "tinted-copy.png") });
  await leave(opened);
});

test("a message that is not sent stays with its chat, also through a reload", needsChromium, async () => {
  const opened = await scripted([{ steps: [tokens(["Yes", "."], [5, 6]), ...end()] }]);
  const { page } = opened;
  await ask(page, "first");
  await page.locator(".figures").waitFor();
  await field(page).fill("of the first");
  await page.getByRole("button", { name: "New chat" }).click();
  await page.getByRole("heading", { name: "What would you like to ask?" }).waitFor();
  assert.equal(await field(page).inputValue(), "");
  await field(page).fill("of the new one");
  await page.getByLabel("Text files", { exact: true }).setInputFiles({ name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("hi") });
  await page.getByText("a.txt").waitFor();
  await page.getByRole("link", { name: "first" }).click();
  await page.locator(".figures").waitFor();
  assert.equal(await field(page).inputValue(), "of the first");
  assert.equal(await page.locator(".composer .files").count(), 0);
  await page.reload();
  await page.locator(".figures").waitFor();
  assert.equal(await field(page).inputValue(), "of the first");
  await page.getByRole("button", { name: "New chat" }).click();
  await page.locator(".composer").getByText("a.txt").waitFor();
  assert.equal(await field(page).inputValue(), "of the new one");
  await leave(opened);
});

test("files that cannot be added are named, and the notice leaves the field for a message free", needsChromium, async () => {
  for (const viewport of [{ width: 1280, height: 800 }, { width: 320, height: 640 }]) {
    const opened = await scripted([], { viewport });
    const { page } = opened;
    await page.getByLabel("Text files", { exact: true }).setInputFiles([
      { name: "empty.txt", mimeType: "text/plain", buffer: Buffer.alloc(0) },
      { name: "picture.png", mimeType: "image/png", buffer: Buffer.from([0x89, 0, 0xff]) },
      { name: "old.txt", mimeType: "text/plain", buffer: Buffer.from([0x47, 0xfc]) },
      { name: "large.log", mimeType: "text/plain", buffer: Buffer.alloc(2_100_000, 97) },
    ]);
    const notice = page.locator(".toast");
    await notice.getByText("empty.txt is empty. picture.png is not a text file. old.txt is not in UTF-8.").waitFor();
    await notice.getByText("large.log has 2.1 MB, and at most 2 MB can be added.").waitFor();
    assert.equal(await page.locator(".composer .files").count(), 0);
    const [over, composer] = [(await notice.boundingBox())!, (await page.locator(".composer").boundingBox())!];
    assert.ok(over.y + over.height <= composer.y, "the notice covers the field");
    await page.screenshot({ path: join(PICTURES, `toast-${viewport.width}.png`) });
    await leave(opened);
  }
});

test("a limit that is too high is told in the words of the page", needsChromium, async () => {
  const message = "This model's maximum context length is 1024 tokens. However, you requested 9000 tokens. Lower max_tokens.";
  const error = { message, code: "context_length_exceeded", param: "max_tokens", type: "x" };
  const opened = await scripted([{ status: 400, body: { error } }]);
  const { page } = opened;
  await ask(page, "hi");
  await page.locator(".problem").getByText("“Longest answer” asks for more tokens than the model has room for.").waitFor();
  await page.locator(".problem").getByText(/Lower “Longest answer”\.$/).waitFor();
  await page.locator(".problem").getByRole("button", { name: "Parameters" }).click();
  await page.getByLabel("Longest answer, in tokens").waitFor();
  await leave(opened);
});

test("the sliders begin at the model's own defaults", needsChromium, async () => {
  const model = { id: "main", state: "loaded", sampling: { temperature: 0.3, top_p: 0.9, max_tokens: 16384 } };
  const prepare = (context: BrowserContext): Promise<unknown> =>
    context.route("**/v1/models", (route) => route.fulfill({ json: { data: [model] } }));
  const opened = await scripted([], { prepare });
  const { page } = opened;
  await page.getByRole("button", { name: "Parameters", exact: true }).click();
  const slider = page.getByRole("slider", { name: "Temperature" });
  await page.getByText("This is the model's default.").first().waitFor();
  assert.equal(await slider.inputValue(), "0.3");
  assert.equal(await slider.getAttribute("aria-valuetext"), "0.30");
  assert.equal(await page.getByLabel("Longest answer, in tokens").getAttribute("placeholder"), "at most 16,384");
  await slider.press("ArrowRight");
  assert.equal(await slider.getAttribute("aria-valuetext"), "0.35");
  await page.getByRole("button", { name: "Temperature: use the model's default" }).click();
  assert.equal(await slider.inputValue(), "0.3");
  await leave(opened);
});

for (const [width, height] of [[390, 844], [320, 568], [360, 420]] as const) {
  test(`a long message can be sent after a panel was open on ${width} × ${height} pixels`, needsChromium, async () => {
    const opened = await scripted([{ steps: [tokens(["Yes", "."], [5, 6]), ...end()] }], { viewport: { width, height } });
    const { page } = opened;
    await field(page).fill("A long line of a message. ".repeat(60));
    await page.getByRole("button", { name: "Parameters", exact: true }).click();
    await page.locator(".panel").getByRole("button", { name: /^Close/ }).click(); // it had the whole view
    for (const part of [field(page), page.getByRole("button", { name: "Send" })]) {
      const box = (await part.boundingBox())!;
      assert.ok(box.height >= 20 && box.y >= 0 && box.y + box.height <= height, JSON.stringify(box));
    }
    await page.screenshot({ path: join(PICTURES, `long-draft-${width}.png`) });
    await page.getByRole("button", { name: "Send" }).click();
    await page.locator(".figures").waitFor();
    await leave(opened);
  });
}
