/** Markdown as a component. The elements inside belong to `MarkdownView`, which loads when needed. */
import { signal } from "@preact/signals";
import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";

import type { MarkdownView } from "../../markdown/markdown_view.ts";

type View = typeof import("../../markdown/markdown_view.ts");

const SLOW_MS = 12; // a text that takes longer to show is shown less often
const TRY_AGAIN_MS = 3000;

const loaded = signal<View | null>(null);
let isLoading = false;

/** Load what shows markdown, before the first answer needs it. */
export function loadMarkdown(): void {
  if (isLoading) return;
  isLoading = true;
  import("../../markdown/markdown_view.ts").then(
    (module) => (loaded.value = module),
    () => {
      isLoading = false; // the server is gone: text is plain until it is back
      setTimeout(loadMarkdown, TRY_AGAIN_MS);
    },
  );
}

interface MarkdownProps {
  text: string;
  isComplete: boolean;
}

export function MarkdownText({ text, isComplete }: MarkdownProps): JSX.Element {
  loadMarkdown();
  if (loaded.value === null) return <div class="markdown plain">{text}</div>;
  return <Shown key="shown" module={loaded.value} text={text} isComplete={isComplete} />;
}

function Shown({ module, text, isComplete }: MarkdownProps & { module: View }): JSX.Element {
  const root = useRef<HTMLDivElement>(null);
  const view = useRef<MarkdownView | null>(null);
  const notBefore = useRef(0);
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  useLayoutEffect(() => {
    view.current ??= new module.MarkdownView(root.current!);
    const show = (): void => {
      const began = performance.now();
      view.current?.update(text, isComplete);
      const took = performance.now() - began;
      notBefore.current = began + (took > SLOW_MS ? 8 * took : 0);
    };
    clearTimeout(timer.current);
    const wait = isComplete ? 0 : notBefore.current - performance.now();
    if (wait > 0) timer.current = setTimeout(show, wait);
    else show();
  }, [text, isComplete]);
  useEffect(() => () => clearTimeout(timer.current), []);
  return <div class="markdown" ref={root} />;
}
