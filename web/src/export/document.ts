/**
 * An answer as one HTML file, with its paint: no script, nothing from elsewhere, all text escaped.
 *
 * Its policy allows the one style sheet that is in it, by its checksum.
 */
import { type Look, lookOf, nameOf } from "../paint/sources.ts";
import type { AnswerTrace, Stretch } from "../paint/trace.ts";
import { passViews, secondsOf, sentenceOf } from "../passes/figures.ts";
import { several } from "../units.ts";
import { STYLE, STYLE_CHECKSUM } from "./style.ts";

export interface Exported {
  /** The messages before the answer. */
  messages: readonly { role: string; content: string }[];
  trace: AnswerTrace;
  model: string;
  /** Figures of the answer, with their names. */
  figures: readonly [name: string, value: string][];
  date: Date;
}

/** Return the file's text. */
export function documentOf({ messages, trace, model, figures, date }: Exported): string {
  const title = `Answer of ${model}`;
  const policy = `default-src 'none'; style-src 'sha256-${STYLE_CHECKSUM}'; base-uri 'none'; form-action 'none'`;
  const asked = messages.map((message) => block(message.role, `<p class="text">${escape(message.content)}</p>`));
  const reasoning = trace.text("reasoning") ? block("reasoning", painted(trace.stretches("reasoning"))) : "";
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>${escape(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<main>
<h1>${escape(title)}</h1>
<p class="muted"><time datetime="${date.toISOString()}">${escape(date.toISOString().slice(0, 16).replace("T", " "))} UTC</time></p>
${asked.join("\n")}
${reasoning}
${block("assistant", painted(trace.stretches("content")))}
<h2>Where the tokens come from</h2>
${legend(trace)}
<h2>Passes</h2>
<p class="muted">Each bar is a forward pass of the model; its height is the number of tokens that it brought.</p>
${bars(trace)}
<dl>${figures.map(([name, value]) => `<div><dt>${escape(name)}</dt><dd>${escape(value)}</dd></div>`).join("")}</dl>
</main>
</body>
</html>
`;
}

/** Return a text so that it is text in HTML, in an element or in a quoted attribute. */
export function escape(text: string): string {
  const entities: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  // Control characters, which HTML does not allow, are shown as the sign for what cannot be shown.
  return text.replace(/[&<>"']/g, (found) => entities[found]!).replace(/[\0-\x08\x0b-\x1f\x7f]/g, "\ufffd");
}

function block(role: string, content: string): string {
  return `<section class="message"><h2>${escape(role)}</h2>${content}</section>`;
}

function span(look: Look, text: string): string {
  return look === "plain" ? escape(text) : `<span class="look ${look}">${escape(text)}</span>`;
}

function painted(stretches: readonly Stretch[]): string {
  return `<p class="text">${stretches.map((own) => span(own.look, own.text)).join("")}</p>`;
}

function legend(trace: AnswerTrace): string {
  const items = trace.shares().map(({ source, look, count, share }) => {
    const figures = `${count} (${Math.round(100 * share)} %)`;
    return `<li><span class="look ${look}">${escape(nameOf(source))}</span> ${figures}</li>`;
  });
  return `<ul>${items.join("")}</ul>`;
}

const WIDTH = 10;
const STEP = 13;
const UNIT = 7; // of height, for a token

function bars(trace: AnswerTrace): string {
  const views = passViews(trace);
  const most = Math.max(1, ...views.map((view) => view.tokens.length));
  const width = Math.max(1, views.length * STEP);
  const shapes = views.map((view, place) => {
    const parts = view.tokens.map((token, number) => {
      const y = (most - 1 - number) * UNIT;
      const look = lookOf(token.source);
      return `<rect class="${look}" x="${place * STEP}" y="${y}" width="${WIDTH}" height="${UNIT}"/>`;
    });
    return `<g><title>${escape(sentenceOf(view))}</title>${parts.join("")}</g>`;
  });
  const seconds = views.reduce((sum, view) => sum + secondsOf(view.pass), 0);
  const name = `${several(views.length, "pass")} in ${seconds.toFixed(1)} s`;
  return `<div class="bars"><svg role="img" aria-label="${name}" width="${width}" height="${most * UNIT}">${shapes.join("")}</svg></div>
<p class="muted">${name}</p>`;
}
