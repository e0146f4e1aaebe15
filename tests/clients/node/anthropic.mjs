// Tests with Anthropic's client for Node: messages whole and streamed, tools, counts, errors.
import assert from "node:assert/strict";
import test from "node:test";
import Anthropic from "@anthropic-ai/sdk";

const baseURL = process.env.UNDERSTUDY_URL.replace(/\/v1$/, "");
const client = new Anthropic({ baseURL, apiKey: "none", maxRetries: 0 });
const story = [{ role: "user", content: "Tell me a story." }];
const time = [{ role: "user", content: "What time is it in Paris?" }];
const asked = { model: "demo", temperature: 0, max_tokens: 60 };

test("a stream adds up to the answer", async () => {
  const whole = await client.messages.create({ ...asked, messages: story });
  const streamed = await client.messages.stream({ ...asked, messages: story }).finalMessage();
  assert.equal(streamed.content[0].text, whole.content[0].text);
  assert.equal(streamed.usage.output_tokens, whole.usage.output_tokens);
});

test("a tool is called and its result is used", async () => {
  const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
  const tools = [{ name: "get_time", description: "The time in a city", input_schema: schema }];
  const fields = { ...asked, tools };
  const answer = await client.messages.stream({ ...fields, messages: time }).finalMessage();
  const [use] = answer.content;
  assert.deepEqual([use.name, use.input], ["get_time", { city: "Paris" }]);
  const result = { type: "tool_result", tool_use_id: use.id, content: '{"time": "14:05"}' };
  const messages = [
    ...time,
    { role: "assistant", content: answer.content },
    { role: "user", content: [result] },
  ];
  const final = await client.messages.create({ ...fields, messages });
  assert.match(final.content[0].text, /14:05/);
});

test("tokens are counted and errors are exceptions", async () => {
  const counted = await client.messages.countTokens({ model: "demo", messages: story });
  assert.ok(counted.input_tokens > 5);
  const wrong = client.messages.create({ ...asked, model: "none", messages: story });
  await assert.rejects(wrong, Anthropic.NotFoundError);
});
