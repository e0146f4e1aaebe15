/**
 * Markdown to HTML, as text, without a document. What a model writes is hostile: its HTML is shown as
 * text, links lead to web pages and mail only, and images become links. `sanitize.ts` checks it again.
 */
import { Marked, type Token, type Tokens } from "marked";

const LINK = /^(?:https?:\/\/|mailto:)/i;
const LANGUAGE = /^[\w+#.-]{1,40}$/;
const BREAK = /^<br\s*\/?>/i;

const DISPLAY_MATH = /^ {0,3}(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])[ \t]*(?:\n|$)/;
const INLINE_DISPLAY = /^(?:\$\$([^$\n]+?)\$\$|\\\[([^\n]+?)\\\])/;
// A dollar sign before a digit is a price, unless the pair encloses no space at its ends.
const INLINE_MATH = /^(?:\$(?!\s)((?:\\.|[^$\\\n])+?)(?<!\s)\$(?!\d)|\\\(([\s\S]+?)\\\))/;

interface MathToken extends Tokens.Generic {
  text: string;
  isDisplay: boolean;
}

function mathToken(match: RegExpExecArray | null, type: string, isDisplay: boolean): MathToken | undefined {
  if (match === null) return undefined;
  const text = (match[1] ?? match[2] ?? "").trim();
  return text === "" ? undefined : { type, raw: match[0], text, isDisplay };
}

function renderMath(token: Tokens.Generic): string {
  const { text, isDisplay } = token as MathToken;
  const kind = isDisplay ? "display" : "inline";
  return `<code class="math ${kind}">${escapeHtml(text)}</code>`;
}

export const markdown = new Marked({
  gfm: true,
  breaks: true,
  extensions: [
    {
      name: "blockMath",
      level: "block",
      start: (source) => indexOrNone(source.search(/\n {0,3}(?:\$\$|\\\[)/)),
      tokenizer: (source) => mathToken(DISPLAY_MATH.exec(source), "blockMath", true),
      renderer: (token) => `<p>${renderMath(token)}</p>\n`,
    },
    {
      name: "inlineMath",
      level: "inline",
      start: (source) => indexOrNone(source.search(/\$|\\[([]/)),
      tokenizer: (source) =>
        mathToken(INLINE_DISPLAY.exec(source), "inlineMath", true) ??
        mathToken(INLINE_MATH.exec(source), "inlineMath", false),
      renderer: renderMath,
    },
    {
      name: "lineBreak",
      level: "inline",
      start: (source) => indexOrNone(source.search(/<br/i)),
      tokenizer: (source) => {
        const match = BREAK.exec(source);
        return match ? { type: "lineBreak", raw: match[0] } : undefined;
      },
      renderer: () => "<br>",
    },
  ],
  tokenizer: {
    html: () => undefined, // HTML is text like any other
    tag: () => undefined,
  },
  renderer: {
    html: ({ text }) => escapeHtml(text),
    heading({ tokens, depth }) {
      // Models begin at any level, and skip some; for screen readers all are below that of the answer.
      return `<h3 class="level-${depth}">${this.parser.parseInline(tokens)}</h3>\n`;
    },
    link({ href, tokens }) {
      const inner = this.parser.parseInline(tokens);
      return LINK.test(href) ? linkTo(href, inner) : inner;
    },
    image({ href, text }) {
      const inner = `Image: ${escapeHtml(text || href)}`;
      return LINK.test(href) ? linkTo(href, inner) : inner;
    },
    code({ text, lang }) {
      const language = lang?.trim().split(/\s/)[0] ?? "";
      const name = LANGUAGE.test(language) ? ` class="language-${escapeHtml(language.toLowerCase())}"` : "";
      return `<pre><code${name}>${escapeHtml(text)}</code></pre>\n`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

function indexOrNone(index: number): number | undefined {
  return index < 0 ? undefined : index;
}

function linkTo(href: string, inner: string): string {
  return `<a href="${escapeHtml(href)}" target="_blank" rel="noopener noreferrer nofollow">${inner}</a>`;
}

const ESCAPES: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => ESCAPES[character]!);
}

/** Return the blocks of a text: paragraphs, lists, code and so on, and the space between them. */
export function lex(text: string): Token[] {
  return markdown.lexer(text);
}

/** Return the HTML of blocks. */
export function htmlOf(tokens: Token[]): string {
  return markdown.parser(tokens);
}
