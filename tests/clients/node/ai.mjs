// Tests with Vercel's AI SDK: texts, streams, tools in several steps, objects, reasoning, completions.
import assert from "node:assert/strict";
import test from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const understudy = createOpenAICompatible({
  name: "understudy",
  baseURL: process.env.UNDERSTUDY_URL,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const asked = { model: understudy("demo"), temperature: 0, maxOutputTokens: 96, maxRetries: 0 };
const story = { ...asked, prompt: "Tell me a story." };

test("a stream adds up to the answer", async () => {
  const whole = await generateText(story);
  const streamed = streamText(story);
  assert.equal(await streamed.text, whole.text);
  assert.equal((await streamed.usage).totalTokens, whole.usage.totalTokens);
});

test("a tool is run between two steps", async () => {
  const getTime = tool({
    description: "The time in a city",
    inputSchema: z.object({ city: z.string() }),
    execute: async () => ({ time: "14:05" }),
  });
  const prompt = "What time is it in Paris?";
  const fields = { ...asked, prompt, tools: { get_time: getTime }, stopWhen: stepCountIs(3) };
  for (const answer of [await generateText(fields), streamText(fields)]) {
    assert.match(await answer.text, /14:05/);
    assert.equal((await answer.steps).length, 2);
  }
});

test("an object follows its schema", async () => {
  const schema = z.object({ name: z.enum(["Ada", "Bo"]), age: z.number() });
  const { output } = await generateText({ ...story, output: Output.object({ schema }) });
  schema.parse(output);
});

test("reasoning is separate from the answer", async () => {
  const answer = await generateText({
    ...asked,
    prompt: "What is 58 + 27?",
    providerOptions: { understudy: { reasoningEffort: "low" } },
  });
  assert.equal(answer.text, "58 + 27 = 85.");
  assert.match(answer.reasoningText, /^27 is 20 and 7/);
  assert.ok(answer.usage.outputTokenDetails.reasoningTokens > 0);
});

test("a text is continued", async () => {
  const model = understudy.completionModel("demo");
  assert.ok((await generateText({ ...asked, model, prompt: "Once" })).text);
});
