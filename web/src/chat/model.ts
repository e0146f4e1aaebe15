/** The data of chats, as they are kept in the browser and exported. */
import type { StoredPaint } from "../paint/stored.ts";

/** A message. The messages of a chat are a tree: those with the same parent are alternatives. */
export interface Message {
  id: string;
  /** The message before it, null for the first of a chat. */
  parent: string | null;
  role: "user" | "assistant" | "tool";
  text: string;
  /** Milliseconds since 1970. */
  created: number;
  /** Of a user's message: the text files that were dropped into it. */
  files?: TextFile[];
  /** Of a tool's result: the id of the call. */
  callId?: string;
  /** Of an assistant's message that a model wrote. */
  answer?: Answer;
}

export interface TextFile {
  name: string;
  text: string;
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

/** How an answer ended: as the model chose, by the user, by a broken connection, or by an error. */
export type End = "stop" | "length" | "tool_calls" | "stopped" | "cut" | "failed";

/** What an answer was asked for with, besides the messages before it. */
export interface Sent {
  model: string | null;
  system: string;
  /** How many of the first messages were left out. */
  skipped: number;
  /** The fields of the request that are not messages. */
  fields: Record<string, unknown>;
}

/** A failure, in the words of the server. */
export interface Problem {
  message: string;
  code: string | null;
  status: number;
  /** The field of the request that is wrong. */
  param: string | null;
}

export interface Answer {
  sent: Sent;
  /** What the answer began with when the model went on with a text that it did not write. */
  begun: Begun | null;
  /** The model that answered. */
  model: string | null;
  reasoning: string;
  /** Seconds for which the model wrote reasoning. */
  reasoningSeconds: number;
  calls: ToolCall[];
  /** Null while the answer is being written. */
  end: End | null;
  problem: Problem | null;
  /** All token ids so far. They and the seed are enough to go on with the answer. */
  ids: number[];
  /** What the ids cover of the answer: what came after them comes again when it goes on. */
  covered: Covered;
  fingerprint: string | null;
  /** Tokens per second and per pass, as the server reports them at the end. */
  figures: Figures | null;
  /** What proposed its tokens; null where that is not known. */
  paint: StoredPaint | null;
}

export interface Begun {
  text: string;
  reasoning: string;
}

export interface Covered {
  text: number;
  reasoning: number;
  /** The length of the arguments of each call. */
  calls: number[];
}

export interface Figures {
  tokens: number;
  promptTokens: number;
  tokensPerSecond: number;
  tokensPerPass: number;
  seed: number | null;
  resumed: number;
}

/** The parameters of a chat; null means the model's own default. */
export interface Settings {
  model: string | null;
  system: string;
  temperature: number | null;
  topP: number | null;
  maxTokens: number | null;
  seed: number | null;
  thinking: "default" | "on" | "off";
  /** A JSON schema, as typed; empty for none. */
  schema: string;
  /** A JSON list of tools, as typed; empty for none. */
  tools: string;
}

export interface Chat {
  id: string;
  title: string;
  /** Whether the user chose the title. */
  isNamed: boolean;
  created: number;
  updated: number;
  settings: Settings;
  messages: Record<string, Message>;
  /** The alternative that is shown, by the id of the parent ("" for the first message). */
  chosen: Record<string, string>;
  /** How many of the first messages are not sent to the model. */
  skipped: number;
}

export const DEFAULTS: Settings = {
  model: null,
  system: "",
  temperature: null,
  topP: null,
  maxTokens: null,
  seed: null,
  thinking: "default",
  schema: "",
  tools: "",
};

const TITLE_LENGTH = 60;

export function newId(): string {
  // crypto.randomUUID is missing on pages that came over plain HTTP from another machine
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newChat(settings: Settings): Chat {
  const now = Date.now();
  return {
    id: newId(),
    title: "New chat",
    isNamed: false,
    created: now,
    updated: now,
    settings: { ...settings },
    messages: {},
    chosen: {},
    skipped: 0,
  };
}

export function newAnswer(sent: Sent): Answer {
  return {
    sent,
    begun: null,
    model: null,
    reasoning: "",
    reasoningSeconds: 0,
    calls: [],
    end: null,
    problem: null,
    ids: [],
    covered: { text: 0, reasoning: 0, calls: [] },
    fingerprint: null,
    figures: null,
    paint: null,
  };
}

/** Return a title that says what a first message is about. */
export function titleOf(text: string, files: readonly TextFile[] = []): string {
  const line = text.trim().split("\n")[0]?.trim() || files[0]?.name || "New chat";
  const characters = [...line];
  return characters.length <= TITLE_LENGTH ? line : `${characters.slice(0, TITLE_LENGTH - 1).join("").trimEnd()}…`;
}
