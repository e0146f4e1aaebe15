/** One of the two answers of a race. */
import { postStream } from "../../api/client.ts";
import type { Chunk, Timings } from "../../api/types.ts";
import { readComment } from "../../chat/waiting.ts";
import { AnswerTrace } from "../../paint/trace.ts";
import type { TracedChoice } from "../../paint/types.ts";
import { several } from "../../units.ts";

export class Lane {
  readonly trace = new AnswerTrace();
  readonly ids: number[] = [];
  timings: Timings | null = null;
  /** What is waited for, in words. */
  note = "";
  isOver = false;

  constructor(readonly isDrafted: boolean) {}

  /** Return the passes that brought tokens. */
  get passes(): number {
    return this.timings?.passes ?? this.trace.passes.filter((pass) => pass.tokens > 0).length;
  }

  /** Return the figures of the lane, as far as they are known. */
  get figures(): string {
    if (this.ids.length === 0 && !this.isOver) return "waiting for the first token";
    const { passes } = this;
    const known = [`${several(this.ids.length, "token")} in ${several(passes, "pass")}`];
    const each = this.timings?.tokens_per_pass ?? (passes ? this.ids.length / passes : null);
    if (each !== null) known.push(`${each.toFixed(1)} a pass`);
    if (this.timings) known.push(`${this.timings.predicted_per_second.toFixed(1)} tokens/s`);
    return known.join(", ");
  }

  /** Run the lane to its end. The question is the request of both lanes; `onChange` is called for each chunk. */
  async run(question: Record<string, unknown>, signal: AbortSignal, onChange: () => void): Promise<void> {
    const body = {
      ...question,
      stream: true,
      stream_options: { include_usage: true },
      return_token_ids: true,
      provenance: "tree",
      ...(this.isDrafted ? {} : { speculation: { method: "none" } }),
    };
    for await (const item of postStream("v1/chat/completions", body, { signal })) {
      if (item.kind === "comment") this.note = readComment(item.text)?.text ?? this.note;
      else this.#add(item.data as Chunk);
      onChange();
    }
    this.isOver = true;
    this.note = "";
    onChange();
  }

  #add(chunk: Chunk): void {
    this.timings = chunk.timings ?? this.timings;
    for (const choice of chunk.choices) {
      this.note = "";
      this.ids.push(...(choice.token_ids ?? []));
      this.trace.add(choice as TracedChoice);
    }
  }
}
