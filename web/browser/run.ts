/** Run the tests in Chromium, with one server of each kind for all that can share it: `npm run browser`. */
import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";

import { DEMO_URL, FAKE_URL, needsChromium, serveDemo, serveFake } from "./harness.ts";

const TESTS = "node_modules/.cache/tests/browser";
const AT_ONCE = 2; // files

async function run(urls: Record<string, string>): Promise<number> {
  const files = readdirSync(TESTS).filter((name) => name.endsWith(".test.mjs"));
  const options = ["--test", "--test-reporter=spec", `--test-concurrency=${AT_ONCE}`];
  const tests = spawn(process.execPath, [...options, ...files.map((name) => join(TESTS, name))], {
    stdio: "inherit",
    env: { ...process.env, ...urls },
  });
  return new Promise((resolve) => tests.once("exit", (code) => resolve(code ?? 1)));
}

if ("skip" in needsChromium) {
  process.exitCode = await run({}); // which says why each test is skipped
} else {
  const servers = await Promise.all([serveFake(), serveDemo()]);
  const [fake, demo] = servers;
  process.exitCode = await run({ [FAKE_URL]: fake.url, [DEMO_URL]: demo.url });
  await Promise.all(servers.map((server) => server.stop()));
}
