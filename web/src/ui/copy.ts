import { announce } from "./announce.tsx";
import { toast } from "./toast.tsx";

/** Copy a text, and have a screen reader say `sentence`. Return whether the browser allows it. */
export async function copyText(text: string, sentence: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    toast({ text: "The browser does not let this page copy: it came without HTTPS from another machine." });
    return false;
  }
  announce(sentence);
  return true;
}
