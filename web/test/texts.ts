/** Texts such as models write, for tests that cut them anywhere. */
export const TEXTS: Record<string, string> = {
  prose: "# Title\n\nA paragraph with **bold**, `code` and a [link](https://a.example).\nSecond line.\n\n> quote\n> more\n\nEnd.",
  lists: "Items:\n\n- one\n- two\n\n  more of two\n\n- three\n  1. inner\n  2. inner\n\n* other\n\n1. a\n\n2. b\n\nEnd\n\n- [ ] x\n- [x] y\n",
  code: "Look:\n\n```python\ndef f(a):\n\n    return a\n```\n\nand\n\n~~~\nplain\n~~~\n\n    indented\n\n    more\n\n`inline ``code```\n\n```js\nnever closed\n\n",
  tables: "| a | b |\n| --- | :-: |\n| 1 | 2 |\n| 3 | **4** |\n\nafter\n\na | b\n--|--\nc | d\n",
  headings: "Title\n===\n\ntext\n---\n\n***\n\n## b ##\ntext\n",
  formulas: "So $x^2$ and\n\n$$\n\\frac{a}{b}\n$$\n\nthen \\[\ny\n\\] and \\(z\\).\n\n\\[\na\n\\]\n\nIt is $5 or $6.\n",
  definitions: "See [this][1] and [that].\n\ntext\n\nmore\n\n[1]: https://a.example\n[that]: https://b.example 'title'\n\nend\n",
  html: "<div>\n<p>a</p>\n\n<script>alert(1)</script>\n\n<!-- a\n\nb -->\n\ntext <b>c</b>\n\n<pre>\n\nx\n</pre>\n",
  spaces: "\n\n\na\n\n\n\n b\n\n\tc\n   \n\n  - d\n \n\n",
};
