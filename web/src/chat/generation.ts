/** Answers that are being written: requests, waiting, retries, and going on after a break. */
import { type Signal, signal } from "@preact/signals";

import { getStream, postStream } from "../api/client.ts";
import { ApiError, isAbort } from "../api/errors.ts";
import type { Chunk, ServerStatus } from "../api/types.ts";
import { addToTrace, beginTrace, showTrace, storedPaint } from "../paint/traces.ts";
import { onLeave } from "../leaving.ts";
import { announce } from "../ui/announce.tsx";
import { applyChunk, beginWithText, copyOf, dropUncovered, reopen, type Written } from "./answer.ts";
import { change, update, withTitle } from "./chats.ts";
import { onNextFrame } from "./frames.ts";
import { type Begun, type Chat, type Message, newAnswer, newId, type Sent } from "./model.ts";
import { explain, problemOf, retryDelay } from "./problems.ts";
import { bodyOf, continuing } from "./request.ts";
import { Sentences } from "./sentences.ts";
import { pathTo, withChanged, withMessage } from "./tree.ts";
import { forgetUnsaved, keepUnsaved } from "./unsaved.ts";
import { readComment, readStatus, type Waiting } from "./waiting.ts";

const SAVE_MS = 1000; // between two copies of an unfinished answer in the database
const SPEAK_MS = 1500; // between two announcements
const WATCH_AFTER_MS = 600; // without a first token, before the server is asked what it does
const MOST_TRIES = 60; // without a new token in between

/** An answer that is being written. */
export interface Running {
  chatId: string;
  /** The answer so far, a new object at most once in each frame. */
  shown: Signal<Written>;
  /** What it waits for; null while tokens arrive. */
  waiting: Signal<Waiting | null>;
  stop: () => void;
  /** Keep the answer as it is now, and return that. */
  save: () => Written;
  /** Is resolved when the answer has ended and is kept. */
  ended: Promise<void>;
}

/** The answers that are being written, by the id of their message. */
export const running = signal<ReadonlyMap<string, Running>>(new Map());

/** Return the answer that is being written in a chat, if there is one. */
export function runningIn(chatId: string): Running | undefined {
  return [...running.value.values()].find((one) => one.chatId === chatId);
}

/**
 * Have a new answer written after a message of a chat.
 *
 * @param begun what the answer begins with
 */
export function answerAfter(chat: Chat, parent: string, sent: Sent, begun: Begun | null = null): void {
  const message = {
    id: newId(),
    parent,
    role: "assistant" as const,
    text: begun?.text ?? "",
    created: Date.now(),
    answer: { ...newAnswer(sent), reasoning: begun?.reasoning ?? "" },
  };
  beginWithText(message);
  void run(withTitle(withMessage(chat, message)), message);
}

/** Go on with an answer that has ended, from where it is. */
export function goOn(chat: Chat, message: Message): void {
  if (message.answer === undefined) return;
  const written = copyOf({ ...message, answer: message.answer });
  reopen(written);
  void run(withChanged(chat, copyOf(written)), written);
}

async function run(chat: Chat, message: Written): Promise<void> {
  let end: () => void = () => undefined;
  const writing = new Writing(chat, message, new Promise((resolve) => (end = resolve)));
  running.value = new Map(running.value).set(message.id, writing);
  await change(withChanged(chat, copyOf(message)));
  try {
    await writing.write();
  } finally {
    await update(chat.id, (now) => withChanged(now, toKeep(message)));
    forgetUnsaved(message.id);
    const others = new Map(running.value);
    others.delete(message.id);
    running.value = others;
    end();
  }
}

/** Return a copy of an answer that is to be kept. */
function toKeep(message: Written): Written {
  const copy = copyOf(message);
  copy.answer.paint = storedPaint(message);
  return copy;
}

/** Keep the answers that are being written: the page may be on its way out. */
function saveAll(): void {
  for (const writing of running.peek().values()) keepUnsaved(writing.chatId, writing.save());
}

onLeave(saveAll);

class Writing implements Running {
  readonly chatId: string;
  readonly shown: Signal<Written>;
  readonly waiting = signal<Waiting | null>({ text: "Waiting for the server", share: null });
  readonly #path: Message[];
  readonly #stopping = new AbortController();
  readonly #sentences = new Sentences();
  #tries = 0;
  #savedAt = Date.now();
  #spokenAt = Date.now();
  #reasoningSince: number | null = null;

  constructor(
    chat: Chat,
    private readonly message: Written,
    readonly ended: Promise<void>,
  ) {
    this.chatId = chat.id;
    this.shown = signal(copyOf(message));
    this.#path = pathTo(chat, message.parent);
  }

  stop = (): void => this.#stopping.abort();

  /** Write the answer to its end, through breaks that pass. */
  async write(): Promise<void> {
    const { answer } = this.message;
    for (;;) {
      try {
        await this.#readOnce();
        answer.end ??= "stop";
        break;
      } catch (error) {
        if (isAbort(error)) {
          answer.end = "stopped";
          break;
        }
        if (!(await this.#mayTryAgain(error))) break;
      }
    }
    this.waiting.value = null;
    this.#show();
    this.#announceEnd();
  }

  async #readOnce(): Promise<void> {
    const { answer } = this.message;
    const asked = bodyOf(this.#path, answer.sent, answer.begun);
    const body = { ...asked, ...continuing(answer), provenance: "tree" };
    beginTrace(this.message);
    const { signal: stopped } = this.#stopping;
    const watching = this.#watch();
    try {
      for await (const item of postStream("v1/chat/completions", body, { signal: stopped })) {
        if (item.kind === "comment") {
          this.waiting.value = readComment(item.text) ?? this.waiting.value;
          if (item.text.startsWith("prompt") || item.text.includes("restart")) watching.abort();
          continue;
        }
        this.#apply(item.data as Chunk);
        if (this.#hasTokens()) watching.abort();
      }
    } finally {
      watching.abort();
    }
    stopped.throwIfAborted();
  }

  /** Show the server's own status until the first token arrives or the result is aborted. */
  #watch(): AbortController {
    const watching = new AbortController();
    const timer = setTimeout(() => void this.#readStatus(watching.signal), WATCH_AFTER_MS);
    watching.signal.addEventListener("abort", () => clearTimeout(timer));
    return watching;
  }

  async #readStatus(aborted: AbortSignal): Promise<void> {
    try {
      for await (const item of getStream("v1/status?watch", { signal: aborted })) {
        if (aborted.aborted) return;
        if (item.kind === "data") this.waiting.value = readStatus(item.data as ServerStatus);
      }
    } catch {
      // the request for the answer fails too, and says why
    }
  }

  #hasTokens(): boolean {
    const { text, answer } = this.message;
    return text !== "" || answer.reasoning !== "" || answer.calls.length > 0;
  }

  #apply(chunk: Chunk): void {
    const { answer } = this.message;
    const before = answer.reasoning.length;
    applyChunk(this.message, chunk);
    addToTrace(this.message.id, chunk);
    if (answer.reasoning.length > before) {
      this.#reasoningSince ??= Date.now() - 1000 * answer.reasoningSeconds;
      answer.reasoningSeconds = (Date.now() - this.#reasoningSince) / 1000;
    }
    if (this.#hasTokens()) {
      this.#tries = 0;
      this.waiting.value = null;
    }
    onNextFrame(this.#show);
    this.#saveAndSpeak();
  }

  #show = (): void => {
    const { message } = this;
    this.shown.value = { ...message, answer: { ...message.answer } };
    showTrace(message.id);
  };

  /** Keep the answer as it is now, and return that. */
  save(): Written {
    const copy = toKeep(this.message);
    void update(this.chatId, (chat) => withChanged(chat, copy));
    return copy;
  }

  #saveAndSpeak(): void {
    const now = Date.now();
    if (now - this.#savedAt > SAVE_MS) {
      this.#savedAt = now;
      this.save();
    }
    if (now - this.#spokenAt > SPEAK_MS) {
      this.#spokenAt = now;
      const sentences = this.#sentences.next(this.message.text);
      if (sentences) announce(sentences);
    }
  }

  #announceEnd(): void {
    const { answer, text } = this.message;
    const rest = this.#sentences.rest(text);
    const ends: Record<string, string> = {
      stopped: "The answer was stopped.",
      length: "The answer has reached its limit.",
      tool_calls: "The model calls a tool. Type its result.",
      failed: answer.problem === null ? "" : explain(answer.problem).title,
    };
    announce(`${rest} ${ends[answer.end ?? ""] ?? "The answer is complete."}`.trim());
  }

  /** Wait until the request may be sent again. Return false for an error that stays. */
  async #mayTryAgain(error: unknown): Promise<boolean> {
    const { answer } = this.message;
    dropUncovered(this.message);
    this.#show();
    if (isRefusedContinuation(error) && answer.ids.length > 0 && answer.calls.length === 0) {
      beginWithText(this.message); // another engine may choose other tokens from here on
      return true;
    }
    const seconds = retryDelay(error, this.#tries++);
    if (seconds === null || this.#tries > MOST_TRIES) {
      answer.end = "failed";
      answer.problem = problemOf(error);
      return false;
    }
    return this.#countDown(explain(problemOf(error)).title, seconds);
  }

  /** Wait some seconds, and show how many are left. Return false if the user stops the answer. */
  async #countDown(why: string, seconds: number): Promise<boolean> {
    announce(`${why} It is tried again.`);
    const end = Date.now() + 1000 * seconds;
    for (let left = seconds; left > 0; left = (end - Date.now()) / 1000) {
      this.waiting.value = { text: `${why} Trying again in ${Math.ceil(left)} s`, share: null };
      await new Promise((resolve) => setTimeout(resolve, Math.min(250, 1000 * left)));
      if (this.#stopping.signal.aborted) {
        this.message.answer.end = "stopped";
        return false;
      }
    }
    this.waiting.value = { text: "Trying again", share: null };
    return true;
  }
}

function isRefusedContinuation(error: unknown): boolean {
  return (
    error instanceof ApiError &&
    error.status === 400 &&
    (error.param === "fingerprint" || error.param === "continue_tokens")
  );
}
