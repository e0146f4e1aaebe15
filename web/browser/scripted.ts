/** Answers of the server that are scripted inside the page: streams with pauses, errors, breaks. */
import type { BrowserContext } from "playwright-core";

export type Step =
  | { pause: number }
  | { comment: string }
  | { data: unknown }
  /** Marks the time, for a trace. */
  | { mark: string }
  /** Pauses, and then until the page has nothing to do. */
  | { idle: number }
  /** The connection breaks. */
  | { cut: true };

export interface Scripted {
  status?: number;
  headers?: Record<string, string>;
  /** The body of an answer that is no stream. */
  body?: unknown;
  steps?: Step[];
}

/** Return a step that brings text, with ids for its tokens. */
export function text(content: string, ids: number[] = [1]): Step {
  return { data: { model: "main", choices: [{ index: 0, delta: { content }, token_ids: ids }] } };
}

export function thought(reasoning_content: string): Step {
  return { data: { choices: [{ index: 0, delta: { reasoning_content }, token_ids: [1] }] } };
}

/** Return the steps that end an answer. */
export function end(finish_reason = "stop"): Step[] {
  const timings = { predicted_per_second: 5, tokens_per_pass: 2.5, passes: 4, seed: 11, resumed: 0 };
  const usage = { prompt_tokens: 3, completion_tokens: 10, total_tokens: 13 };
  return [
    { data: { choices: [{ index: 0, delta: {}, finish_reason, token_ids: [2] }] } },
    { data: { choices: [], usage, timings } },
    { data: "[DONE]" },
  ];
}

export function failure(status: number, code: string, message: string, headers: Record<string, string> = {}): Scripted {
  return { status, headers, body: { error: { message, code, param: null, type: "x" } } };
}

declare global {
  interface Window {
    /** The bodies of the requests for answers. */
    asked: Record<string, unknown>[];
  }
}

/** Have the requests for answers in a context answered by scripts, one after the other; the last stays. */
export function scriptAnswers(context: BrowserContext, answers: Scripted[], status?: unknown): Promise<unknown> {
  return context.addInitScript(
    ({ scripts, watched }) => {
      const real = window.fetch.bind(window);
      window.asked = [];
      const lines = (step: Record<string, unknown>): string => {
        if ("comment" in step) return `: ${step["comment"]}\n\n`;
        const { data } = step;
        return `data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`;
      };
      const stream = (steps: Step[], aborted: AbortSignal | null | undefined): ReadableStream<Uint8Array> =>
        new ReadableStream({
          async start(controller) {
            aborted?.addEventListener("abort", () => controller.error(new DOMException("aborted", "AbortError")));
            for (const step of steps) {
              if (aborted?.aborted) return;
              if ("pause" in step) await new Promise((resolve) => setTimeout(resolve, step.pause));
              else if ("idle" in step) {
                await new Promise((resolve) => setTimeout(resolve, step.idle));
                await new Promise((resolve) => requestIdleCallback(resolve));
              } else if ("mark" in step) performance.mark(step.mark);
              else if ("cut" in step) {
                await new Promise((resolve) => setTimeout(resolve, 100)); // what came before is read first
                return controller.error(new TypeError("network error"));
              }
              else controller.enqueue(new TextEncoder().encode(lines(step)));
            }
            if (!aborted?.aborted) controller.close();
          },
        });
      window.fetch = async (input, init) => {
        const url = String(input);
        if (watched && url.includes("v1/status")) {
          return new Response(stream([{ data: watched }, { pause: 60_000 }], init?.signal));
        }
        if (!url.includes("v1/chat/completions")) return real(input, init);
        window.asked.push(JSON.parse(String(init?.body)) as Record<string, unknown>);
        const script = scripts[Math.min(window.asked.length, scripts.length) - 1]!;
        const { status: code = 200, headers = {}, body, steps } = script;
        if (code === 0) throw new TypeError("Failed to fetch");
        const content = steps ? stream(steps, init?.signal) : JSON.stringify(body);
        return new Response(content, { status: code, headers });
      };
    },
    { scripts: answers, watched: status },
  );
}
