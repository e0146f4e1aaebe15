import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { test } from "node:test";

import { build } from "esbuild";
import type { Page } from "playwright-core";

import { HOSTILE } from "./hostile.ts";
import { leave, needsChromium, sharedFake, withServer } from "./harness.ts";

const SCRIPT = "page/hostile-test.js";
const AT_ONCE = 50; // texts in one call, so that a failure is near

const fake = withServer(sharedFake);

/** Add the script that shows hostile texts to a page, as a file of the server's own origin. */
async function addScript(page: Page, url: string): Promise<void> {
  const bundled = await build({
    entryPoints: ["browser/xss_page.ts"],
    bundle: true,
    write: false,
    format: "esm",
    target: "es2022",
  });
  const body = bundled.outputFiles[0]!.text;
  await page.route(`${url}${SCRIPT}`, (route) => route.fulfill({ body, contentType: "text/javascript" }));
  const view = readdirSync("../server/page/files").find((name) => name.startsWith("markdown_view-"));
  await page.evaluate(([script, module]) => import(script).then(({ start }) => start(module)), [
    `${url}${SCRIPT}`,
    `${url}page/${view}`,
  ] as const);
}

test("no hostile text runs, loads or leaves what is allowed, at any prefix", needsChromium, async () => {
  assert.ok(HOSTILE.length >= 2000);
  const opened = await fake.visit();
  const { url } = fake.server;
  await opened.page.waitForLoadState("networkidle");
  await addScript(opened.page, url);
  const requests: string[] = [];
  const own = `${url}page/`; // code that highlights and typesets
  opened.page.on("request", (request) => request.url().startsWith(own) || requests.push(request.url()));
  let prefixes = 0;
  for (let at = 0; at < HOSTILE.length; at += AT_ONCE) {
    const texts = HOSTILE.slice(at, at + AT_ONCE);
    const shown = await opened.page.evaluate((given) => window.showHostile(given), texts);
    assert.deepEqual(shown.found, []);
    prefixes += shown.prefixes;
  }
  assert.deepEqual(requests, []);
  console.log(`${HOSTILE.length} texts, ${prefixes} prefixes`);
  await leave(opened);
});
