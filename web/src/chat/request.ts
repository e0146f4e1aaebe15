/** The bodies of requests, made of the messages and settings of a chat. */
import type { Answer, Begun, Message, Sent, Settings, TextFile } from "./model.ts";

/** A setting that cannot be sent. */
export class SettingError extends Error {
  override readonly name = "SettingError";

  constructor(
    message: string,
    readonly setting: keyof Settings,
  ) {
    super(message);
  }
}

const SEEDS = 2 ** 31;

export function drawSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0]! % SEEDS;
}

/** Return what to ask for an answer with. Throw `SettingError` for JSON that is none. */
export function sentFrom(settings: Settings, skipped: number): Sent {
  const fields: Record<string, unknown> = { seed: settings.seed ?? drawSeed() };
  if (settings.temperature !== null) fields["temperature"] = settings.temperature;
  if (settings.topP !== null) fields["top_p"] = settings.topP;
  if (settings.maxTokens !== null) fields["max_tokens"] = settings.maxTokens;
  if (settings.thinking !== "default") fields["enable_thinking"] = settings.thinking === "on";
  const schema = parseSchema(settings.schema);
  if (schema !== null) {
    fields["response_format"] = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  const tools = parseTools(settings.tools);
  if (tools.length > 0) fields["tools"] = tools;
  return { model: settings.model, system: settings.system.trim(), skipped, fields };
}

/** Return the schema in a text, null for an empty text. */
export function parseSchema(text: string): Record<string, unknown> | null {
  if (!text.trim()) return null;
  const schema = parse(text, "schema", "The schema");
  if (!isObject(schema)) throw new SettingError("The schema is not a JSON object.", "schema");
  return schema;
}

/** Return the tools in a text: a list of OpenAI's tools, or of their functions alone. */
export function parseTools(text: string): Record<string, unknown>[] {
  if (!text.trim()) return [];
  const parsed = parse(text, "tools", "The list of tools");
  const list: unknown[] = Array.isArray(parsed) ? parsed : [parsed];
  return list.map((tool, index) => {
    const described = isObject(tool) && "function" in tool ? tool["function"] : tool;
    if (!isObject(described) || typeof described["name"] !== "string") {
      throw new SettingError(`Tool ${index + 1} has no name.`, "tools");
    }
    return { type: "function", function: described };
  });
}

function parse(text: string, setting: keyof Settings, what: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SettingError(`${what} is not JSON: ${(error as Error).message}`, setting);
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * Return the body of a request for an answer.
 *
 * @param path the messages before the answer
 * @param begun a text that the answer begins with, which the model goes on with
 */
export function bodyOf(path: readonly Message[], sent: Sent, begun: Begun | null): Record<string, unknown> {
  const messages = path.slice(sent.skipped).map(apiMessage);
  if (sent.system) messages.unshift({ role: "system", content: sent.system });
  if (begun) messages.push(begunMessage(begun));
  return {
    ...(sent.model === null ? {} : { model: sent.model }),
    ...sent.fields,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    return_token_ids: true,
  };
}

/** Return the fields that go on with an answer whose ids have arrived. */
export function continuing(answer: Answer): Record<string, unknown> {
  if (answer.ids.length === 0) return {};
  const fingerprint = answer.fingerprint === null ? {} : { fingerprint: answer.fingerprint };
  return { continue_tokens: { "0": answer.ids }, ...fingerprint };
}

function apiMessage(message: Message): Record<string, unknown> {
  if (message.role === "user") return { role: "user", content: withFiles(message.text, message.files ?? []) };
  if (message.role === "tool") return { role: "tool", content: message.text, tool_call_id: message.callId };
  const calls = message.answer?.calls ?? [];
  if (calls.length === 0) return { role: "assistant", content: message.text };
  const tool_calls = calls.map(({ id, name, arguments: given }) => ({
    id,
    type: "function",
    function: { name, arguments: given },
  }));
  return { role: "assistant", content: message.text || null, tool_calls };
}

function begunMessage({ text, reasoning }: Begun): Record<string, unknown> {
  return { role: "assistant", content: text, ...(reasoning ? { reasoning_content: reasoning } : {}) };
}

/** Return a message with its files, each in a block of code that nothing in it can close. */
export function withFiles(text: string, files: readonly TextFile[]): string {
  const blocks = files.map((file) => {
    const runs = file.text.match(/`{3,}/g) ?? [];
    const fence = "`".repeat(Math.max(3, ...runs.map((run) => run.length + 1)));
    return `File ${file.name}:\n${fence}\n${file.text.replace(/\n$/, "")}\n${fence}`;
  });
  return [...blocks, text].filter((part) => part.trim() !== "").join("\n\n");
}
