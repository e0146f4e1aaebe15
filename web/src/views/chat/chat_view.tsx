import type { JSX } from "preact";

export function ChatView(): JSX.Element {
  return <main class="view" />;
}
