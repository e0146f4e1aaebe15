/** What the tests in Chromium share: servers of this project, and pages that note what goes wrong. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before } from "node:test";

import { type Browser, type BrowserContext, type BrowserContextOptions, chromium, type Page } from "playwright-core";

const ROOT = join(process.cwd(), "..");
export const PYTHON = process.env["UNDERSTUDY_TEST_PYTHON"] ?? join(ROOT, ".venv/bin/python");
const CHROMIUM = ["/usr/bin/chromium", "/usr/bin/chromium-browser"].find(existsSync);

/** Where screenshots are written, to be looked at. */
export const PICTURES = join(ROOT, "build/web/pictures");

/** The option of `test` that skips it, with the reason, where there is no browser. */
export const needsChromium = CHROMIUM ? {} : { skip: "chromium is not installed" };

/** A server of this project, in a process of its own. */
export interface Server {
  url: string;
  process: ChildProcess;
  stop: () => Promise<void>;
}

/** Serve a fake engine, which greets: no model, no torch. */
export function serveFake(...options: string[]): Promise<Server> {
  return serve(["-m", "tests.server.serve_fake", ...options], "stdout", /^(\d+)$/, (port) => `http://127.0.0.1:${port}/`);
}

/** The addresses of servers that `run.ts` has started for all tests. */
export const FAKE_URL = "UNDERSTUDY_TEST_FAKE_URL";
export const DEMO_URL = "UNDERSTUDY_TEST_DEMO_URL";

/** Return the fake engine's server that tests share which load and unload nothing. */
export function sharedFake(): Promise<Shared> {
  return shared(FAKE_URL, serveFake);
}

/** Return the demo's server that tests share which load and unload nothing. */
export function sharedDemo(): Promise<Shared> {
  return shared(DEMO_URL, serveDemo);
}

/** A server that may serve other tests too. */
export type Shared = Pick<Server, "url" | "stop">;

async function shared(name: string, start: () => Promise<Server>): Promise<Shared> {
  const url = process.env[name];
  return url === undefined ? start() : { url, stop: () => Promise.resolve() };
}

const SERVES = /serves .* at (http:\/\/[\d.:]+\/)v1/;

/** Serve the demo model. */
export function serveDemo(...options: string[]): Promise<Server> {
  const command = ["-m", "server.cli.main", "serve", "demo", "--port", "0", ...options];
  return serve(command, "stderr", SERVES, (url) => url);
}

/** Serve the demo model over a link so slow that a token takes a quarter of a second. */
export function serveSlowDemo(): Promise<Server> {
  const file = [
    `target: {source: ${join(ROOT, "configs/demo/target")}}`,
    "draft: {method: none}",
    "stream: {tier: ram, resident: 0, simulate_gbps: 0.04}",
  ].join("\n");
  const command = ["-m", "server.cli.main", "serve", "slow", "--port", "0"];
  return serve(command, "stderr", SERVES, (url) => url, { "slow.yaml": file });
}

async function serve(
  command: string[],
  output: "stdout" | "stderr",
  pattern: RegExp,
  urlOf: (found: string) => string,
  models: Record<string, string> = {},
): Promise<Server> {
  const home = mkdtempSync(join(tmpdir(), "understudy-page-"));
  const files = join(home, "config/understudy/models");
  mkdirSync(files, { recursive: true });
  for (const [name, text] of Object.entries(models)) writeFileSync(join(files, name), text);
  // compiling takes a minute; the names of the folders there say which sources they are of
  const compiled = join(ROOT, "build/compiled");
  mkdirSync(compiled, { recursive: true });
  mkdirSync(join(home, "cache"));
  symlinkSync(compiled, join(home, "cache/compiled"));
  const env = {
    ...process.env,
    PYTHONPATH: ROOT,
    HOME: home,
    XDG_CONFIG_HOME: join(home, "config"),
    XDG_STATE_HOME: join(home, "state"),
    UNDERSTUDY_CACHE: join(home, "cache"),
    HF_HUB_OFFLINE: "1",
  };
  const child = spawn(PYTHON, command, { cwd: ROOT, env, stdio: ["ignore", "pipe", "pipe"] });
  child[output === "stdout" ? "stderr" : "stdout"].resume();
  const stop = async (): Promise<void> => {
    if (child.exitCode === null && child.signalCode === null) {
      const ended = new Promise((resolve) => child.once("exit", resolve));
      child.kill("SIGTERM");
      const last = setTimeout(() => child.kill("SIGKILL"), 5000);
      await ended;
      clearTimeout(last);
    }
    rmSync(home, { recursive: true, force: true });
  };
  let printed = "";
  for await (const line of createInterface({ input: child[output] })) {
    printed += `${line}\n`;
    const found = pattern.exec(line);
    if (found) {
      child[output].resume(); // a full pipe would stop the server
      const url = urlOf(found[1]!);
      await listening(url);
      return { url, process: child, stop };
    }
  }
  await stop();
  throw new Error(`the server ended: ${printed}`);
}

async function listening(url: string): Promise<void> {
  const isReady = (): Promise<boolean> => fetch(`${url}health`).then(({ ok }) => ok, () => false);
  while (!(await isReady())) await new Promise((resolve) => setTimeout(resolve, 50));
}

export function startBrowser(): Promise<Browser> {
  mkdirSync(PICTURES, { recursive: true });
  const args = ["--no-sandbox", "--disable-gpu", "--disable-component-update"];
  return chromium.launch({ executablePath: CHROMIUM!, args });
}

/** A page, and what went wrong in it. */
export interface Visit {
  page: Page;
  /** Errors in the console, exceptions, and requests to other origins. */
  problems: string[];
  close: () => Promise<void>;
}

export interface VisitOptions extends BrowserContextOptions {
  /** Is called before the page is opened. */
  prepare?: (context: BrowserContext) => Promise<unknown>;
}

/** Open a page of a server in a fresh profile. */
export async function visit(browser: Browser, url: string, options: VisitOptions = {}): Promise<Visit> {
  const { prepare, ...rest } = options;
  const context = await browser.newContext({ reducedMotion: "reduce", ...rest });
  await prepare?.(context);
  const page = await context.newPage();
  const problems: string[] = [];
  page.on("pageerror", (error) => problems.push(`exception: ${error.stack ?? error.message}`));
  page.on("console", (message) => {
    // Chromium reports every answer with an error status; the tests check what the page does with it.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) {
      problems.push(`console: ${message.text()}`);
    }
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("blob:")) {
      problems.push(`request: ${request.url()}`);
    }
  });
  page.setDefaultTimeout(20_000);
  await page.goto(url);
  return { page, problems, close: () => context.close() };
}

/** A server for the tests of a file, in which each of them opens pages. */
export interface Served<S extends Shared> {
  readonly server: S;
  /** Open a page of the server in a fresh profile. */
  visit: (options?: VisitOptions) => Promise<Visit>;
}

let ofFile: Promise<Browser> | undefined; // each file with tests is run in a process of its own

/** Start a server and the file's browser before the tests of a file, and end both after them. */
export function withServer<S extends Shared>(start: () => Promise<S>): Served<S> {
  let server: S;
  let browser: Browser;
  if (!("skip" in needsChromium)) {
    before(async () => {
      [server, browser] = await Promise.all([start(), (ofFile ??= startBrowser())]);
    });
    after(async () => {
      await browser.close();
      await server.stop();
    });
  }
  return {
    get server() {
      return server;
    },
    visit: (options) => visit(browser, server.url, options),
  };
}

/** Close a page, and fail if anything went wrong in it. */
export async function leave({ problems, close }: Visit): Promise<void> {
  await close();
  assert.deepEqual(problems, []);
}
