/** The view of plans: sliders by keyboard, one request at a time, errors, copies. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import type { Page } from "playwright-core";

import { look, WIDTHS } from "./axe.ts";
import { leave, needsChromium, PICTURES, sharedFake, type Visit, type VisitOptions, withServer } from "./harness.ts";

const fake = withServer(sharedFake);

async function open(options: VisitOptions = {}, model = "main"): Promise<Visit> {
  const opened = await fake.visit(options);
  await opened.page.goto(`${fake.server.url}#/plan/${model}`);
  return opened;
}

/** Wait until the plan expects a speed for one user. */
async function speedIs(page: Page, tokensPerSecond: string): Promise<void> {
  // the first plan starts a process of the lowest priority
  await page.getByTestId("speed").getByText(tokensPerSecond, { exact: true }).waitFor({ timeout: 60_000 });
  await page.locator('.plan[aria-busy="false"]').waitFor({ timeout: 60_000 });
}

test("a slider changes the figures, by keyboard alone", needsChromium, async () => {
  const opened = await open();
  const { page } = opened;
  await speedIs(page, "12.5");
  await page.getByLabel("Model", { exact: true }).focus();
  for (const name of ["This server's", "RAM", "Link"]) {
    await page.keyboard.press("Tab");
    assert.ok(await page.getByLabel(name, { exact: true }).evaluate((element) => element === document.activeElement), name);
  }
  const link = page.getByLabel("Link");
  assert.equal(await link.getAttribute("aria-valuetext"), "25 GB/s");
  await page.keyboard.press("ArrowRight");
  assert.equal(await link.getAttribute("aria-valuetext"), "32 GB/s");
  await speedIs(page, "16");
  const sentence = "main: 16 tokens a second for one user, 64 for 8 users together.";
  await page.getByTestId("announcer").getByText(sentence).waitFor({ state: "attached" });
  await page.getByRole("button", { name: "Reset all" }).press("Enter");
  await speedIs(page, "12.5");
  await leave(opened);
});

test("only the last of many values is asked for", needsChromium, async () => {
  const opened = await open();
  const { page } = opened;
  await speedIs(page, "12.5");
  const asked: unknown[] = [];
  page.on("request", (request) => {
    if (request.url().endsWith("/v1/plan")) asked.push(request.postDataJSON());
  });
  await page.getByLabel("Link").evaluate((slider: HTMLInputElement) => {
    for (let step = 0; step < 4; step++) {
      slider.stepUp();
      slider.dispatchEvent(new Event("input", { bubbles: true }));
    }
  });
  await speedIs(page, "32");
  assert.deepEqual(asked, [{ model: "main", link_gbps: 64 }]);
  await leave(opened);
});

test("another card has figures of its own, and a change that helps can be tried", needsChromium, async () => {
  const opened = await open();
  const { page } = opened;
  await speedIs(page, "12.5");
  await page.getByLabel("One with another card").check();
  const size = page.getByRole("slider", { name: "Device memory" });
  await size.waitFor();
  await page.getByLabel("Memory bandwidth").waitFor();
  await page.locator('.plan[aria-busy="false"]').waitFor();
  assert.equal(await size.getAttribute("aria-valuetext"), "8 GiB");
  await page.getByRole("button", { name: "Try it: More device memory: 2 GiB instead of 1 GiB" }).press("Enter");
  assert.equal(await size.getAttribute("aria-valuetext"), "2 GiB");
  await page.getByRole("img", { name: /^Device memory: .* of 2 GiB\. resident weights 512 MiB,/ }).waitFor();
  await leave(opened);
});

test("a machine that is too small says what is missing, and a plan that failed can be tried again", needsChromium, async () => {
  const opened = await open();
  const { page } = opened;
  await speedIs(page, "12.5");
  const failures = [
    { status: 400, code: "does_not_fit", message: "main does not fit. 2 GiB are missing.", way: "Reset the sliders" },
    { status: 503, code: "queue_full", message: "9 plans wait; try again later.", way: "Try again" },
  ];
  for (const { status, way, ...error } of failures) {
    await page.route(/v1\/plan$/, (route) => route.fulfill({ status, json: { error: { ...error, type: "x", param: null } } }));
    await page.getByLabel("RAM", { exact: true }).press("ArrowLeft");
    await page.locator(".problem").getByText(error.message, { exact: true }).waitFor();
    await page.getByTestId("announcer").getByText(error.message).waitFor({ state: "attached" });
    await page.unroute(/v1\/plan$/);
    await page.getByRole("button", { name: way }).press("Enter");
    await page.locator(".problem").waitFor({ state: "detached" });
    await speedIs(page, "12.5");
  }
  await leave(opened);
});

test("the figures are in the address, which others can open", needsChromium, async () => {
  const opened = await open();
  const { page } = opened;
  await speedIs(page, "12.5");
  await page.getByLabel("Link").press("ArrowRight");
  await page.getByLabel("Users").press("End");
  await page.waitForURL(/#\/plan\/main\?link_gbps=32&users=256$/);
  await page.getByText("8 answers are written at once; 248 more users wait for their turn.").waitFor();
  await page.reload();
  await speedIs(page, "16");
  assert.equal(await page.getByLabel("Link").getAttribute("aria-valuetext"), "32 GB/s");
  assert.equal(await page.getByLabel("Users").getAttribute("aria-valuetext"), "256");
  await page.goto(`${fake.server.url}#/plan/main?machine=card&device_memory=12GiB&ram=1&link_gbps=fast`);
  await page.getByRole("slider", { name: "Device memory" }).waitFor();
  assert.equal(await page.getByRole("slider", { name: "Device memory" }).getAttribute("aria-valuetext"), "12 GiB");
  await page.waitForURL(/\?machine=card&device_memory=12GiB$/); // what is no figure has been left out
  await leave(opened);
});

test("the plan is copied as a command and as a model file", needsChromium, async () => {
  const opened = await open({ permissions: ["clipboard-read", "clipboard-write"] }, "org%2Fother");
  const { page } = opened;
  await speedIs(page, "12.5");
  await page.getByLabel("Link").press("ArrowRight");
  await speedIs(page, "16");
  const copied = (): Promise<string> => page.evaluate(() => navigator.clipboard.readText());
  await page.getByRole("button", { name: "Copy as command" }).press("Enter");
  await page.getByTestId("announcer").getByText("The command was copied.").waitFor({ state: "attached" });
  assert.equal(await copied(), "understudy plan org/other --link-gbps 32");
  await page.getByRole("button", { name: "Copy model file" }).press("Enter");
  await page.getByTestId("announcer").getByText("The model file was copied.").waitFor({ state: "attached" });
  assert.equal(await copied(), "target: {source: org/other}\ndraft: {method: subspec}\n");
  await leave(opened);
});

test("a model that the server does not have is named", needsChromium, async () => {
  const opened = await open({}, "nobody");
  await opened.page.getByText("The server has no model called nobody.").waitFor();
  await leave(opened);
});

for (const width of WIDTHS) {
  test(`a plan, ${width} pixels wide, in both themes`, needsChromium, async () => {
    const opened = await open({ viewport: { width, height: 900 } });
    const { page } = opened;
    await speedIs(page, "12.5");
    await page.getByLabel("One with another card").check();
    await page.getByLabel("Memory bandwidth").waitFor();
    await page.getByText("What the figures rest on").click();
    await page.getByText("Show both").click();
    await page.locator('.plan[aria-busy="false"]').waitFor();
    await look(page, `plan-${width}`);
    await page.locator(".copies").scrollIntoViewIfNeeded();
    await page.screenshot({ path: join(PICTURES, `plan-end-${width}.png`) });
    await leave(opened);
  });
}
