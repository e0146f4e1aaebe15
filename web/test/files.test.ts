import assert from "node:assert/strict";
import { test } from "node:test";

import { readTextFiles, textOf } from "../src/files.ts";

const bytes = (...values: number[]): Uint8Array => Uint8Array.from(values);
const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);

const FILES: [name: string, content: Uint8Array, text: string | RegExp][] = [
  ["UTF-8", utf8("Grüße\n"), "Grüße\n"],
  ["UTF-8 with its mark", bytes(0xef, 0xbb, 0xbf, 0x61), "a"],
  ["UTF-16 of Windows", bytes(0xff, 0xfe, 0x61, 0, 0xfc, 0), "aü"],
  ["UTF-16, big end first", bytes(0xfe, 0xff, 0, 0x61), "a"],
  ["nothing", bytes(), /is empty/],
  ["a mark alone", bytes(0xef, 0xbb, 0xbf), /is empty/],
  ["white space", utf8(" \n\t\n"), /is empty/],
  ["Latin-1", bytes(0x47, 0x72, 0xfc, 0xdf, 0x65), /not in UTF-8\. Save it/],
  ["a picture", bytes(0x89, 0x50, 0x4e, 0x47, 0, 0, 0xff), /not a text file/],
  ["text with a zero", utf8("a\0b"), /not a text file/],
];

for (const [name, content, want] of FILES) {
  test(`a file with ${name}`, () => {
    const found = textOf(content);
    if (typeof want === "string") assert.deepEqual(found, { text: want });
    else assert.match("problem" in found ? found.problem : "it was read", want);
  });
}

test("files that cannot be added are named with the reason, and the others are added", async () => {
  const broken = Object.assign(new File(["x"], "folder"), { arrayBuffer: () => Promise.reject(new Error("gone")) });
  const large = new File([new Uint8Array(2_300_000)], "large.log");
  const { texts, refused } = await readTextFiles([new File([], "empty.txt"), large, broken, new File(["hi"], "a.txt")]);
  assert.deepEqual(texts, [{ name: "a.txt", text: "hi" }]);
  assert.deepEqual(refused, [
    "empty.txt is empty.",
    "large.log has 2.3 MB, and at most 2 MB can be added.",
    "folder cannot be read: it is a folder, or was changed or removed.",
  ]);
});
