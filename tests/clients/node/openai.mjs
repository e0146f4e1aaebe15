// Tests with OpenAI's client for Node: chat, parsed answers, tools, completions, responses, errors.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.UNDERSTUDY_URL, apiKey: "none", maxRetries: 0 });
const story = [{ role: "user", content: "Tell me a story." }];
const time = [{ role: "user", content: "What time is it in Paris?" }];
const asked = { model: "demo", temperature: 0, max_completion_tokens: 60 };

test("a stream adds up to the answer", async () => {
  const whole = await client.chat.completions.create({ ...asked, messages: story });
  const options = { stream_options: { include_usage: true } };
  const stream = client.chat.completions.stream({ ...asked, ...options, messages: story });
  assert.equal(await stream.finalContent(), whole.choices[0].message.content);
  assert.equal((await stream.totalUsage()).total_tokens, whole.usage.total_tokens);
});

test("an answer is parsed", async () => {
  const pet = z.object({ name: z.enum(["Ada", "Bo"]), age: z.number().int().nullable() });
  const answer = await client.chat.completions.parse({
    ...asked,
    temperature: 1,
    messages: story,
    response_format: zodResponseFormat(pet, "pet"),
  });
  pet.parse(answer.choices[0].message.parsed);
});

for (const stream of [false, true]) {
  test(`a tool is run and its result is used, ${stream ? "streamed" : "whole"}`, async () => {
    const cities = [];
    const getTime = zodFunction({
      name: "get_time",
      description: "The time in a city",
      parameters: z.object({ city: z.string() }),
      function: ({ city }) => {
        cities.push(city);
        return JSON.stringify({ time: "14:05" });
      },
    });
    const runner = client.chat.completions.runTools({
      ...asked,
      stream,
      messages: time,
      tools: [getTime],
    });
    assert.match(await runner.finalContent(), /14:05/);
    assert.deepEqual(cities, ["Paris"]);
  });
}

test("a text is continued", async () => {
  const fields = { model: "demo", prompt: "Once", temperature: 0 };
  const whole = await client.completions.create(fields);
  let text = "";
  for await (const chunk of await client.completions.create({ ...fields, stream: true })) {
    text += chunk.choices[0].text;
  }
  assert.equal(text, whole.choices[0].text);
});

test("a response is made and streamed", async () => {
  const fields = { model: "demo", input: story, temperature: 0, max_output_tokens: 20 };
  const whole = await client.responses.create(fields);
  const streamed = await client.responses.stream(fields).finalResponse();
  assert.equal(streamed.output_text, whole.output_text);
  assert.equal(whole.status, "incomplete");
});

test("models are listed and errors are exceptions", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes("demo"));
  for (const stream of [false, true]) {
    await assert.rejects(
      client.chat.completions.create({ model: "none", messages: story, stream }),
      (error) =>
        error instanceof OpenAI.NotFoundError &&
        error.code === "model_not_found" &&
        error.param === "model",
    );
  }
});
