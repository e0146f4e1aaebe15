// Build the page: bundle src/ into server/page/, whose files are committed.
//
// The names of all files but index.html contain a hash of their content, so that browsers may keep
// them for ever. `node build.mjs --check` builds into another folder and fails on a difference.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const WEB = fileURLToPath(new URL(".", import.meta.url));
const COMMITTED = join(WEB, "../server/page");
const CHECKED = join(WEB, "../build/web/page");
const ICON = "src/icon.svg";

// Dependencies of the page, whose licences are shipped beside it.
const SHIPPED = Object.keys(JSON.parse(readFileSync(join(WEB, "package.json"), "utf8")).dependencies);

// Messages of packages name web pages. The page then has no address of another host at all.
const withoutAddresses = {
  name: "without-addresses",
  setup: ({ onLoad }) =>
    onLoad({ filter: /node_modules\/(?:highlight\.js|marked)\/.*\.js$/ }, ({ path }) => ({
      contents: readFileSync(path, "utf8").replace(/https:\/\/github\.com\/[\w./-]*/g, ""),
    })),
};

async function bundle(out) {
  const result = await build({
    absWorkingDir: WEB,
    entryPoints: { main: "src/main.tsx", theme: "src/theme_early.ts" },
    outdir: join(out, "files"),
    bundle: true,
    splitting: true,
    format: "esm",
    minify: true,
    metafile: true,
    target: "es2022",
    jsx: "automatic",
    jsxImportSource: "preact",
    charset: "utf8",
    legalComments: "none",
    entryNames: "[name]-[hash]",
    chunkNames: "[name]-[hash]",
    plugins: [withoutAddresses],
    logLevel: "warning",
  });
  return result.metafile.outputs;
}

function addHashed(out, path) {
  const content = readFileSync(join(WEB, path));
  const hash = createHash("sha256").update(content).digest("hex").slice(0, 8);
  const name = basename(path).replace(/(\.\w+)$/, `-${hash}$1`);
  writeFileSync(join(out, "files", name), content);
  return name;
}

function index({ script, chunks, style, theme, icon }) {
  const preloads = chunks.map((name) => `\n<link rel="modulepreload" href="page/${name}">`).join("");
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1, interactive-widget=resizes-content">
<meta name="color-scheme" content="light dark">
<title>Understudy</title>
<link rel="icon" href="page/${icon}">
<script src="page/${theme}"></script>
<link rel="stylesheet" href="page/${style}">${preloads}
<script type="module" src="page/${script}"></script>
</head>
<body>
<div id="app"></div>
<noscript>This page needs JavaScript. The API works without it: see docs/api.md.</noscript>
</body>
</html>
`;
}

function licences() {
  return SHIPPED.map((name) => {
    const folder = join(WEB, "node_modules", name);
    const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((found) => /^licen[cs]e(\.\w+)?$/i.test(found));
    return `${name} ${version}\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
  }).join(`\n${"-".repeat(80)}\n\n`);
}

async function write(out) {
  rmSync(out, { recursive: true, force: true });
  mkdirSync(join(out, "files"), { recursive: true });
  const outputs = await bundle(out);
  const entry = (source) => Object.entries(outputs).find(([, found]) => found.entryPoint === source);
  const [script, main] = entry("src/main.tsx");
  const chunks = main.imports.filter((found) => found.kind === "import-statement");
  const page = index({
    script: basename(script),
    chunks: chunks.map((found) => basename(found.path)),
    style: basename(main.cssBundle),
    theme: basename(entry("src/theme_early.ts")[0]),
    icon: addHashed(out, ICON),
  });
  writeFileSync(join(out, "index.html"), page);
  writeFileSync(join(out, "LICENSES.txt"), licences());
}

function read(folder) {
  const names = readdirSync(folder, { recursive: true, withFileTypes: true });
  const files = names.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return new Map(files.map((path) => [path.slice(folder.length + 1), readFileSync(path, "utf8")]));
}

function differences(first, second) {
  const names = new Set([...first.keys(), ...second.keys()]);
  return [...names].filter((name) => first.get(name) !== second.get(name)).sort();
}

if (process.argv.includes("--check")) {
  await write(CHECKED);
  const different = differences(read(COMMITTED), read(CHECKED));
  if (different.length) {
    console.error(`server/page is not what web/ builds: ${different.join(", ")}. Run "make page".`);
    process.exit(1);
  }
} else {
  await write(COMMITTED);
}
