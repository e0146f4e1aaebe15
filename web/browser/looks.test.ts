/** The page in both themes and at all widths: pictures to look at, and no violation that axe finds. */
import { test } from "node:test";

import type { Page } from "playwright-core";

import { look, WIDTHS } from "./axe.ts";
import { leave, needsChromium, sharedFake, type Visit, withServer } from "./harness.ts";
import { end, failure, scriptAnswers, type Step, text, thought } from "./scripted.ts";


const RICH = `Here is **what it does**, with \`code\` and a [link](https://x.example).

## A list

1. It reads the weights once.
2. It checks many drafted tokens.
   - at most 64 rows
   - for all requests at once

> The drafts change the speed only.

\`\`\`python
def add(a: int, b: int) -> int:
    """Return the sum."""
    return a + b  # and a comment that is longer than a narrow screen is wide
\`\`\`

| method | tokens a pass | source |
| :-- | --: | --- |
| subspec | 11.6 | 4-bit copies of the layers |
| ngram | 1.3 | earlier text |

The expected length is $E = \\sum_{k} p_k$, so

$$\\tau = \\frac{1 - \\alpha^{\\gamma + 1}}{1 - \\alpha}$$
`;

const fake = withServer(sharedFake);

async function ask(page: Page, question: string): Promise<void> {
  await page.getByLabel("Message", { exact: true }).fill(question);
  await page.keyboard.press("Enter");
}

/** What is looked at: a name, the scripts of its answers, and what the user does. */
const call = { index: 0, id: "c1", function: { name: "get_weather", arguments: '{"city":"Paris"}' } };
const calling: Step = { data: { choices: [{ index: 0, delta: { tool_calls: [call] }, token_ids: [1] }] } };
const SCENES: [name: string, answers: Parameters<typeof scriptAnswers>[1], act: (page: Page) => Promise<void>][] = [
  ["empty", [], async () => {}],
  [
    "answer",
    [{ steps: [thought("First I look at the question."), text(RICH), ...end()] }],
    async (page) => {
      await ask(page, "How does Understudy work, and how many tokens does it write in one pass?");
      await page.locator(".hljs-keyword").first().waitFor();
      await page.locator("math").nth(1).waitFor();
      await page.locator(".message-tools .figures").waitFor();
    },
  ],
  [
    "call",
    [{ steps: [calling, ...end("tool_calls")] }],
    async (page) => {
      await ask(page, "What is the weather in Paris?");
      await page.getByLabel("Result of get_weather").waitFor();
    },
  ],
  [
    "waiting",
    [{ steps: [{ comment: "prompt 8192 of 21340" }, { pause: 60_000 }] }],
    async (page) => {
      await ask(page, "Read this long text.");
      await page.getByText(/8,192 of 21,340/).waitFor();
    },
  ],
  [
    "problem",
    [failure(400, "context_length_exceeded", "The prompt has 5,000 tokens, and the context of the model has 1,024.")],
    async (page) => {
      await ask(page, "Read this text, which is longer still.");
      await page.locator(".problem").waitFor();
    },
  ],
  [
    "parameters",
    [{ steps: [text("A short answer."), ...end("length")] }],
    async (page) => {
      await ask(page, "What is Understudy?");
      await page.getByRole("button", { name: "Continue" }).waitFor();
      await page.getByRole("button", { name: "Parameters", exact: true }).click();
      await page.getByLabel("Tools").waitFor();
    },
  ],
  [
    "list",
    [{ steps: [text("Yes."), ...end()] }],
    async (page) => {
      await ask(page, "A question with a title that is too long for the list of chats");
      await page.locator(".figures").waitFor();
      const opener = page.getByRole("button", { name: "List of chats" });
      if (await opener.isVisible()) await opener.click();
      await page.getByRole("button", { name: "Actions of" }).click();
      await page.getByRole("menuitem", { name: "Rename" }).waitFor();
    },
  ],
];

for (const [name, answers, act] of SCENES) {
  test(`${name}: both themes, all widths`, needsChromium, async () => {
    for (const width of WIDTHS) {
      const viewport = { width, height: width < 500 ? 700 : 800 };
      const prepare = (context: Parameters<typeof scriptAnswers>[0]): Promise<unknown> => scriptAnswers(context, answers);
      const opened: Visit = await fake.visit({ viewport, prepare });
      const { page } = opened;
      await act(page);
      await look(page, `${name}-${width}`);
      await leave(opened);
    }
  });
}

test("the dialogs pass too", needsChromium, async () => {
  const prepare = (context: Parameters<typeof scriptAnswers>[0]): Promise<unknown> =>
    scriptAnswers(context, [failure(401, "invalid_api_key", "A valid API key is required.")]);
  const opened = await fake.visit({ viewport: { width: 320, height: 600 }, prepare });
  const { page } = opened;
  await ask(page, "hi");
  await page.getByRole("dialog").waitFor();
  await look(page, "key-320");
  await leave(opened);
});
