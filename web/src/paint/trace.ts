/** The tokens and passes of one answer, as they arrive. */
import { type Look, lookOf, type Share, sharesOf } from "./sources.ts";
import { type Part, SpanMapper } from "./spans.ts";
import { type KnownPaint, readPaint, type Run, storePaint, type StoredPaint } from "./stored.ts";
import type { AnswerPass, TokenOrigin, TracedChoice } from "./types.ts";

/** A stretch of text that looks the same. */
export interface Stretch {
  text: string;
  look: Look;
  /** Where it begins in the text. */
  start: number;
}

export class AnswerTrace {
  readonly tokens: TokenOrigin[] = [];
  readonly passes: AnswerPass[] = [];
  #mapper: SpanMapper;
  #texts: Record<Part, string>;
  #looks: Record<Part, (Look | undefined)[]> = { content: [], reasoning: [] };
  #counts: Map<string, number>; // of tokens, by source
  #waiting: TracedChoice[] = [];
  #passesBefore = 0; // of earlier requests for the same answer
  #kept: KnownPaint | null; // of what the answer begins with

  /**
   * @param begun what the answer begins with, of whose tokens no more is known than
   * @param kept the paint that was kept of it
   */
  constructor(
    begun: Readonly<Record<Part, string>> = { content: "", reasoning: "" },
    kept: StoredPaint | null = null,
  ) {
    this.#texts = { ...begun };
    this.#kept = kept && readPaint(kept, begun);
    this.#counts = new Map(this.#kept?.counts);
    this.#mapper = new SpanMapper({ content: begun.content.length, reasoning: begun.reasoning.length });
  }

  /**
   * Begin a request for the answer, which goes on with what was kept of an earlier one.
   *
   * Chunks count once one of them has token ids: those before it come again if the stream breaks.
   */
  begin(): void {
    this.#waiting = [];
    this.#passesBefore = this.passes.at(-1)?.pass ?? 0;
  }

  /** Add a choice of a chunk. */
  add(choice: TracedChoice): void {
    this.#waiting.push(choice);
    if (choice.token_ids?.length || choice.finish_reason) {
      for (const waiting of this.#waiting.splice(0)) this.#keep(waiting);
    }
  }

  #keep(choice: TracedChoice): void {
    const before = this.#passesBefore;
    const origins = (choice.provenance ?? []).map((own) => ({ ...own, pass: own.pass + before }));
    for (const origin of origins) {
      this.tokens.push(origin);
      this.#counts.set(origin.source, (this.#counts.get(origin.source) ?? 0) + 1);
    }
    for (const pass of choice.passes ?? []) this.passes.push({ ...pass, pass: pass.pass + before });
    const content = choice.delta.content ?? "";
    const reasoning = choice.delta.reasoning_content ?? "";
    this.#texts.content += content;
    this.#texts.reasoning += reasoning;
    this.#mapper.add(
      origins.map((origin) => origin.token),
      { content, reasoning },
    );
  }

  text(part: Part): string {
    return this.#texts[part];
  }

  /** Return how many tokens each source has, the most frequent first. */
  shares(): Share[] {
    return sharesOf(this.#counts);
  }

  /** Return the paint as it is kept with a chat; null where no token is known. */
  stored(): StoredPaint | null {
    return storePaint({
      counts: this.#counts,
      runs: { content: this.#runs("content"), reasoning: this.#runs("reasoning") },
    });
  }

  /** Return the stretches of one source. */
  #runs(part: Part): Run[] {
    const runs = (this.#kept?.runs[part] ?? []).map((run) => ({ ...run }));
    for (const { start, end, token } of this.#mapper.spans[part]) {
      const { source } = this.tokens[token]!;
      const last = runs.at(-1);
      if (last?.source === source && last.end === start) last.end = end;
      else runs.push({ start, end, source });
    }
    return runs;
  }

  /** Return the look of each character (UTF-16 unit) of a part; undefined where no token is known. */
  looksOf(part: Part): readonly (Look | undefined)[] {
    const looks = this.#looks[part];
    if (looks.length === 0) {
      for (const { start, end, source } of this.#kept?.runs[part] ?? []) {
        for (let at = start; at < end; at++) looks[at] = lookOf(source);
      }
    }
    for (const { start, end, token } of this.#mapper.takeNew(part)) {
      const look = lookOf(this.tokens[token]!.source);
      for (let at = start; at < end; at++) looks[at] = look;
    }
    return looks;
  }

  /** Return a part in stretches of one look; with `pass`, as far as it was known after this pass. */
  stretches(part: Part, pass = Infinity): Stretch[] {
    const text = this.#texts[part];
    const found: Stretch[] = [];
    let at = 0;
    const append = (end: number, look: Look): void => {
      const last = found.at(-1);
      if (end <= at) return;
      if (last?.look === look) last.text += text.slice(at, end);
      else found.push({ text: text.slice(at, end), look, start: at });
      at = end;
    };
    for (const { start, end, source } of this.#kept?.runs[part] ?? []) {
      append(start, "plain");
      append(end, lookOf(source));
    }
    for (const { start, end, token } of this.#mapper.spans[part]) {
      const origin = this.tokens[token]!;
      if (origin.pass > pass) return found;
      append(start, "plain"); // text of no known token
      append(end, lookOf(origin.source));
    }
    append(text.length, "plain");
    return found;
  }
}
