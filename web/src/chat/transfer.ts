/** Chats as files: export, and import of what may have been changed by hand or made by others. */
import { checkedPaint } from "../paint/stored.ts";
import { type Answer, type Chat, DEFAULTS, type Message, newAnswer, newId, type Settings, type TextFile } from "./model.ts";

const FORMAT = "understudy-chats";
const VERSION = 1;

/** Return chats as the text of a file. */
export function exportChats(chats: readonly Chat[]): string {
  return `${JSON.stringify({ format: FORMAT, version: VERSION, chats }, null, 1)}\n`;
}

/** Return the chats in the text of a file, with new ids. Throw an `Error` that says what is wrong. */
export function importChats(text: string): Chat[] {
  let file: unknown;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON.");
  }
  const found = record(file);
  if (found["format"] !== FORMAT) throw new Error("The file has no chats of Understudy.");
  if (found["version"] !== VERSION) throw new Error("The file was written by another version.");
  if (!Array.isArray(found["chats"])) throw new Error("The file has no list of chats.");
  return found["chats"].map((chat: unknown, index) => readChat(record(chat), `chat ${index + 1}`));
}

function readChat(from: Fields, where: string): Chat {
  const messages = Object.fromEntries(
    Object.values(record(from["messages"])).map((value) => {
      const message = readMessage(record(value), where);
      return [message.id, message];
    }),
  );
  for (const message of Object.values(messages)) checkParents(message, messages, where);
  const chosen = Object.entries(record(from["chosen"])).filter(
    (entry): entry is [string, string] => typeof entry[1] === "string" && Object.hasOwn(messages, entry[1]),
  );
  return {
    id: newId(),
    title: text(from["title"]) || "Imported chat",
    isNamed: from["isNamed"] === true,
    created: number(from["created"]) ?? Date.now(),
    updated: number(from["updated"]) ?? Date.now(),
    settings: readSettings(record(from["settings"])),
    messages,
    chosen: Object.fromEntries(chosen),
    skipped: Math.max(0, Math.floor(number(from["skipped"]) ?? 0)),
  };
}

function checkParents(message: Message, messages: Record<string, Message>, where: string): void {
  const seen = new Set<string>();
  for (let at: Message | undefined = message; at.parent !== null; ) {
    if (seen.has(at.id)) throw new Error(`The messages of ${where} follow each other in a circle.`);
    seen.add(at.id);
    const parent: Message | undefined = Object.hasOwn(messages, at.parent) ? messages[at.parent] : undefined;
    if (parent === undefined) throw new Error(`A message of ${where} follows one that is missing.`);
    at = parent;
  }
}

function readMessage(from: Fields, where: string): Message {
  const { id, role } = from;
  if (typeof id !== "string" || id === "" || id === "__proto__") throw new Error(`A message of ${where} has no id.`);
  if (role !== "user" && role !== "assistant" && role !== "tool") {
    throw new Error(`A message of ${where} has the unknown role ${JSON.stringify(role)}.`);
  }
  const message: Message = {
    id,
    parent: typeof from["parent"] === "string" ? from["parent"] : null,
    role,
    text: text(from["text"]),
    created: number(from["created"]) ?? 0,
  };
  if (Array.isArray(from["files"])) message.files = from["files"].map((file) => readFile(record(file)));
  if (typeof from["callId"] === "string") message.callId = from["callId"];
  if (role === "assistant" && from["answer"]) message.answer = readAnswer(record(from["answer"]));
  return message;
}

function readAnswer(from: Fields): Answer {
  const sent = record(from["sent"]);
  const answer = newAnswer({
    model: optionalText(sent["model"]),
    system: text(sent["system"]),
    skipped: Math.max(0, Math.floor(number(sent["skipped"]) ?? 0)),
    fields: record(sent["fields"]),
  });
  const calls = Array.isArray(from["calls"]) ? from["calls"].map(record) : [];
  return {
    ...answer,
    model: optionalText(from["model"]),
    reasoning: text(from["reasoning"]),
    reasoningSeconds: number(from["reasoningSeconds"]) ?? 0,
    calls: calls.map((call) => ({
      id: text(call["id"]),
      name: text(call["name"]),
      arguments: text(call["arguments"]),
    })),
    end: from["end"] === "length" || from["end"] === "tool_calls" ? from["end"] : "stop",
    // an imported answer goes on as text: its ids may belong to another model
    ids: [],
    paint: checkedPaint(from["paint"]),
  };
}

function readSettings(from: Fields): Settings {
  const thinking = from["thinking"];
  return {
    ...DEFAULTS,
    model: optionalText(from["model"]),
    system: text(from["system"]),
    temperature: number(from["temperature"]),
    topP: number(from["topP"]),
    maxTokens: number(from["maxTokens"]),
    seed: number(from["seed"]),
    thinking: thinking === "on" || thinking === "off" ? thinking : "default",
    schema: text(from["schema"]),
    tools: text(from["tools"]),
  };
}

function readFile(from: Fields): TextFile {
  return { name: text(from["name"]) || "file", text: text(from["text"]) };
}

type Fields = Record<string, unknown>;

function record(value: unknown): Fields {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Fields) : {};
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function optionalText(value: unknown): string | null {
  return typeof value === "string" ? value : null;
}

function number(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}
