/**
 * Which token each character of an answer's text comes from.
 *
 * The texts of all tokens, joined, are all that the model has written: also marks around reasoning and
 * calls, which are no part of the text that is shown. So each piece of shown text is found among the
 * texts of the tokens that came with it. A token without text is a part of a character, or an end.
 */

export type Part = "content" | "reasoning";

/** Characters `start` to `end` (UTF-16 units) of a part, which come from one token. */
export interface Span {
  start: number;
  end: number;
  /** The number of the token. */
  token: number;
}

interface Pending {
  part: Part;
  text: string;
}

/** Text that no token was found for waits for later tokens, up to this length. */
const LONGEST_WAIT = 200;

export class SpanMapper {
  readonly spans: Record<Part, Span[]> = { content: [], reasoning: [] };
  #taken: Record<Part, number> = { content: 0, reasoning: 0 };
  #lengths: Record<Part, number>;
  #ends: number[] = []; // by token, the place in the joined text at which it ends
  #raw = ""; // the joined text of the tokens, from `#first` on
  #first = 0;
  #pending: Pending[] = [];

  /** @param lengths the characters of each part that come before the first token */
  constructor(lengths: Readonly<Record<Part, number>> = { content: 0, reasoning: 0 }) {
    this.#lengths = { ...lengths };
  }

  /** Return the spans of a part since the last call. */
  takeNew(part: Part): Span[] {
    const found = this.spans[part].slice(this.#taken[part]);
    this.#taken[part] = this.spans[part].length;
    return found;
  }

  /** Add a piece of an answer: the texts of its tokens, and what it shows of each part. */
  add(tokens: readonly string[], shown: Partial<Record<Part, string>>): void {
    for (const text of tokens) {
      this.#raw += text;
      this.#ends.push(this.#first + this.#raw.length);
    }
    for (const part of ["reasoning", "content"] as const) {
      const text = shown[part];
      if (text) this.#wait(part, text);
    }
    while (this.#pending[0] && this.#place(this.#pending[0])) this.#pending.shift();
  }

  #wait(part: Part, text: string): void {
    const last = this.#pending.at(-1);
    if (last?.part === part) last.text += text;
    else this.#pending.push({ part, text });
  }

  /** Give a text to its tokens. Return false while its end waits for a token. */
  #place(pending: Pending): boolean {
    const { part, text } = pending;
    const at = this.#raw.lastIndexOf(text);
    if (at >= 0) {
      this.#assign(part, at, text.length);
      return true;
    }
    const tail = startOfEnd(this.#raw, text);
    if (tail < this.#raw.length) {
      const length = this.#raw.length - tail;
      this.#assign(part, tail, length);
      pending.text = text.slice(length);
      return false;
    }
    if (text.length < LONGEST_WAIT) return false;
    this.#lengths[part] += text.length; // of no known token
    return true;
  }

  /** Give `length` characters of the joined text from `at` on to a part, and forget those before. */
  #assign(part: Part, at: number, length: number): void {
    const from = this.#first + at;
    const offset = this.#lengths[part] - from;
    let token = this.#tokenAt(from);
    for (let start = from; start < from + length; token++) {
      const end = Math.min(this.#ends[token]!, from + length);
      if (end > start) this.spans[part].push({ start: start + offset, end: end + offset, token });
      start = end;
    }
    this.#lengths[part] += length;
    this.#raw = this.#raw.slice(at + length);
    this.#first = from + length;
  }

  /** Return the number of the token that has the character at a place. */
  #tokenAt(place: number): number {
    let low = 0;
    let high = this.#ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#ends[middle]! <= place) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Return where the end of `text` begins that is a beginning of `wanted`; its length if none is. */
function startOfEnd(text: string, wanted: string): number {
  for (let start = Math.max(0, text.length - wanted.length); start < text.length; start++) {
    if (wanted.startsWith(text.slice(start))) return start;
  }
  return text.length;
}
