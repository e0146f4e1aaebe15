// Bundle the tests of a folder into node_modules/.cache/tests, so that every version of node runs them.
import { readdirSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const [folder] = process.argv.slice(2);
const web = fileURLToPath(new URL("..", import.meta.url));
const outdir = `${web}/node_modules/.cache/tests/${folder}`;

rmSync(outdir, { recursive: true, force: true });
await build({
  absWorkingDir: web,
  entryPoints: readdirSync(`${web}/${folder}`)
    .filter((name) => name.endsWith(".test.ts"))
    .map((name) => `${folder}/${name}`),
  outdir,
  outExtension: { ".js": ".mjs" },
  bundle: true,
  format: "esm",
  platform: "node",
  target: "node20",
  jsx: "automatic",
  jsxImportSource: "preact",
  external: ["playwright-core", "esbuild"],
  logLevel: "warning",
});
