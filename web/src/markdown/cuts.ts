/**
 * Where a long block may be cut while it grows, so that only its end is parsed and drawn again: code and
 * tables between lines, lists between items and their lines, quotes between blocks and lines, paragraphs between words.
 */
import type { Token, Tokens } from "marked";

const LONGEST = 3000; // characters of a block that is not cut
const KEPT = 1000; // characters after a cut, so that what is open at the end of a paragraph is not cut

export interface Cut {
  /** The place in the source of the block. */
  at: number;
  /** The part before it. */
  head: Token;
  /** What the text after it is parsed behind. */
  opening: string;
  /** Return the part after it, from the first token parsed; null if that does not go on with the block. */
  restOf: (first: Token) => Token | null;
}

/** A block, or what is left of it after a cut. */
interface Part {
  raw: string;
  token: Token;
  continues: boolean;
}

/** Return where to cut a block; null if it is short, complete, or of a kind that is not cut. */
export function cutOf({ raw, token, continues }: Part): Cut | null {
  const most = raw.length - KEPT;
  if (raw.length <= LONGEST) return null;
  if (token.type === "code") return cutCode(token as Tokens.Code, continues, most);
  if (token.type === "table") return cutTable(token as Tokens.Table, continues, most);
  if (token.type === "list") return cutList(token as Tokens.List, most) ?? cutItem(token as List, raw, most);
  if (token.type === "blockquote") return cutQuote(token as Tokens.Blockquote, raw, most);
  if (token.type === "paragraph") return cutParagraph(token as Tokens.Paragraph, most);
  return null;
}

/** Return whether a block is code whose closing fence has not come yet. */
export function isOpenCode(token: Token): boolean {
  if (token.type !== "code" || (token as Tokens.Code).codeBlockStyle === "indented") return false;
  const fence = /^ {0,3}(`{3,}|~{3,})/.exec(token.raw)?.[1];
  return fence !== undefined && !new RegExp(`\\n {0,3}${fence[0]}{${fence.length},}[ \\t]*\\n*$`).test(token.raw);
}

// The token of a rest keeps the opening in its source.
function cutCode(token: Tokens.Code, continues: boolean, most: number): Cut | null {
  const opening = token.raw.slice(0, token.raw.indexOf("\n") + 1);
  const before = continues ? opening.length : 0;
  const end = token.raw.lastIndexOf("\n", most + before - 1) + 1;
  // the lines of an indented fence are not those of its source
  if (end <= opening.length || !isOpenCode(token) || !token.raw.startsWith(token.text, opening.length)) return null;
  return {
    at: end - before,
    head: { ...token, raw: token.raw.slice(0, end), text: token.raw.slice(opening.length, end) },
    opening,
    restOf: (first) => (first.type === "code" && first.raw.startsWith(opening) ? first : null),
  };
}

function cutTable(token: Tokens.Table, continues: boolean, most: number): Cut | null {
  const lines = token.raw.trimEnd().split("\n").map((line) => `${line}\n`);
  if (lines.length !== token.rows.length + 2) return null;
  const opening = lines.slice(0, 2).join("");
  let end = opening.length;
  let rows = 0;
  const before = continues ? opening.length : 0;
  while (end + lines[rows + 2]!.length <= most + before) end += lines[2 + rows++]!.length;
  if (rows === 0) return null;
  return {
    at: end - before,
    head: { ...token, raw: token.raw.slice(0, end), rows: token.rows.slice(0, rows) },
    opening,
    restOf: (first) => (first.type === "table" && first.raw.startsWith(opening) ? first : null),
  };
}

function cutList(token: Tokens.List, most: number): Cut | null {
  const { items, ordered, start } = token;
  let at = 0;
  let count = 0;
  while (count < items.length - 2 && at + items[count]!.raw.length <= most) at += items[count++]!.raw.length;
  if (count === 0 || !token.raw.startsWith(items.map(({ raw }) => raw).join(""))) return null;
  return {
    at,
    head: { ...token, raw: token.raw.slice(0, at), items: items.slice(0, count) },
    opening: "",
    restOf: (first) => {
      const isRest = first.type === "list" && (first as Tokens.List).ordered === ordered;
      return isRest ? { ...first, start: ordered ? Number(start) + count : "" } : null;
    },
  };
}

/** A list, or the rest of one that was cut within an item. */
type List = Tokens.List & { midItem?: string }; // what the rest is parsed behind

/** Return whether the first item of a list goes on with the last one of the part before it. */
export function isMidItem(token: Token): boolean {
  return token.type === "list" && (token as List).midItem !== undefined;
}

/** Cut a list behind a line of its last item. */
function cutItem(token: List, source: string, most: number): Cut | null {
  const { items, ordered, start } = token;
  const item = items.at(-1)!;
  const before = items.slice(0, -1).reduce((length, { raw }) => length + raw.length, 0);
  const isRest = items.length === 1 && token.midItem !== undefined;
  const opening = isRest ? token.midItem! : `${/^ *\S+ +/.exec(item.raw)?.[0] ?? ""}${BEGUN}`;
  const lines = item.raw.split("\n");
  const texts = item.text.split("\n");
  const isAligned = source.startsWith(item.raw, before) && texts.every((text, line) => lines[line]?.endsWith(text));
  if (!isAligned || opening === BEGUN) return null;
  const places = new Map<number, number>();
  for (let line = 0, within = 0, at = before; line < texts.length && at <= most; line++) {
    places.set(within, at);
    within += texts[line]!.length + 1;
    at += lines[line]!.length + 1;
  }
  const cut = lastCut(item.tokens, places, -1); // only within a paragraph
  if (cut === null) return null;
  const begun = { ...item, raw: source.slice(before, cut.at), tokens: cut.blocks };
  return {
    at: cut.at,
    head: { ...token, raw: source.slice(0, cut.at), items: [...items.slice(0, -1), begun] } as Token,
    opening,
    restOf: (first) => {
      if (first.type !== "list" || (first as Tokens.List).ordered !== ordered) return null;
      const [own, ...others] = (first as Tokens.List).items;
      const tokens = withoutBegun(own!.tokens);
      if (tokens === null) return null;
      const rest = { ...own!, raw: own!.raw.slice(opening.length), text: own!.text.slice(BEGUN.length), tokens };
      const at = ordered ? Number(start) + items.length - 1 : "";
      return { ...first, raw: first.raw.slice(opening.length), start: at, items: [rest, ...others], midItem: opening } as Token;
    },
  };
}

const QUOTE_MARK = /^ {0,3}>[ \t]?/;
const BEGUN = "x\n"; // a line of a paragraph that any rest which begins with a line goes on with
const UNSETTLED = 2; // blocks at the end of a quote that text which follows may still change

/** Return whether the first paragraph of a quote goes on with the last one of the part before it. */
export function isMidParagraph(token: Token): boolean {
  return token.type === "blockquote" && (token as { isMidParagraph?: boolean }).isMidParagraph === true;
}

/** A place where what is in a quote or an item may be cut. */
interface InnerCut {
  at: number;
  blocks: Token[]; // before it
  isWithin: boolean; // a paragraph, which goes on
}

/** Cut a quote before one of its blocks, or behind a line of one of its paragraphs. */
function cutQuote(token: Tokens.Blockquote, source: string, most: number): Cut | null {
  const lines = source.match(/[^\n]*\n|[^\n]+$/g) ?? [];
  const texts = lines.map((line) => line.replace(QUOTE_MARK, ""));
  const blocks = token.tokens;
  if (texts.join("").trimEnd() !== blocks.map(({ raw }) => raw).join("").trimEnd()) return null;
  if (blocks.some(({ type }) => type === "def")) return null; // it changes blocks before it
  // where a line begins in the text of the quote, and in its source
  const places = new Map<number, number>();
  for (let line = 0, within = 0, at = 0; line < lines.length && at <= most; line++) {
    places.set(within, at);
    within += texts[line]!.length;
    at += lines[line]!.length;
  }
  const count = blocks.map(({ type }) => type !== "space").lastIndexOf(true) + 1;
  const cut = lastCut(blocks, places, count - UNSETTLED);
  if (cut === null) return null;
  return {
    at: cut.at,
    head: { ...token, raw: source.slice(0, cut.at), tokens: cut.blocks },
    opening: cut.isWithin ? `> ${BEGUN}` : "",
    restOf: (first) => {
      if (first.type !== "blockquote") return null;
      if (!cut.isWithin) return first;
      const rest = withoutBegun((first as Tokens.Blockquote).tokens);
      return rest && ({ ...first, tokens: rest, isMidParagraph: true } as Token);
    },
  };
}

/**
 * Return the last of the places where some blocks may be cut; null for none.
 *
 * @param last the last block that they may be cut before
 */
function lastCut(blocks: Token[], places: ReadonlyMap<number, number>, last: number): InnerCut | null {
  let cut: InnerCut | null = null;
  let before = 0;
  for (const [index, block] of blocks.entries()) {
    const complete = blocks.slice(0, index);
    const at = places.get(before);
    if (at && index <= last) cut = { at, blocks: complete, isWithin: false };
    let within = 0;
    const inline = block.type === "paragraph" || block.type === "text" ? (block as Tokens.Text).tokens : [];
    for (const [number, { type, raw }] of (inline ?? []).entries()) {
      if (!block.raw.startsWith(raw, within)) break;
      within += raw.length;
      const end = type === "br" ? places.get(before + within) : undefined;
      if (end === undefined) continue;
      const begun = { ...block, raw: block.raw.slice(0, within), tokens: inline!.slice(0, number) };
      cut = { at: end, blocks: [...complete, begun as Token], isWithin: true };
    }
    before += block.raw.length;
  }
  return cut;
}

/** Return blocks without the line that was put before their first paragraph; null if it is not there. */
function withoutBegun([paragraph, ...others]: Token[]): Token[] | null {
  const isText = paragraph?.type === "paragraph" || paragraph?.type === "text";
  if (!isText || !paragraph.raw.startsWith(BEGUN)) return null;
  const [letter, end, ...tokens] = (paragraph as Tokens.Text).tokens ?? [];
  if (letter?.raw !== BEGUN[0] || end?.type !== "br") return null;
  return [{ ...paragraph, raw: paragraph.raw.slice(BEGUN.length), tokens } as Token, ...others];
}

const LETTER = "x"; // makes any rest that begins between words go on as text

function cutParagraph(token: Tokens.Paragraph, most: number): Cut | null {
  let before = 0;
  let cut: { index: number; within: number; at: number } | null = null;
  for (const [index, { type, raw, text }] of (token.tokens as Tokens.Text[]).entries()) {
    const within = type === "text" && raw === text ? betweenWords(raw, most - before) : 0;
    if (within > 0) cut = { index, within, at: before + within };
    before += raw.length;
    if (before > most) break;
  }
  if (cut === null || !token.raw.startsWith(token.tokens.map(({ raw }) => raw).join(""))) return null;
  const { index, within, at } = cut;
  const last = token.tokens[index] as Tokens.Text;
  const text = last.raw.slice(0, within);
  return {
    at,
    head: { ...token, raw: token.raw.slice(0, at), tokens: [...token.tokens.slice(0, index), { ...last, raw: text, text }] },
    opening: LETTER,
    restOf: (first) => {
      const [begun, ...others] = first.type === "paragraph" ? (first as Tokens.Paragraph).tokens : [];
      if (begun?.type !== "text" || !begun.raw.startsWith(LETTER)) return null;
      const rest = { ...begun, raw: begun.raw.slice(1), text: (begun as Tokens.Text).text.slice(1) };
      return { ...first, raw: first.raw.slice(1), tokens: [rest, ...others] };
    },
  };
}

/** Return the last place in a text, at most `most`, that a space follows, else one between letters; 0 for none. */
function betweenWords(text: string, most: number): number {
  const space = text.lastIndexOf(" ", Math.min(most, text.length - 1));
  if (space > 0) return space;
  return most > 0 && most < text.length && /^\p{L}{2}$/u.test(text.slice(most - 1, most + 1)) ? most : 0;
}
