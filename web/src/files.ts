/** Files: save a text as one, and read the text files that are dropped into the page. */
import type { TextFile } from "./chat/model.ts";

const LARGEST = 2_000_000; // bytes

/** Have the browser save a text as a file. */
export function saveFile(name: string, text: string, type = "application/json"): void {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** Return the texts of files, and a sentence about each that is none. */
export async function readTextFiles(files: Iterable<File>): Promise<{ texts: TextFile[]; refused: string[] }> {
  const texts: TextFile[] = [];
  const refused: string[] = [];
  for (const file of files) {
    if (file.size > LARGEST) {
      refused.push(`${file.name} is larger than 2 MB.`);
      continue;
    }
    try {
      const decoder = new TextDecoder("utf-8", { fatal: true });
      const text = decoder.decode(await file.arrayBuffer());
      if (text.includes("\0")) refused.push(`${file.name} is not a text file.`);
      else texts.push({ name: file.name, text });
    } catch {
      refused.push(`${file.name} is not a text file, or is not in UTF-8.`);
    }
  }
  return { texts, refused };
}
