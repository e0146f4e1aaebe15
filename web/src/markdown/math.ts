/** Formulas as MathML, made by Temml, which is loaded when the first formula is shown. */
import { sanitizeFormula } from "./sanitize.ts";

const LONGEST = 5000; // characters of a formula; longer ones stay source
// The properties that Temml sets. The policy of the page allows them as properties only.
const STYLE = /^(?:border[\w-]*|color|background-color|display|font-style|font-weight|font-family|height|margin[\w-]*|math-depth|math-style|min-width|padding[\w-]*|position|text-align|top|vertical-align|width)$/;

let loading: Promise<typeof import("temml").default> | null = null;

/** Replace the source of a formula by the formula. What cannot be read as one stays source. */
export async function typeset(code: HTMLElement): Promise<void> {
  const source = code.textContent;
  if (source.length > LONGEST) return;
  loading ??= import("temml").then((module) => module.default);
  const temml = await loading.catch(() => null); // the server is gone: the source stays
  if (temml === null) loading = null;
  else if (code.isConnected) replaceBy(code, () => formulaOf(temml, source, code.classList.contains("display")));
}

function replaceBy(code: HTMLElement, make: () => DocumentFragment): void {
  try {
    const math = make().querySelector("math");
    if (math) code.replaceChildren(math);
    code.classList.add("typeset");
  } catch {
    code.classList.add("unreadable"); // it is no formula, or not yet complete
  }
}

function formulaOf(temml: typeof import("temml").default, source: string, displayMode: boolean): DocumentFragment {
  const options = { displayMode, throwOnError: true, trust: false, maxSize: [10, 10] as [number, number], maxExpand: 500 };
  // Temml escapes quotes in texts and values, so that this finds attributes only.
  const mathml = temml.renderToString(source, options).replaceAll(' style="', ' data-style="');
  const fragment = sanitizeFormula(mathml);
  for (const element of fragment.querySelectorAll<MathMLElement>("[data-style]")) {
    applyStyle(element, element.dataset["style"] ?? "");
    delete element.dataset["style"];
  }
  return fragment;
}

function applyStyle(element: MathMLElement, style: string): void {
  for (const declaration of style.split(";")) {
    const [name = "", value = ""] = declaration.split(/:(.*)/s).map((part) => part.trim());
    if (STYLE.test(name) && !/url\(|image/i.test(value)) element.style.setProperty(name, value);
  }
}
