/** Cuts a text that is being written into whole sentences, for screen readers. */

// a fence of code at the beginning of a line, or the end of a sentence
const MARK = /^```|[.!?…:](?=["')\]”’]*\s)["')\]”’]*|\n+/gm;
const FENCE = /```[\s\S]*?(?:```|$)/g;
const MARKS = /[*_`#>|]+/g;

export class Sentences {
  #said = 0;
  #seen = 0; // up to here marks were looked for
  #isInFence = false;

  /** Return the sentences that have been completed since the last call, as one text. */
  next(text: string): string {
    let end = this.#said;
    MARK.lastIndex = this.#seen;
    for (let match = MARK.exec(text); match !== null; match = MARK.exec(text)) {
      this.#seen = MARK.lastIndex;
      if (match[0] === "```") this.#isInFence = !this.#isInFence;
      else if (!this.#isInFence) end = this.#seen;
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

/** Return a piece of markdown as it is read aloud. */
function spoken(piece: string): string {
  return piece.replace(FENCE, " A block of code. ").replace(MARKS, "").replace(/\s+/g, " ").trim();
}
