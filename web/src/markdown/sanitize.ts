/** The allow-lists that all HTML passes before it becomes part of the page. */
import DOMPurify, { type Config } from "dompurify";

const TEXT: Config = {
  ALLOWED_TAGS: [
    ...["a", "blockquote", "br", "code", "del", "em", "h3", "hr", "li", "ol"],
    ...["p", "pre", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul", "#text"],
  ],
  ALLOWED_ATTR: ["align", "class", "href", "rel", "start", "target"],
  ADD_URI_SAFE_ATTR: ["align", "rel", "start", "target"], // their values are no addresses
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  ALLOW_UNKNOWN_PROTOCOLS: false,
  RETURN_DOM_FRAGMENT: true,
};

const FORMULA: Config = {
  USE_PROFILES: { mathMl: true },
  ADD_ATTR: ["data-style"],
  FORBID_TAGS: ["a", "maction", "mglyph", "semantics", "annotation", "style"],
  FORBID_ATTR: ["href", "style", "src", "id", "name", "xlink:href"],
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** Return the document fragment of the HTML of a text. */
export function sanitizeText(html: string): DocumentFragment {
  return DOMPurify.sanitize(html, TEXT) as unknown as DocumentFragment;
}

/** Return the document fragment of a formula in MathML. Its styles are in `data-style`. */
export function sanitizeFormula(mathml: string): DocumentFragment {
  return DOMPurify.sanitize(mathml, FORMULA) as unknown as DocumentFragment;
}
