/**
 * Measure what the page costs its main thread while 60 painted tokens arrive in each pass, by kind of block:
 * `npm run frames`. Times are of the processor, and by the wall clock, which a busy machine lengthens.
 */
import { loadavg } from "node:os";

import type { Browser } from "playwright-core";

import { growing, type Kind, KINDS, TOKENS } from "../browser/growing.ts";
import { serveFake, startBrowser, visit } from "../browser/harness.ts";
import { scriptAnswers } from "../browser/scripted.ts";

const LENGTHS = [600, 2000, 4000, 8000, 16000]; // tokens of the block
const PASSES = 10; // at each length
const PAUSE_MS = 150;

interface TraceEvent {
  name: string;
  ph: string;
  tid: number;
  ts: number;
  dur?: number;
  tdur?: number;
}

const SCRIPTS = new Set(["FireAnimationFrame", "FunctionCall", "RunMicrotasks", "TimerFire", "EvaluateScript"]);

/** Return the events that no other of them encloses. */
function outermost(events: TraceEvent[]): TraceEvent[] {
  const found: TraceEvent[] = [];
  let until = 0;
  for (const event of events.sort((a, b) => a.ts - b.ts || (b.dur ?? 0) - (a.dur ?? 0))) {
    if (event.ts < until) continue;
    found.push(event);
    until = event.ts + (event.dur ?? 0);
  }
  return found;
}

type Times = "dur" | "tdur";

function sum(events: TraceEvent[], time: Times): number {
  return events.reduce((total, event) => total + (event[time] ?? 0), 0) / 1000;
}

function longest(events: TraceEvent[], time: Times): number {
  return Math.max(0, ...events.map((event) => event[time] ?? 0)) / 1000;
}

async function measure(browser: Browser, url: string, kind: Kind): Promise<string[]> {
  const opened = await visit(browser, url, { prepare: (context) => scriptAnswers(context, [{ steps: growing(kind, LENGTHS, PASSES, PAUSE_MS) }]) });
  const { page } = opened;
  await page.getByLabel("Message", { exact: true }).fill("hi");
  await browser.startTracing(page, { categories: ["devtools.timeline", "disabled-by-default-devtools.timeline", "blink.user_timing"] });
  await page.keyboard.press("Enter");
  await page.locator(".figures").waitFor({ timeout: 200_000 });
  const { traceEvents } = JSON.parse((await browser.stopTracing()).toString()) as { traceEvents: TraceEvent[] };
  await opened.close();
  const complete = traceEvents.filter(({ ph }) => ph === "X");
  const main = complete.find(({ name }) => name === "FireAnimationFrame")!.tid;
  const own = complete.filter(({ tid }) => tid === main);
  const scripts = outermost(own.filter(({ name }) => SCRIPTS.has(name)));
  const tasks = outermost(own.filter(({ name }) => name === "RunTask"));
  const markAt = (name: string): number => traceEvents.find((event) => event.name === name)!.ts;
  return LENGTHS.map((length) => {
    const [from, to] = [markAt(`from ${length}`), markAt(`to ${length}`)];
    const within = ({ ts }: TraceEvent): boolean => ts >= from && ts <= to;
    const [ran, all] = [scripts.filter(within), tasks.filter(within)];
    const figures = [sum(ran, "tdur") / PASSES, sum(all, "tdur") / PASSES];
    const most = [longest(ran, "tdur"), longest(ran, "dur"), longest(all, "tdur"), longest(all, "dur")];
    return [...figures.map((figure) => figure.toFixed(1)), ...most.map((figure) => figure.toFixed(0))].join(" ");
  });
}

const [server, browser] = await Promise.all([serveFake(), startBrowser()]);
const wanted = process.argv.slice(2);
console.log(`passes of ${TOKENS} tokens; load ${loadavg()[0]!.toFixed(1)}. For each length of the block in tokens: script and all`);
console.log("tasks a pass, longest script by processor and wall, longest task by processor and wall; milliseconds");
console.log(["tokens".padEnd(12), ...LENGTHS].join(" | "));
for (const [name, kind] of Object.entries(KINDS)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  const row = await measure(browser, server.url, kind);
  console.log([name.padEnd(12), ...row].join(" | "), `(load ${loadavg()[0]!.toFixed(1)})`);
}
await browser.close();
await server.stop();
