/** A reader of server-sent events, as the HTML standard defines them, that also yields comments. */

export type SseItem =
  | { kind: "event"; event: string; data: string }
  | { kind: "comment"; text: string };

/** Parse a stream of text that arrives in pieces, which may end anywhere. */
export class SseParser {
  #rest = "";
  #event = "";
  #data: string[] = [];
  #isFirst = true;
  #endsInReturn = false; // the last piece ended with \r, whose \n may follow

  /** Return the events and comments that are complete with this piece. */
  push(piece: string): SseItem[] {
    if (piece === "") return [];
    if (this.#isFirst) {
      this.#isFirst = false;
      piece = piece.replace(/^\uFEFF/, "");
    }
    if (this.#endsInReturn && piece.startsWith("\n")) piece = piece.slice(1);
    this.#endsInReturn = piece.endsWith("\r");
    const lines = (this.#rest + piece).split(/\r\n|\r|\n/);
    this.#rest = lines.pop() ?? "";
    return lines.flatMap((line) => this.#readLine(line));
  }

  #readLine(line: string): SseItem[] {
    if (line === "") return this.#dispatch();
    if (line.startsWith(":")) return [{ kind: "comment", text: line.slice(1).trim() }];
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
    return [];
  }

  #dispatch(): SseItem[] {
    const item: SseItem = { kind: "event", event: this.#event, data: this.#data.join("\n") };
    const isEmpty = this.#data.length === 0;
    this.#event = "";
    this.#data = [];
    return isEmpty ? [] : [item];
  }
}

/** Yield the events and comments of a body as they arrive. */
export async function* readSse(body: ReadableStream<Uint8Array>): AsyncGenerator<SseItem, void> {
  const parser = new SseParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    await reader.cancel().catch(() => undefined); // it may have failed already
  }
}
