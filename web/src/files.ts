/** Files: save a text as one, and read the text files that are dropped into the page. */
import type { TextFile } from "./chat/model.ts";

const LARGEST_MB = 2;
const MARKS: [encoding: string, bytes: number[]][] = [
  ["utf-16le", [0xff, 0xfe]],
  ["utf-16be", [0xfe, 0xff]],
];

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
    const found = await readTextFile(file);
    if ("text" in found) texts.push({ name: file.name, text: found.text });
    else refused.push(`${file.name} ${found.problem}`);
  }
  return { texts, refused };
}

async function readTextFile(file: File): Promise<{ text: string } | { problem: string }> {
  const megabytes = file.size / 1e6;
  if (megabytes > LARGEST_MB) {
    return { problem: `has ${megabytes.toFixed(1)} MB, and at most ${LARGEST_MB} MB can be added.` };
  }
  let bytes: Uint8Array;
  try {
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch {
    return { problem: "cannot be read: it is a folder, or was changed or removed." };
  }
  return textOf(bytes);
}

/** Return the text in the bytes of a file: in UTF-8, or in UTF-16 with its mark. */
export function textOf(bytes: Uint8Array): { text: string } | { problem: string } {
  const [encoding = "utf-8"] = MARKS.find(([, mark]) => mark.every((byte, index) => bytes[index] === byte)) ?? [];
  let text: string;
  try {
    text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
  } catch {
    return { problem: bytes.includes(0) ? NO_TEXT : "is not in UTF-8. Save it in that encoding, and add it again." };
  }
  if (text.trim() === "") return { problem: "is empty." };
  return text.includes("\0") ? { problem: NO_TEXT } : { text };
}

const NO_TEXT = "is not a text file.";
