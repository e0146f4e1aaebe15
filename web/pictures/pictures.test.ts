/** Take the pictures of the documentation, from the demo model behind a slow link. `make pictures` runs it. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import type { Browser, Page } from "playwright-core";

import { leave, PYTHON, serveDemo, type Server, startBrowser, visit, type Visit } from "../browser/harness.ts";

const ROOT = join(process.cwd(), "..");
const PICTURES = join(ROOT, "docs/pictures");
/** The frames of the race, which `python -m benchmarks.pictures` puts together. */
const FRAMES = join(ROOT, "build/web/race");
const FRAME_MS = 150;
const SLOWEST_MS = 500_000;
const LARGEST = 300_000; // bytes of a picture

// A link of 0.05 GB/s makes the demo about as slow as a model that does not fit the device is.
const DEMO = `target: {source: ${ROOT}/configs/demo/target}
draft: {method: subspec, depth: 16, width: 4, branch: 4, budget: 64, calibrate: false}
stream: {tier: ram, simulate_gbps: 0.05}
numerics: strict
sampling: {temperature: 0.3, top_p: 0.9}
`;

// The published configuration of Qwen2.5-14B: a plan needs no more.
const LARGE = {
  model_type: "qwen2",
  hidden_size: 5120,
  intermediate_size: 13824,
  num_hidden_layers: 48,
  num_attention_heads: 40,
  num_key_value_heads: 8,
  vocab_size: 152064,
  max_position_embeddings: 32768,
  dtype: "bfloat16",
  tie_word_embeddings: false,
};

let folder: string;
let server: Server;
let browser: Browser;

before(async () => {
  folder = mkdtempSync(join(tmpdir(), "understudy-pictures-"));
  mkdirSync(join(folder, "models"));
  mkdirSync(join(folder, "qwen2.5-14b"));
  writeFileSync(join(folder, "models/demo.yaml"), DEMO);
  writeFileSync(join(folder, "qwen2.5-14b/config.json"), JSON.stringify(LARGE));
  writeFileSync(join(folder, "models/qwen2.5-14b.yaml"), `target: {source: ${folder}/qwen2.5-14b}\n`);
  mkdirSync(PICTURES, { recursive: true });
  [server, browser] = await Promise.all([serveDemo("--config", folder), startBrowser()]);
});

after(async () => {
  await browser.close();
  await server.stop();
  rmSync(folder, { recursive: true, force: true });
});

async function open(view: string, width: number, height: number, colorScheme: "light" | "dark"): Promise<Visit> {
  const opened = await visit(browser, server.url, { viewport: { width, height }, colorScheme });
  opened.page.setDefaultTimeout(SLOWEST_MS);
  await opened.page.goto(`${server.url}#/${view}`);
  return opened;
}

/** Wait until the page rests: its fonts and files are there, and two frames draw the same. */
async function resting(page: Page): Promise<void> {
  await page.mouse.move(0, 0);
  await page.evaluate(async () => {
    await document.fonts.ready;
    await Promise.all([...document.images].map((image) => image.decode()));
  });
  let before: Buffer = Buffer.alloc(0);
  for (;;) {
    const drawn = await page.screenshot();
    if (drawn.equals(before)) return;
    before = drawn;
  }
}

async function take(page: Page, name: string): Promise<void> {
  await resting(page);
  const picture = await page.screenshot({ path: join(PICTURES, name) });
  assert.ok(picture.length <= LARGEST, `${name} has ${picture.length} bytes`);
}

for (const [name, width, height, theme] of [
  ["chat.png", 1360, 960, "light"],
  ["chat-dark.png", 390, 780, "dark"],
] as const) {
  test(name, async () => {
    const opened = await open("chat", width, height, theme);
    const { page } = opened;
    const openPasses = page.getByRole("button", { name: "Passes", exact: true });
    if (width > 1000) await openPasses.click();
    await page.getByLabel("Message", { exact: true }).fill("What is Understudy?");
    await page.keyboard.press("Enter");
    await page.locator(".message-tools .figures").waitFor();
    if (width > 1000) {
      await page.getByText("No model is running.").waitFor({ state: "detached" });
      await page.getByRole("button", { name: "Pass before" }).click(); // the last tree has few branches
    }
    await take(page, name);
    await leave(opened);
  });
}

test("models.png", async () => {
  const opened = await open("models", 1000, 700, "light");
  await opened.page.getByText("In memory", { exact: true }).waitFor();
  await take(opened.page, "models.png");
  await leave(opened);
});

for (const [name, theme] of [["plan.png", "light"], ["plan-dark.png", "dark"]] as const) {
  test(name, async () => {
    const opened = await open("plan/qwen2.5-14b", 1000, 900, theme);
    const { page } = opened;
    await page.getByLabel("One with another card").check();
    await page.getByRole("slider", { name: "Device memory" }).press("ArrowRight"); // busy until its plan is there
    await page.locator('.plan[aria-busy="false"] .stacked').first().waitFor();
    await page.getByRole("slider", { name: "Device memory" }).blur();
    await take(page, name);
    await leave(opened);
  });
}

test("the frames of a race", async () => {
  rmSync(FRAMES, { recursive: true, force: true });
  mkdirSync(FRAMES, { recursive: true });
  const opened = await open("race", 860, 1000, "light");
  const { page } = opened;
  await page.getByLabel("Question").fill("What is Understudy?");
  await page.getByLabel("Seed", { exact: true }).fill("7");
  await page.getByRole("button", { name: "Start the race" }).click();
  const { y } = (await page.getByRole("button", { name: "Stop" }).boundingBox())!;
  const clip = { x: 0, y: y - 10, width: 860, height: 990 - y };
  const times: number[] = [];
  const shoot = async (): Promise<void> => {
    times.push(Date.now());
    await page.screenshot({ path: join(FRAMES, `${String(times.length).padStart(4, "0")}.png`), clip });
  };
  const verdict = page.getByTestId("verdict");
  while (!(await verdict.isVisible())) {
    await shoot();
    await page.waitForTimeout(FRAME_MS);
  }
  await shoot();
  writeFileSync(join(FRAMES, "times.json"), JSON.stringify(times));
  await leave(opened);
});

test("the pictures of the terminal and the animated race", () => {
  execFileSync(PYTHON, ["-m", "benchmarks.pictures", server.url], { cwd: ROOT, stdio: "inherit" });
  const sizes = readdirSync(PICTURES).map((name) => statSync(join(PICTURES, name)).size);
  assert.ok(Math.max(...sizes) <= LARGEST && sizes.reduce((sum, size) => sum + size, 0) <= 2_000_000, String(sizes));
});
