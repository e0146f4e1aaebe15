import assert from "node:assert/strict";
import { test } from "node:test";

import type { BrowserContext, Page } from "playwright-core";

import { leave, needsChromium, sharedFake, type Visit, withServer } from "./harness.ts";
import { end, failure, scriptAnswers, type Scripted, type Step, text, thought } from "./scripted.ts";

const fake = withServer(sharedFake);

/** Open the page with scripted answers. */
async function scripted(answers: Scripted[], status?: unknown): Promise<Visit> {
  return fake.visit({ prepare: (context) => scriptAnswers(context, answers, status) });
}

async function ask(page: Page, question: string): Promise<void> {
  await page.getByLabel("Message", { exact: true }).fill(question);
  await page.keyboard.press("Enter");
}

async function seen(page: Page, words: string | RegExp): Promise<void> {
  await page.getByText(words).first().waitFor();
}

async function asked(page: Page): Promise<Record<string, unknown>[]> {
  return page.evaluate(() => window.asked);
}

const LAST: Step = { pause: 60_000 };

const WAITING: [name: string, steps: Step[], words: string][] = [
  ["the prompt", [{ comment: "prompt 8192 of 21340" }, LAST], "Reading the prompt: 8,192 of 21,340 tokens"],
  ["the queue", [{ comment: "waiting, position 3" }, LAST], "Place 3 in the queue"],
  ["a load", [{ comment: "loading main, position 1" }, LAST], "Loading main"],
  ["a restart", [text("Some words"), { comment: "engine restarting" }, LAST], "The engine is restarting"],
];

for (const [name, steps, words] of WAITING) {
  test(`what is waited for is said: ${name}`, needsChromium, async () => {
    const opened = await scripted([{ steps }]);
    await ask(opened.page, "hi");
    await seen(opened.page, words);
    await opened.page.keyboard.press("Escape");
    await seen(opened.page, "Stopped.");
    await leave(opened);
  });
}

test("the server's status is asked while nothing arrives", needsChromium, async () => {
  const step = { what: "packing", done: 3, total: 4, unit: "bytes", per_second: 1, seconds_left: 4 };
  const status = {
    models: [{ id: "main", aliases: [], state: "loading", step }],
    queue: { waiting_for_model: 1, waiting_for_pass: 0, in_engine: 0 },
  };
  const opened = await scripted([{ steps: [LAST] }], status);
  await ask(opened.page, "hi");
  await seen(opened.page, "Loading main: packing, 75 %, about 4 s left");
  await leave(opened);
});

test("a server that does not answer is named, and found again", needsChromium, async () => {
  let isGone = true;
  const prepare = (context: BrowserContext): Promise<unknown> =>
    context.route("**/v1/models", (route) => (isGone ? route.abort() : route.continue()));
  const opened = await fake.visit({ prepare });
  const { page } = opened;
  await seen(page, "The server does not answer");
  isGone = false;
  await page.getByRole("button", { name: "Model: main" }).waitFor();
  await leave(opened);
});

test("a full queue is tried again by itself", needsChromium, async () => {
  const full = failure(503, "queue_full", "The queue is full.", { "retry-after": "1" });
  const opened = await scripted([full, { steps: [text("Now it works."), ...end()] }]);
  await ask(opened.page, "hi");
  await seen(opened.page, /too many requests waiting. Trying again in 1 s/);
  await seen(opened.page, "Now it works.");
  await leave(opened);
});

test("an answer whose connection breaks goes on with the ids that have arrived", needsChromium, async () => {
  const first = { steps: [text("One ", [5, 6]), text("lost", []), { cut: true } as Step] };
  const opened = await scripted([first, { status: 0 }, { steps: [text("two.", [7]), ...end()] }]);
  await ask(opened.page, "count");
  await seen(opened.page, "One two.");
  const bodies = await asked(opened.page);
  assert.deepEqual(bodies.map((body) => body["continue_tokens"]), [undefined, { "0": [5, 6] }, { "0": [5, 6] }]);
  assert.equal(bodies[2]!["seed"], bodies[0]!["seed"]);
  await leave(opened);
});

test("an error inside a stream keeps what has arrived", needsChromium, async () => {
  const error = { error: { message: "The logits are not finite.", code: "logits_not_finite", param: null } };
  const opened = await scripted([{ steps: [text("Some words"), { data: error }] }]);
  await ask(opened.page, "hi");
  await seen(opened.page, "The logits are not finite.");
  await seen(opened.page, "Some words");
  await opened.page.getByRole("button", { name: "Try again" }).waitFor();
  await leave(opened);
});

test("an answer that another engine cannot go on with goes on as text", needsChromium, async () => {
  const refused = { status: 400, body: { error: { message: "m", code: "fingerprint_mismatch", param: "fingerprint" } } };
  const cut = { steps: [text("One ", [5]), { cut: true } as Step] };
  const opened = await scripted([cut, refused, { steps: [text("two."), ...end()] }]);
  await ask(opened.page, "count");
  await seen(opened.page, "One two.");
  const messages = (await asked(opened.page)).at(-1)!["messages"] as unknown[];
  assert.deepEqual(messages.at(-1), { role: "assistant", content: "One " });
  await leave(opened);
});

test("a chat that is too long can leave out its older messages", needsChromium, async () => {
  const good = { steps: [text("Yes."), ...end()] };
  const long = failure(400, "context_length_exceeded", "The prompt has 5000 tokens, the context 1024.");
  const opened = await scripted([good, good, long, good]);
  const { page } = opened;
  for (const question of ["first", "second"]) {
    await ask(page, question);
    await page.locator(".figures").nth(question === "first" ? 0 : 1).waitFor();
  }
  await ask(page, "third");
  await seen(page, "This chat is longer than the model can read.");
  await seen(page, "The prompt has 5000 tokens");
  await page.getByRole("button", { name: "Leave out older messages" }).click();
  await page.locator(".figures").nth(2).waitFor();
  const sent = (await asked(page)).map((body) => (body["messages"] as unknown[]).length);
  assert.deepEqual(sent, [1, 3, 5, 2]);
  await seen(page, "The model does not read the messages above.");
  await leave(opened);
});

test("older messages can be left out only where there are some", needsChromium, async () => {
  const long = failure(400, "context_length_exceeded", "The prompt has 5000 tokens, the context 1024.");
  const opened = await scripted([long]);
  const { page } = opened;
  await ask(page, "a very long question");
  await seen(page, "This chat is longer than the model can read.");
  await page.getByRole("button", { name: "New chat" }).last().waitFor();
  assert.equal(await page.getByRole("button", { name: "Leave out older messages" }).count(), 0);
  await leave(opened);
});

test("a call is a card whose result is typed", needsChromium, async () => {
  const call = { index: 0, id: "c1", function: { name: "get_weather", arguments: '{"city":"Paris"}' } };
  const delta: Step = { data: { choices: [{ index: 0, delta: { tool_calls: [call] }, token_ids: [1] }] } };
  const opened = await scripted([{ steps: [delta, ...end("tool_calls")] }, { steps: [text("It is sunny."), ...end()] }]);
  const { page } = opened;
  await ask(page, "weather?");
  await page.getByLabel("Result of get_weather").fill("sunny");
  await page.getByRole("button", { name: "Send the result" }).click();
  await seen(page, "It is sunny.");
  const messages = (await asked(page))[1]!["messages"] as Record<string, unknown>[];
  assert.deepEqual(messages.at(-1), { role: "tool", content: "sunny", tool_call_id: "c1" });
  assert.equal(await page.locator(".call pre").first().innerText(), '{\n  "city": "Paris"\n}');
  await leave(opened);
});

test("thinking is folded", needsChromium, async () => {
  const opened = await scripted([{ steps: [thought("Let me see."), text("Yes."), ...end()] }]);
  const { page } = opened;
  await ask(page, "hi");
  await seen(page, "Yes.");
  assert.equal(await page.getByText("Let me see.").isVisible(), false);
  await page.getByText(/Thought for/).click();
  await page.getByText("Let me see.").waitFor();
  await leave(opened);
});

test("code is coloured and formulas are set, under the policy of the page", needsChromium, async () => {
  const words = "```python\ndef f():\n    return 1\n```\n\n$$\\frac{a}{\\color{red}{b}} \\begin{pmatrix}1&2\\end{pmatrix}$$\n";
  const opened = await scripted([{ steps: [text(words), ...end()] }]);
  const { page } = opened;
  await ask(page, "hi");
  await page.locator(".hljs-keyword").first().waitFor();
  await page.locator("math mfrac").waitFor();
  const colour = await page.locator("math [style*=color]").first().evaluate((found) => getComputedStyle(found).color);
  assert.equal(colour, "rgb(255, 0, 0)");
  assert.equal(await page.locator("[data-style]").count(), 0);
  await leave(opened);
});

test("links open elsewhere, and tables and lists keep what they are given", needsChromium, async () => {
  const words = "[a](https://x.example)\n\n| n |\n| --: |\n| 1 |\n\n3. three\n";
  const opened = await scripted([{ steps: [text(words), ...end()] }]);
  const { page } = opened;
  await ask(page, "hi");
  const link = page.getByRole("link", { name: "a", exact: true });
  assert.equal(await link.getAttribute("target"), "_blank");
  assert.equal(await link.getAttribute("rel"), "noopener noreferrer nofollow");
  assert.equal(await page.locator("td").getAttribute("align"), "right");
  assert.equal(await page.locator(".markdown ol").getAttribute("start"), "3");
  await leave(opened);
});

test("sentences are announced whole", needsChromium, async () => {
  const steps: Step[] = [text("This is a sen"), { pause: 1700 }, text("tence. And an"), { pause: 200 }, text("other one.")];
  const opened = await scripted([{ steps: [...steps, ...end()] }]);
  const { page } = opened;
  await page.evaluate(() => {
    const said: string[] = [];
    const region = document.querySelector("[aria-live]")!;
    new MutationObserver(() => said.push(region.textContent.trim())).observe(region, {
      childList: true,
      characterData: true,
      subtree: true,
    });
    Object.assign(window, { said });
  });
  await ask(page, "hi");
  await page.locator(".figures").waitFor();
  const said = await page.evaluate(() => (window as unknown as { said: string[] }).said);
  assert.deepEqual(said.filter(Boolean), ["This is a sentence.", "And another one. The answer is complete."]);
  await leave(opened);
});

test("a text file that is added is sent with the message, another file is refused", needsChromium, async () => {
  const opened = await scripted([{ steps: [text("Read."), ...end()] }]);
  const { page } = opened;
  await page.getByLabel("Text files", { exact: true }).setInputFiles([
    { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("some notes") },
    { name: "photo.png", mimeType: "image/png", buffer: Buffer.from([137, 80, 78, 71, 0, 255]) },
  ]);
  await seen(page, /photo.png is not a text file/);
  await ask(page, "summarize");
  await seen(page, "Read.");
  const messages = (await asked(page))[0]!["messages"] as { content: string }[];
  assert.equal(messages[0]!.content, "File notes.txt:\n```\nsome notes\n```\n\nsummarize");
  await leave(opened);
});

test("a chat that another tab changes is changed here too", needsChromium, async () => {
  const opened = await scripted([{ steps: [text("Yes."), ...end()] }]);
  const { page } = opened;
  await ask(page, "first");
  await page.locator(".figures").waitFor();
  const other = await page.context().newPage();
  await other.goto(page.url());
  await ask(other, "second");
  await page.getByText("second", { exact: true }).waitFor();
  await page.locator(".figures").nth(1).waitFor();
  await leave(opened);
});

test("a setting that is wrong is said before anything is sent", needsChromium, async () => {
  const opened = await scripted([{ steps: [text("Yes."), ...end()] }]);
  const { page } = opened;
  await page.getByRole("button", { name: "Parameters" }).click();
  await page.getByLabel("Answer as JSON of this schema").fill("{");
  await seen(page, /The schema is not JSON/);
  await ask(page, "hi");
  assert.deepEqual(await asked(page), []);
  await page.getByLabel("Answer as JSON of this schema").fill('{"type": "object"}');
  await ask(page, "hi");
  await seen(page, "Yes.");
  await leave(opened);
});

test("a wrong number is told, and another one is not sent instead", needsChromium, async () => {
  const opened = await fake.visit();
  const { page } = opened;
  const bodies: { max_tokens?: number }[] = [];
  page.on("request", (request) => {
    if (request.url().endsWith("/chat/completions")) bodies.push(request.postDataJSON() as { max_tokens?: number });
  });
  await page.getByRole("button", { name: "Parameters", exact: true }).click();
  const longest = page.getByLabel("Longest answer, in tokens");
  for (const wrong of ["2.5", "-5", "0", "many"]) {
    await longest.fill("7");
    await longest.fill(wrong);
    await page.getByText("Give a whole number, 1 or more.").waitFor();
    assert.equal(await longest.inputValue(), wrong);
  }
  await page.getByLabel("Message", { exact: true }).fill("Hi");
  await page.getByLabel("Message", { exact: true }).press("Enter");
  await page.locator(".message.answer[aria-busy=false]").waitFor();
  assert.deepEqual(bodies.map(({ max_tokens }) => max_tokens), [undefined]);
  await leave(opened);
});
