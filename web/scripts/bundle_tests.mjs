// Bundle the programs of a folder into node_modules/.cache/tests, so that every version of node runs them:
// its tests and what runs them, or where there are none, all of it.
import { readdirSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const [folder] = process.argv.slice(2);
const web = fileURLToPath(new URL("..", import.meta.url));
const outdir = `${web}/node_modules/.cache/tests/${folder}`;
const names = readdirSync(`${web}/${folder}`);
const tests = names.filter((name) => name.endsWith(".test.ts") || name === "run.ts");

rmSync(outdir, { recursive: true, force: true });
await build({
  absWorkingDir: web,
  entryPoints: (tests.length ? tests : names).map((name) => `${folder}/${name}`),
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
