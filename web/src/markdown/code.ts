/** Blocks of code: their language, a button that copies them, and colours once they are complete. */
import { announce } from "../ui/announce.tsx";
import { sanitizeText } from "./sanitize.ts";

const LONGEST = 30_000; // characters; highlighting more would hold up the page

let loading: Promise<typeof import("./languages.ts")> | null = null;

/** Put a head with language and copy button before the code of a `<pre>`. */
export function frameCode(pre: HTMLElement): void {
  const head = document.createElement("div");
  head.className = "code-head";
  const name = document.createElement("span");
  name.textContent = languageOf(pre) || "text";
  const copy = document.createElement("button");
  copy.type = "button";
  copy.textContent = "Copy";
  copy.className = "code-copy";
  copy.setAttribute("aria-label", "Copy code");
  copy.addEventListener("click", () => void copyText(pre.querySelector("code")?.textContent ?? "", copy));
  head.append(name, copy);
  pre.tabIndex = 0; // it may be wider than the page, and is scrolled with the arrow keys
  pre.setAttribute("role", "group");
  pre.setAttribute("aria-label", "Code");
  const frame = document.createElement("div");
  frame.className = "code-frame";
  pre.replaceWith(frame);
  frame.append(head, pre);
}

function languageOf(pre: HTMLElement): string {
  return /language-(\S+)/.exec(pre.querySelector("code")?.className ?? "")?.[1] ?? "";
}

async function copyText(text: string, button: HTMLElement): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announce("The code was copied.");
  } catch {
    button.textContent = "Cannot copy"; // a page without HTTPS on another machine has no clipboard
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

/** Colour the code of a `<pre>`. */
export async function highlight(pre: HTMLElement): Promise<void> {
  const code = pre.querySelector("code");
  const language = languageOf(pre);
  if (code === null || !language || code.textContent.length > LONGEST) return;
  loading ??= import("./languages.ts");
  const languages = await loading.catch(() => null); // the server is gone: the code stays plain
  if (languages === null) loading = null;
  else if (pre.isConnected) {
    const html = languages.highlighted(code.textContent, language);
    if (html !== null) code.replaceChildren(sanitizeText(html));
  }
}
