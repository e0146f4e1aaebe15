/** Save an answer as one file with its paint. */
import type { Answer } from "../chat/model.ts";
import { saveFile } from "../files.ts";
import type { AnswerTrace } from "../paint/trace.ts";
import { documentOf } from "./document.ts";

/** @param messages those before the answer, as they were sent */
export function saveAnswer(messages: readonly Record<string, unknown>[], answer: Answer, trace: AnswerTrace): void {
  const model = answer.model ?? "a model";
  const date = new Date();
  const text = documentOf({
    messages: messages.map(({ role, content }) => ({ role: String(role), content: textOf(content) })),
    trace,
    model,
    date,
    figures: figuresOf(answer),
  });
  saveFile(`${fileName(model)}-${date.toISOString().slice(0, 10)}.html`, text, "text/html");
}

function textOf(content: unknown): string {
  return typeof content === "string" ? content : "";
}

function figuresOf({ figures, fingerprint }: Answer): [string, string][] {
  const known: [string, string][] = [];
  if (figures !== null) {
    known.push(["Tokens", String(figures.tokens)]);
    known.push(["Tokens a second", figures.tokensPerSecond.toFixed(1)]);
    known.push(["Tokens a pass", figures.tokensPerPass.toFixed(1)]);
    if (figures.seed !== null) known.push(["Seed", String(figures.seed)]);
  }
  if (fingerprint !== null) known.push(["Fingerprint", fingerprint]);
  return known;
}

function fileName(model: string): string {
  return model.replace(/[^\w.-]+/g, "-").slice(0, 60);
}
