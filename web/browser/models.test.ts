/** The view of models: load, unload, failures, and what is said about them. */
import assert from "node:assert/strict";
import { test } from "node:test";

import type { Page } from "playwright-core";

import { look, WIDTHS } from "./axe.ts";
import { leave, needsChromium, serveFake, type Visit, type VisitOptions, withServer } from "./harness.ts";

const PASSES = { seconds: 10, passes: 20, tokens: 125, link_bytes: 0, stall_seconds: { copy: 0, draft: 0, host: 0 } };
const MODEL = { aliases: [], default: false };
const PLAN =
  "7 of 28 units resident (3.2 GiB), 21 streamed from disk, ram, ring of 5 slots (1.1 GiB), " +
  "KV of 32768 tokens (1.8 GiB), draft 3.9 GiB";
const STATUS = {
  object: "status",
  version: "0.1.0",
  state: "running",
  peers: [],
  uptime_seconds: 100,
  models: [
    {
      ...MODEL,
      id: "qwen2.5-14b",
      aliases: ["gpt-4o-mini"],
      default: true,
      state: "loaded",
      context: 32768,
      tiers: { resident: 7, ram: 14, disk: 7 },
      draft: "subspec",
      plan: PLAN,
      unloads_in: 240,
    },
    {
      ...MODEL,
      id: "org/a-model-with-a-name-that-is-too-long-for-a-narrow-screen-70b-instruct",
      state: "loading",
      step: { what: "packing", done: 3.1e9, total: 8e9, unit: "bytes", per_second: 1.2e9, seconds_left: 4.1 },
    },
    { ...MODEL, id: "broken", state: "unloaded", error: "/models/broken/config.json: model_type: 'mamba' is not served." },
    { ...MODEL, id: "demo", state: "unloaded", idle_unloaded_ago: 1500 },
  ],
  queue: { waiting_for_model: 1, waiting_for_pass: 1, in_engine: 3 },
  engine: {
    model: "qwen2.5-14b",
    recent: { ...PASSES, tokens_per_second: 12.5, tokens_per_pass: 6.25, link_gbps: 21.3 },
    total: PASSES,
    link_gbps: 21.3,
    link_limit_gbps: 25,
    link_bits_per_weight: 16,
    kv_pages: 512,
    kv_pages_used: 130,
  },
};

const fake = withServer(serveFake);

async function open(options: VisitOptions = {}): Promise<Visit> {
  const opened = await fake.visit(options);
  await opened.page.goto(`${fake.server.url}#/models`);
  await opened.page.getByRole("heading", { name: "Models", level: 1 }).waitFor();
  return opened;
}

/** Open the view while the server says that it is in a state. */
function openWith(status: unknown, options: VisitOptions = {}): Promise<Visit> {
  const stream = { contentType: "text/event-stream", body: `data: ${JSON.stringify(status)}\n\n` };
  return open({
    ...options,
    prepare: (context) => context.route(/status\?watch/, (route) => route.fulfill(stream)),
  });
}

function card(page: Page, id: string): ReturnType<Page["getByTestId"]> {
  return page.getByTestId(`model ${id}`);
}

test("a model is loaded and unloaded, and each change is said", needsChromium, async () => {
  const opened = await open();
  const { page } = opened;
  const main = card(page, "main");
  await main.getByText("Not loaded").waitFor();
  await page.getByRole("button", { name: "Load main" }).press("Enter");
  await main.getByText("In memory", { exact: true }).waitFor();
  const focused = page.locator(":focus");
  assert.equal(await focused.getAttribute("aria-label"), "Unload main", "the button keeps the focus");
  assert.match(await main.innerText(), /1,024 tokens[^]*3 on the device, 5 in RAM/);
  await page.getByTestId("announcer").getByText("main is in memory.").waitFor({ state: "attached" });
  await page.getByRole("button", { name: "Load org/other" }).press("Enter");
  await card(page, "org/other").getByText("In memory", { exact: true }).waitFor();
  await main.getByText("Not loaded").waitFor();
  await page.getByText("org/other is in memory. No requests are running.").first().waitFor();
  await page.getByRole("button", { name: "Unload org/other" }).press("Enter");
  await card(page, "org/other").getByText("Not loaded").waitFor();
  await page.getByTestId("announcer").getByText("org/other is not in memory any more.").waitFor({ state: "attached" });
  await leave(opened);
});

test("the link to the chat chooses the model", needsChromium, async () => {
  const opened = await open();
  const { page } = opened;
  await page.getByRole("link", { name: "Chat with org/other" }).press("Enter");
  await page.locator(".model-menu").getByText("org/other").waitFor();
  await leave(opened);
});

test("requests are ended or waited for, as the user says", needsChromium, async () => {
  const graces: unknown[] = [];
  const opened = await openWith(STATUS);
  const { page } = opened;
  await page.route(/unload$/, (route) => {
    graces.push((route.request().postDataJSON() as { grace: number }).grace);
    return route.fulfill({ json: {} });
  });
  for (const choice of ["Cancel", "End them", "Wait for them"]) {
    await page.locator("button[aria-disabled=false]", { hasText: "Unload" }).waitFor(); // the last choice is done
    await page.getByRole("button", { name: "Unload qwen2.5-14b" }).press("Enter");
    await page.getByRole("dialog").getByText("3 requests are running.").waitFor();
    const answered = choice === "Cancel" ? null : page.waitForResponse(/unload$/);
    await page.getByRole("button", { name: choice }).press("Enter");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    await answered;
  }
  assert.deepEqual(graces, [0, 86_400]);
  await leave(opened);
});

test("a load that fails says why, and can be tried again", needsChromium, async () => {
  const opened = await openWith(STATUS);
  const { page } = opened;
  await card(page, "broken").getByText("'mamba' is not served").waitFor();
  const error = { message: "The queue is full; try again later.", code: "queue_full", type: "x", param: null };
  await page.route(/demo\/load$/, (route) => route.fulfill({ status: 503, json: { error } }));
  await page.getByRole("button", { name: "Load demo" }).press("Enter");
  await card(page, "demo").getByText("The queue is full").waitFor();
  await page.getByRole("button", { name: "Try again to load demo" }).waitFor();
  await leave(opened);
});

test("a model that stays or sleeps for want of requests says so", needsChromium, async () => {
  const opened = await openWith(STATUS);
  const { page } = opened;
  await card(page, "qwen2.5-14b").getByText("Its memory is given back in 4 min if no request comes.").waitFor();
  await card(page, "demo").getByText("Sleeping: its memory was given back 25 min ago").waitFor();
  await leave(opened);
});

test("a server that is gone is looked for until it is there again", needsChromium, async () => {
  const opened = await open();
  const { page } = opened;
  await card(page, "main").waitFor();
  await page.getByRole("link", { name: "Chat", exact: true }).click();
  await page.route(/status\?watch/, (route) => route.abort());
  await page.getByRole("link", { name: "Models", exact: true }).click();
  await page.getByText("The server does not answer.").first().waitFor();
  await page.unroute(/status\?watch/);
  await page.locator(".problem").waitFor({ state: "detached" });
  await leave(opened);
});

for (const width of WIDTHS) {
  test(`models, ${width} pixels wide, in both themes`, needsChromium, async () => {
    const opened = await openWith(STATUS, { viewport: { width, height: 900 } });
    const { page } = opened;
    await card(page, "demo").waitFor();
    await page.getByText("What is in memory").click();
    await look(page, `models-${width}`);
    await page.getByRole("button", { name: "Unload qwen2.5-14b" }).click();
    await page.getByRole("dialog").waitFor();
    await look(page, `models-unload-${width}`);
    await leave(opened);
  });
}
