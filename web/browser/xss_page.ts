/**
 * Runs in the page: shows every prefix of hostile texts as an answer that grows, and inspects the result.
 * It uses the very module that the page uses.
 */
import type { MarkdownView } from "../src/markdown/markdown_view.ts";

const TAGS = new Set([
  ...["A", "BLOCKQUOTE", "BR", "BUTTON", "CODE", "DEL", "DIV", "EM", "H3", "HR", "LI", "OL", "P"],
  ...["PRE", "SPAN", "STRONG", "TABLE", "TBODY", "TD", "TH", "THEAD", "TR", "UL"],
]);
// What Temml writes; `a`, `maction`, `mglyph`, `annotation` and `semantics` are not among them.
const FORMULA = /^(?:math|m(?:o|i|n|s|text|space|row|sqrt|root|frac|sup|sub|subsup|over|under|underover|table|tr|td|padded|style|phantom|error|multiscripts|prescripts|enclose))$/;
const ATTRIBUTES = new Set(["align", "class", "href", "rel", "start", "target", "data-start", "tabindex", "role", "aria-label", "type"]);
const FORMULA_FORBIDDEN = /^(?:on|href|src|xlink|id$|name$|data-|action)/i;
const LINK = /^(?:https?:\/\/|mailto:)/;

const LOADING_MS = 1000;
const WORDS = "word ".repeat(500);

declare global {
  interface Window {
    hit: () => void;
    showHostile: typeof showHostile;
  }
}

let hits = 0;
let View: typeof MarkdownView;

/** Define what the test calls, with the module at an address. */
export async function start(module: string): Promise<void> {
  ({ MarkdownView: View } = (await import(module)) as { MarkdownView: typeof MarkdownView });
  window.hit = () => void hits++;
  await showHostile(["$x$\n\n```js\na\n```"]); // so that what typesets and highlights is here
  await new Promise((resolve) => setTimeout(resolve, LOADING_MS));
  window.showHostile = showHostile;
}

async function showHostile(texts: string[]): Promise<{ prefixes: number; found: string[] }> {
  const found: string[] = [];
  let prefixes = 0;
  addEventListener("securitypolicyviolation", (event) => found.push(`policy: ${event.violatedDirective}`));
  const shown = texts.map((text) => {
    const root = document.body.appendChild(document.createElement("div"));
    const view = new View(root);
    for (let end = 1; end <= text.length; end++) {
      view.update(text.slice(0, end), end === text.length);
      prefixes++;
      found.push(...inspect(root, text.slice(0, end)));
    }
    return { text, root, view };
  });
  await new Promise((resolve) => setTimeout(resolve)); // formulas and colours come later
  for (const { text, root, view } of shown) {
    found.push(...inspect(root, text));
    view.update("", false);
    for (const long of [WORDS + text, `${WORDS}${text} ${WORDS}`]) {
      view.update(long, false); // is cut before the text, then maybe within it
      found.push(...inspect(root, text));
    }
    root.remove();
  }
  if (hits > 0) found.push(`ran: ${texts.join("\n")}`);
  hits = 0;
  return { prefixes, found };
}

function inspect(root: Element, text: string): string[] {
  return [...root.querySelectorAll("*")].flatMap((element) => {
    const isFormula = element.closest("math") !== null;
    const isAllowed = isFormula ? FORMULA.test(element.localName) : TAGS.has(element.tagName);
    const wrong = isAllowed ? [] : [`<${element.localName}>: ${text}`];
    for (const { name, value } of element.attributes) {
      const isRight = isFormula ? !FORMULA_FORBIDDEN.test(name) : ATTRIBUTES.has(name);
      const isSafe = !/url\(|javascript:/i.test(name === "href" ? "" : value);
      if (!isRight || !isSafe) wrong.push(`${name}=${value}: ${text}`);
      if (name === "href" && !LINK.test(value)) wrong.push(`href=${value}: ${text}`);
    }
    return wrong;
  });
}
