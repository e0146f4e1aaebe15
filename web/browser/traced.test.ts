import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import type { Page } from "playwright-core";

import { look, WIDTHS } from "./axe.ts";
import { leave, needsChromium, PICTURES, sharedDemo, type Visit, type VisitOptions, withServer } from "./harness.ts";

const demo = withServer(sharedDemo);

const QUESTION = "What is Understudy?";
const SLOW_MS = 90_000; // a model on a busy machine

async function answered(options: VisitOptions = {}): Promise<Visit> {
  const opened = await demo.visit(options);
  opened.page.setDefaultTimeout(SLOW_MS);
  await opened.page.getByLabel("Message", { exact: true }).fill(QUESTION);
  await opened.page.keyboard.press("Enter");
  await opened.page.locator(".figures").waitFor();
  return opened;
}

async function choose(page: Page, name: string): Promise<void> {
  await page.getByRole("button", { name: "How it came about" }).click();
  await page.getByRole("menuitem", { name }).click();
}

/** Return the number of tokens of each source, as a legend says. */
async function counts(page: Page, place: string): Promise<Record<string, number>> {
  const items = await page.locator(`${place} .legend li`).all();
  const found = items.map(async (item) => [await item.getAttribute("data-source"), Number(await item.getAttribute("data-count"))]);
  return Object.fromEntries(await Promise.all(found)) as Record<string, number>;
}

function total(numbers: Record<string, number>): number {
  return Object.values(numbers).reduce((sum, number) => sum + number, 0);
}

test("the counts of the paint are those of the usage, and the tint is on the text", needsChromium, async () => {
  const opened = await answered();
  const { page } = opened;
  const figures = (await page.locator(".figures").textContent())!;
  const sources = await counts(page, ".paint-legend");
  assert.equal(total(sources), Number(/^(\d+) tokens/.exec(figures)![1]));
  assert.ok(sources["subspec"]! > 0);
  const tinted = await page.evaluate(() => [...CSS.highlights].map(([name, ranges]) => [name, ranges.size]));
  assert.ok(tinted.some(([name, size]) => name === "paint-draft-1" && Number(size) > 0), JSON.stringify(tinted));
  await page.getByRole("button", { name: "Passes", exact: true }).click();
  await page.getByLabel("Tint each token").uncheck();
  const left = await page.evaluate(() => [...CSS.highlights.values()].reduce((sum, ranges) => sum + ranges.size, 0));
  assert.equal(left, 0);
  assert.equal(await page.locator(".paint-legend .legend").count(), 0);
  await leave(opened);
});

test("the passes are bars and trees, which the keyboard reaches, and can be replayed", needsChromium, async () => {
  const opened = await answered();
  const { page } = opened;
  const text = (await page.locator(".answer .markdown").textContent())!.trim();
  await choose(page, "Show its passes");
  await page.locator(".pass-bar").first().waitFor();
  const bars = await page.locator(".pass-bar").count();
  await page.getByLabel("Pass", { exact: true }).press("Home");
  await page.getByText(/^Pass 1 brought 1 token/).waitFor();
  assert.equal((await page.locator(".replayed").textContent())!.length < text.length, true);
  const seen = new Set<string>();
  const slider = page.getByLabel("Pass", { exact: true });
  for (let pass = 2; pass <= bars; pass++) {
    await slider.press("ArrowRight");
    await page.getByText(`Pass ${pass} brought`).waitFor();
    if ((await page.locator(".node").count()) < 4) continue; // its last token, one draft and one more
    await page.locator(".tree .node").first().focus();
    for (const key of ["ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowRight", "ArrowRight"]) {
      await page.keyboard.press(key);
      seen.add((await page.locator(".tree figcaption").textContent())!);
    }
    break;
  }
  assert.ok([...seen].some((words) => /drafted by \w+, score −?[\d.]+ \(.* likely\), (accepted|rejected)/.test(words)), [...seen].join("\n"));
  await page.getByLabel("Speed").selectOption("1");
  await slider.press("Home");
  await page.getByTestId("replay").click();
  await page.getByTestId("replay").filter({ hasText: "Replay" }).waitFor(); // at the end it stops
  assert.equal((await page.locator(".replayed").textContent())!.trim(), text);
  await page.getByRole("meter", { name: "Link" }).waitFor();
  await leave(opened);
});

test("a race says that both answers are identical", needsChromium, async () => {
  const opened = await answered({ colorScheme: "dark" });
  const { page } = opened;
  await choose(page, "Race it against plain decoding");
  await page.getByRole("button", { name: "Start the race" }).click();
  const verdict = (await page.getByTestId("verdict").textContent())!;
  const [, same, most] = /^identical: (\d+) of (\d+) tokens\./.exec(verdict)!;
  assert.equal(same, most);
  const [drafted, plain] = [await counts(page, ".lane:first-child"), await counts(page, ".lane:last-child")];
  assert.deepEqual([total(drafted), plain], [Number(most), { target: Number(most) }]);
  const texts = await page.locator(".lane-text").allTextContents();
  assert.equal(texts[0], texts[1]);
  await leave(opened);
});

/** Open the view of races, whose requests are answered with an error until `mend` is called. */
async function failingRace(status: number, code: string, message: string): Promise<Visit & { mend: () => Promise<void> }> {
  const opened = await demo.visit();
  const { page } = opened;
  page.setDefaultTimeout(SLOW_MS);
  await page.getByRole("link", { name: "Race" }).click();
  await page.route("**/v1/chat/completions", (route) => route.fulfill({ status, json: { error: { message, code } } }));
  await page.getByRole("button", { name: "Start the race" }).click();
  return { ...opened, mend: () => page.unroute("**/v1/chat/completions") };
}

test("a race in which a lane fails says so, and can be begun again", needsChromium, async () => {
  const opened = await failingRace(503, "queue_full", "The queue is full.");
  const { page } = opened;
  const problem = page.getByRole("alert").filter({ hasText: "The server has too many requests waiting." });
  await problem.getByText("The queue is full.", { exact: true }).waitFor();
  await opened.mend();
  await problem.getByRole("button", { name: "Try again" }).click();
  await page.getByTestId("verdict").waitFor();
  await leave(opened);
});

test("a race offers only what helps", needsChromium, async () => {
  const opened = await failingRace(400, "context_length_exceeded", "2,100 tokens are more than 2,048.");
  const { page } = opened;
  const problem = page.getByRole("alert");
  await problem.getByText("Shorten the question.").waitFor();
  assert.equal(await problem.getByRole("button").count(), 0);
  await page.getByLabel("Seed", { exact: true }).fill("-4");
  await page.getByText("A seed is not negative").waitFor();
  assert.equal(await page.getByRole("button", { name: "Start the race" }).isDisabled(), true);
  await leave(opened);
});

test("an answer is saved as one file with its paint", needsChromium, async () => {
  const opened = await answered();
  const { page } = opened;
  const text = (await page.locator(".answer .markdown").textContent())!.trim();
  const waiting = page.waitForEvent("download");
  await choose(page, "Save it as a page");
  const download = await waiting;
  assert.match(download.suggestedFilename(), /^demo-\d{4}-\d\d-\d\d\.html$/);
  const saved = readFileSync((await download.path())!, "utf8");
  const other = await opened.page.context().newPage();
  await other.setContent(saved);
  assert.equal((await other.locator(".message .text").last().textContent())!.trim(), text);
  assert.equal(await other.locator(".message .text").first().textContent(), QUESTION);
  assert.ok((await other.locator(".message .look.draft-1").count()) > 0);
  const background = await other.locator(".look.draft-1").first().evaluate((own) => getComputedStyle(own).backgroundColor);
  assert.notEqual(background, "rgba(0, 0, 0, 0)", "the policy allows the style sheet");
  await other.screenshot({ path: join(PICTURES, "export.png"), fullPage: true });
  await leave(opened);
});

for (const width of WIDTHS) {
  test(`passes and a race look right on ${width} pixels, in both themes`, needsChromium, async () => {
    const opened = await answered({ viewport: { width, height: Math.min(2 * width, 800) } });
    const { page } = opened;
    await look(page, `painted-${width}`);
    await choose(page, "Show its passes");
    await page.locator(".pass-bar").nth(1).waitFor();
    await page.getByRole("button", { name: "Pass before" }).click();
    await page.locator(".tree").scrollIntoViewIfNeeded();
    await look(page, `passes-${width}`);
    if (width < 640) {
      await page.getByTitle("Views").click();
      await page.getByRole("menuitemradio", { name: "Race" }).click();
    } else {
      await page.getByRole("link", { name: "Race" }).click();
    }
    await page.getByRole("button", { name: "Start the race" }).click();
    await page.getByTestId("verdict").waitFor();
    await look(page, `race-${width}`);
    await leave(opened);
  });
}
