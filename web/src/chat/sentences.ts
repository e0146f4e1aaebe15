/** Cuts a text that is being written into whole sentences, for screen readers. */

const END = /[.!?…:](?=["')\]”’]*\s)["')\]”’]*|\n+/g;
const FENCE = /```[\s\S]*?(?:```|$)/g;
const MARKS = /[*_`#>|]+/g;

export class Sentences {
  #said = 0;

  /** Return the sentences that have been completed since the last call, as one text. */
  next(text: string): string {
    let end = this.#said;
    END.lastIndex = this.#said;
    for (let match = END.exec(text); match !== null; match = END.exec(text)) {
      if (!isInFence(text, match.index)) end = match.index + match[0].length;
    }
    return this.#take(text, end);
  }

  /** Return the rest of a text that is complete. */
  rest(text: string): string {
    return this.#take(text, text.length);
  }

  #take(text: string, end: number): string {
    const piece = text.slice(this.#said, end);
    this.#said = end;
    return spoken(piece);
  }
}

function isInFence(text: string, at: number): boolean {
  return (text.slice(0, at).match(/^```/gm)?.length ?? 0) % 2 === 1;
}

/** Return a piece of markdown as it is read aloud. */
function spoken(piece: string): string {
  return piece.replace(FENCE, " A block of code. ").replace(MARKS, "").replace(/\s+/g, " ").trim();
}
