import assert from "node:assert/strict";
import { test } from "node:test";

import { type Block, Blocks } from "../src/markdown/blocks.ts";
import { isMidItem, isMidParagraph, isOpenCode } from "../src/markdown/cuts.ts";
import { htmlOf, lex, markdown } from "../src/markdown/html.ts";
import { alignText } from "../src/markdown/source_map.ts";
import { TEXTS } from "./texts.ts";

function html(text: string): string {
  return htmlOf(lex(text)).trim();
}

const LINK = 'target="_blank" rel="noopener noreferrer nofollow"';
const CASES: [name: string, text: string, html: string][] = [
  ["emphasis", "a **b** *c* ~~d~~", "<p>a <strong>b</strong> <em>c</em> <del>d</del></p>"],
  ["headings are below those of the page", "# a", '<h3 class="level-1">a</h3>'],
  ["deep headings", "###### a", '<h3 class="level-6">a</h3>'],
  ["lines are kept", "a\nb", "<p>a<br>b</p>"],
  ["HTML is text", "<b>a</b>", "<p>&lt;b&gt;a&lt;/b&gt;</p>"],
  ["a block of HTML is text", "<div>\n\n# a", '<p>&lt;div&gt;</p>\n<h3 class="level-1">a</h3>'],
  ["a line break", "a<br>b", "<p>a<br>b</p>"],
  ["a link", "[a](https://b.example/c)", `<p><a href="https://b.example/c" ${LINK}>a</a></p>`],
  ["mail", "<a@b.example>", `<p><a href="mailto:a@b.example" ${LINK}>a@b.example</a></p>`],
  ["another scheme", "[a](javascript:alert)", "<p>a</p>"],
  ["a relative link", "[a](/v1/models)", "<p>a</p>"],
  ["an image is a link", "![a](https://b.example/c.png)", `<p><a href="https://b.example/c.png" ${LINK}>Image: a</a></p>`],
  ["an image of another scheme", "![a](data:image/png,x)", "<p>Image: a</p>"],
  ["code", "```python\na < b\n```", '<pre><code class="language-python">a &lt; b</code></pre>'],
  ["a strange language", '```"><script>\na\n```', "<pre><code>a</code></pre>"],
  ["tasks", "- [x] a\n- [ ] b", "<ul>\n<li>☑ a</li>\n<li>☐ b</li>\n</ul>"],
  ["a formula", "a $x_1$ b", '<p>a <code class="math inline">x_1</code> b</p>'],
  ["a formula in brackets", "a \\(x < 1\\) b", '<p>a <code class="math inline">x &lt; 1</code> b</p>'],
  ["a displayed formula", "$$\nx\n$$", '<p><code class="math display">x</code></p>'],
  ["a displayed formula in brackets", "\\[ x \\]", '<p><code class="math display">x</code></p>'],
  ["a formula that is displayed in a line", "a $$x$$ b", '<p>a <code class="math display">x</code> b</p>'],
  ["prices are no formula", "from $5 to $10", "<p>from $5 to $10</p>"],
  ["one dollar sign", "a $ b", "<p>a $ b</p>"],
  ["a formula in code", "`$x$`", "<p><code>$x$</code></p>"],
];

for (const [name, text, expected] of CASES) test(name, () => assert.equal(html(text), expected));

function htmlOfBlocks(blocks: Block[]): string {
  return blocks.map(({ token }) => htmlOf([token]).trim()).filter(Boolean).join("\n");
}

for (const [name, text] of Object.entries(TEXTS)) {
  test(`${name}: a text that grows has the blocks of the whole text`, () => {
    const blocks = new Blocks();
    for (let end = 1; end <= text.length; end++) {
      const prefix = text.slice(0, end);
      const grown = blocks.update(prefix);
      assert.equal(htmlOfBlocks(grown), htmlOfBlocks(new Blocks().update(prefix)), JSON.stringify(prefix.slice(-40)));
      // marked writes the space after a list's empty last item in its own way
      for (const { start, raw } of grown) assert.ok(prefix.startsWith(raw.trimEnd(), start), JSON.stringify(raw));
    }
    assert.equal(htmlOfBlocks(blocks.update(text)).replaceAll("\n", ""), html(text).replaceAll("\n", ""));
  });
}

/** By kind of block: how it begins, and its token with a number. */
const LONG: Record<string, (at: number) => string> = {
  paragraph: (at) => `wo${at % 97}rd${at % 50 === 7 ? " **bold**, `code` and $x_1$" : ""} `,
  "paragraph without spaces": (at) => `字${at % 9 === 1 ? "，" : "詞"}`,
  "paragraph of lines": (at) => `word${at % 12 === 11 ? "\n" : " "}`,
  code: (at) => `${at ? "" : "```js\n"}a${at} < b;${at % 7 === 6 ? "\n" : " "}`,
  "code in tildes": (at) => `${at ? "" : "~~~\n"}a;${at % 7 === 6 ? "\n\n" : " "}`,
  list: (at) => `${at % 9 ? "" : `${at ? "\n" : ""}- [x] `}*it*em${at} `,
  "numbered list": (at) => `${at % 9 ? "" : `${at ? "\n" : ""}1. `}item${at}${at % 5 ? " " : "\n   - below "}`,
  quote: (at) => `${at ? "" : "> "}word${at % 97}${at % 15 === 14 ? "\n> " : " "}`,
  "quote of lines that begin like lists": (at) =>
    `${at ? "" : "> "}${at % 10 === 3 ? "**b** " : ""}w${at % 5 ? "" : "\n> 2. x\n>     y"}${at % 40 === 39 ? "\n>\n> " : " "}`,
  "quote of blocks": (at) => `${at ? "" : "> "}w*or*d${at % 30 === 29 ? "\n>\n> - a\n> - b\n>\n> " : " "}`,
  "list of one item": (at) => `${at ? "" : "- "}*it*em${at} ${at % 15 === 14 ? "\n  " : " "}`,
  "list with long items": (at) => `${at % 1501 ? "" : `${at ? "\n" : "1. a\n"}1. `}word${at % 15 === 14 ? "\n   **x**\n   " : " "}`,
  "list of lines that are not indented": (at) => `${at ? "" : "* "}word${at % 15 === 14 ? "\n" : " "}`,
  table: (at) => `${at ? "" : "| a | b |\n| - | -: |"}${at % 4 ? "" : "\n| "}c${at} ${at % 4 === 1 ? "|" : ""} `,
  "blocks behind each other": (at) => `${at % 1800 ? "" : "\n\n```\n"}a b\n${at % 1800 === 1500 ? "```\n\ntext\n\n" : ""}`,
};

const ENDS = /(?:<\/code><\/pre>|<\/p>|<\/[uo]l>|<\/tbody>\s*<\/table>)\s*$/;
const BEGINNINGS = /^(?:<pre><code[^>]*>|<p>|<[uo]l[^>]*>|<table>[^]*?<tbody>)/;

/** Return the HTML of blocks, in which the parts of one are together. */
function joined(blocks: Block[]): string {
  return blocks.reduce((before, { token, continues }) => {
    const own = htmlOf([token]);
    if (isMidItem(token)) {
      return `${before.replace(/(?:<\/p>\s*)?<\/li>\s*<\/[uo]l>\s*$/, "")}<br>${own.replace(/^<[uo]l[^>]*>\s*<li>(?:<p>)?/, "")}`;
    }
    if (continues && token.type === "blockquote") {
      if (!isMidParagraph(token)) return before.replace(/<\/blockquote>\s*$/, "") + own.replace(/^<blockquote>/, "");
      return `${before.replace(/<\/p>\s*<\/blockquote>\s*$/, "")}<br>${own.replace(/^<blockquote>\s*<p>/, "")}`;
    }
    return continues ? before.replace(ENDS, "") + own.replace(BEGINNINGS, "") : before + own;
  }, "");
}

/** Return how many characters are parsed while something is done. */
function parsed(action: () => void): number {
  const { lexer } = markdown;
  let count = 0;
  markdown.lexer = (source, options) => {
    count += source.length;
    return lexer.call(markdown, source, options);
  };
  try {
    action();
  } finally {
    markdown.lexer = lexer;
  }
  return count;
}

for (const [name, token] of Object.entries(LONG)) {
  test(`a long ${name} grows by its end, and is that of the whole text`, () => {
    const blocks = new Blocks();
    let text = "";
    let found: Block[] = [];
    let most = 0;
    for (let at = 0; at < 3600; at++) {
      text += token(at);
      if (at % 60 === 0) most = Math.max(most, parsed(() => (found = blocks.update(text))));
    }
    assert.ok(text.length > 6000 && most <= 6000, `${most} characters were parsed at once`);
    text += "\n\nThe end.";
    found = blocks.update(text);
    assert.ok(found.some(({ continues }) => continues), "it was cut");
    const [parts, whole] = [joined(found), html(text)].map((own) => own.trim().replace(/\s*\n\s*/g, "\n"));
    assert.equal(parts, whole);
    assert.equal(found.map(({ raw }) => raw).join(""), text);
  });
}

test("a text that is replaced is parsed anew", () => {
  const blocks = new Blocks();
  blocks.update("a\n\nb\n\nc\n\nd\n\n");
  assert.equal(htmlOfBlocks(blocks.update("x")), "<p>x</p>");
});

test("carriage returns are line ends", () => {
  assert.equal(htmlOfBlocks(new Blocks().update("a\r\n\r\nb\rc")), "<p>a</p>\n<p>b<br>c</p>");
});

const OPEN: [text: string, isOpen: boolean][] = [
  ["```js\na", true],
  ["```js\na\n```", false],
  ["````\na\n```", true],
  ["~~~\na\n~~~\n", false],
  ["    indented", false],
];

for (const [text, isOpen] of OPEN) {
  test(`code that is open: ${JSON.stringify(text)}`, () => {
    assert.equal(isOpenCode(new Blocks().update(text)[0]!.token), isOpen);
  });
}

const ALIGNED: [visible: string, source: string, offsets: number[]][] = [
  ["ab", "**ab**", [2, 3]],
  ["a b", "`a` _b_", [1, 3, 5]],
  ["a & b", "a &amp; b", [0, 1, 2, 7, 8]],
  ["☐ a", "- [ ] a", [-1, 1, 6]],
];

for (const [visible, source, offsets] of ALIGNED) {
  test(`the source of ${JSON.stringify(visible)} in ${JSON.stringify(source)}`, () => {
    assert.deepEqual([...alignText(visible, source, 0).offsets], offsets);
  });
}
