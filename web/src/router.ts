/** The address after `#`: `#/VIEW/REST...?NAME=VALUE...` names the view, and what it shows. */
import { signal } from "@preact/signals";

export interface Route {
  /** The name of the view, "" for the first one. */
  view: string;
  /** The decoded parts after the view. */
  rest: string[];
  /** The named values after `?`. */
  query: URLSearchParams;
}

/** Return the route that a hash such as `#/chat/abc` names. */
export function parseHash(hash: string): Route {
  const [, path = "", query = ""] = /^#?\/?([^?]*)\??(.*)$/s.exec(hash) ?? [];
  const [view = "", ...rest] = path.split("/").map(decodePart);
  return { view, rest: rest.filter((part) => part !== ""), query: new URLSearchParams(query) };
}

/** Return the hash of a view and of what it shows. */
export function hashOf(view: string, ...rest: string[]): string {
  return `#/${[view, ...rest].map(encodeURIComponent).join("/")}`;
}

function decodePart(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a "%" that encodes nothing
  }
}

export const route = signal<Route>(parseHash(location.hash));

/** Show a view. With `replace`, the way back does not lead to the present one. */
export function go(hash: string, { replace = false } = {}): void {
  if (replace) history.replaceState(null, "", hash);
  else history.pushState(null, "", hash);
  route.value = parseHash(hash);
}

addEventListener("hashchange", () => (route.value = parseHash(location.hash)));
addEventListener("popstate", () => (route.value = parseHash(location.hash)));
